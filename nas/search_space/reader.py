"""Genotype files, and the one reader of all forms in which people keep cells, for all commands."""

import codecs
import difflib
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from nas import files
from nas.errors import InputError, first_problem, printable
from nas.search_space import conversions
from nas.search_space.genotype import Edge, Genotype, check_cell
from nas.search_space.text import Found, choose, find_all

FORMAT_VERSION = 1
MAX_CANDIDATES = 400

# In a checkout the published cells lie beside the package; an installed package carries them inside.
SHIPPED = next(
    (folder for folder in (Path(__file__).parents[1] / "published", Path(__file__).parents[2] / "genotypes")
     if folder.is_dir()),
    Path(__file__).parents[1] / "published",
)  # fmt: skip


FORMS = (
    "What can be read: a genotype file; Genotype(normal=…, …), also in a log or a Python module; "
    "JSON or a printed dictionary of NNI or NAS-Bench-301; a run folder; a name"
)
_IS_TEXT = re.compile(r".*\bGenotype\s*\(|\s*(?:\w+\s*=\s*)?[{\[|]", re.DOTALL)
_IS_NAS_BENCH_201 = re.compile(r"\|\w{1,40}~[0-9]\|")


def _parsed(text: str) -> str:
    Genotype.from_text(text)
    return text


_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class Candidate(BaseModel):
    """One of the cells from which an exported cell was chosen, trained for a short time with held-out images.

    Attributes:
        seeds: seeds of the searches that found it.
        random_seeds: seeds of the random draws that gave it.
        genotype: its text.
        weights: number of weights of the network that was trained.
        multiply_adds: multiply-adds of that network per image.
        supernet_accuracies: for each search, the fraction of the upper half that the supernet classified correctly.
        holdout_accuracy: fraction of the held-out images that the network classified correctly.
        holdout_loss: cross entropy on the held-out images.
        holdout_balanced_accuracy: mean of the accuracies of the classes. It is set only if each class is drawn equally
            often, and then cells are chosen by it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    seeds: Annotated[tuple[_Count, ...], Field(max_length=MAX_CANDIDATES)]
    random_seeds: Annotated[tuple[_Count, ...], Field(max_length=MAX_CANDIDATES)]
    genotype: Annotated[str, Field(max_length=10_000), AfterValidator(_parsed)]
    weights: _Count
    multiply_adds: _Count
    supernet_accuracies: Annotated[tuple[_Fraction, ...], Field(max_length=MAX_CANDIDATES)]
    holdout_accuracy: _Fraction
    holdout_loss: Annotated[float, Field(ge=0)]
    holdout_balanced_accuracy: _Fraction | None = None

    @property
    def score(self) -> float:
        """The accuracy by which cells are compared."""
        return self.holdout_accuracy if self.holdout_balanced_accuracy is None else self.holdout_balanced_accuracy


class Provenance(BaseModel):
    """Where a cell comes from. Everything is optional; what is not known is left out."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    method: str | None = None
    source: str | None = None
    reported_cifar10_test_error_percent: str | None = None
    reported_params_millions: float | None = None
    dataset: str | None = None
    num_images: int | None = None
    seed: int | None = None
    epochs: int | None = None
    supernet_accuracy: float | None = None  # fraction of the upper half, in [0, 1]
    date: str | None = None  # ISO 8601
    versions: dict[str, str] | None = None
    candidates: Annotated[tuple[Candidate, ...], Field(max_length=MAX_CANDIDATES)] | None = None  # best first


class _Cell(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    edges: tuple[Edge, ...]
    concat: tuple[int, ...]


class GenotypeFile(BaseModel):
    """The content of a genotype file: the cells and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)]  # Literal[1] would let True and 1.0 in
    normal: _Cell
    reduce: _Cell
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        for name in ("normal", "reduce"):
            cell: _Cell = getattr(self, name)
            check_cell(f"{name}.edges", cell.edges, f"{name}.concat", cell.concat)
        return self

    def cells(self) -> dict[str, Any]:
        """Return the arguments of `Genotype`."""
        return {
            "normal": self.normal.edges,
            "normal_concat": self.normal.concat,
            "reduce": self.reduce.edges,
            "reduce_concat": self.reduce.concat,
        }

    @classmethod
    def of(cls, genotype: Genotype, provenance: Provenance) -> Self:
        """Make the content of a file for a genotype."""
        return cls(
            format_version=FORMAT_VERSION,
            normal=_Cell(edges=genotype.normal, concat=genotype.normal_concat),
            reduce=_Cell(edges=genotype.reduce, concat=genotype.reduce_concat),
            provenance=provenance,
        )

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> Self:
        """Read a genotype file by its path or name, as `Genotype.load` does."""
        path = find(path_or_name)
        try:
            return cls.model_validate_json(files.read_json(path, "genotype", FORMAT_VERSION))
        except ValidationError as error:
            raise InputError(f"genotype {path}: {first_problem(error)}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write the file, replacing the one at `path` in one step."""
        files.write_json(Path(path), self.model_dump(exclude_none=True))


def find(path_or_name: str | os.PathLike) -> Path:
    """Find the genotype file that a path or a name stands for.

    Raises:
        InputError: there is none; the known names are listed.
    """
    path = Path(path_or_name)
    candidates = [path]
    if path.name == str(path_or_name) and path.suffix != ".json":
        candidates += [Path("genotypes", f"{path}.json"), SHIPPED / f"{path}.json"]
    try:
        for candidate in candidates:
            if candidate.is_file():
                return candidate
        if path.exists():
            raise InputError(f"genotype {path}: not a regular file.")
    except OSError as error:  # such as a name too long for the file system
        raise InputError(f"genotype {str(path)[:60]}…: cannot be read ({error.strerror}).") from None
    lower = {name.lower(): name for name in known_names()}
    close = difflib.get_close_matches(path.name[:100].lower(), lower, n=1)
    meant = f"perhaps you meant {lower[close[0]]}; " if close else ""
    raise InputError(
        f"genotype {path}: there is no file and no cell of this name; {meant}known names: {', '.join(known_names())}."
    )


def known_names() -> list[str]:
    """List the names that `Genotype.load` accepts, sorted."""
    return sorted({path.stem for folder in (Path("genotypes"), SHIPPED) for path in folder.glob("*.json")})


@dataclass(frozen=True)
class Read:
    """A genotype that was read.

    Attributes:
        where: the place it was read from, in words.
        name: a name for what is made of it, such as a run.
        file: its cells, and where they come from.
        notes: sentences about what was chosen or left out, to be printed.
    """

    where: str
    name: str
    file: GenotypeFile
    notes: list[str]

    @property
    def genotype(self) -> Genotype:
        """The cells of the file."""
        return Genotype(**self.file.cells())


def read(source: str) -> Read:
    """Read the genotype that a user means.

    Args:
        source: the path of a file in any form, `PATH:NAME` or `PATH:LINE` for one of several genotypes, a run folder,
            the name of a cell, the text itself, or "-" for standard input.

    Raises:
        InputError: there is none, or it is wrong; the sentence lists what can be read.
    """
    if source == "-":
        return _read(sys.stdin.buffer.read(files.MAX_JSON_BYTES + 1), "standard input", "genotype", "")
    if _IS_TEXT.match(source) and not os.path.exists(source):
        return _read(source.encode(errors="surrogatepass"), "text", "genotype", "")
    path, _, name = source.rpartition(":")
    if os.path.exists(source) or not os.path.isfile(path):
        path, name = source, ""
    own = os.path.join(path, "genotype.json")
    if os.path.isfile(own):
        path, stem = own, Path(path).resolve().name
    elif os.path.isdir(path) and path not in known_names():  # a folder of images may be called like a cell
        raise InputError(f"genotype {printable(path, 400)}: not a run folder: genotype.json is missing.")
    else:
        path = find(path)
        stem = path.stem
    stem = re.sub(r"[^\w.-]", "-", name if name and not name.isdigit() else stem)
    return _read(files.read_small(Path(path), "genotype"), printable(path, 400), stem, name)


def _read(data: bytes, where: str, stem: str, name: str) -> Read:
    try:
        if len(data) > files.MAX_JSON_BYTES:
            raise InputError("larger than 1 MiB, which is too large for a genotype.")
        file, notes = _file_in(data, name)
    except ValidationError as error:
        raise InputError(f"genotype {where}: {first_problem(error)}") from None
    except InputError as error:
        raise InputError(f"genotype {where}: {error}") from None
    except UnicodeDecodeError:
        raise InputError(f"genotype {where}: not a text in UTF-8 or UTF-16. {FORMS}.") from None
    except RecursionError:
        raise InputError(f"genotype {where}: nested too deeply.") from None
    return Read(where, stem, file, notes)


def _file_in(data: bytes, name: str) -> tuple[GenotypeFile, list[str]]:
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # the > of PowerShell writes it
    text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    content, not_json = None, ""
    if text.lstrip()[:1] in ("{", "["):
        try:
            content = json.loads(text, object_pairs_hook=files.each_key_once)
        except (ValueError, RecursionError) as error:
            not_json = f"not JSON ({printable(error, 200)}), and "
    if isinstance(content, dict) and "format_version" in content:
        if problem := files.too_new(content, FORMAT_VERSION):
            raise InputError(problem)
        if name:
            raise InputError(f"a genotype file holds one genotype without a name: leave out {name!r:.60}.")
        return GenotypeFile.model_validate_json(text), []
    found = _found_in(text, content)
    if not found:
        if _IS_NAS_BENCH_201.search(text):
            raise InputError(f"a cell of NAS-Bench-201, which is not in the search space of DARTS. {FORMS}.")
        raise InputError(f"{not_json}there is no genotype in it. {FORMS}.")
    chosen, notes = choose(found, name)
    if chosen.problem:
        raise InputError(chosen.problem)
    genotype, further = conversions.genotype_of(chosen.value)
    if further:
        notes.append(f"these fields are left out: {printable(', '.join(further), 200)}.")
    return GenotypeFile.of(genotype, Provenance()), notes


def _found_in(text: str, content: Any) -> list[Found]:
    """Find all cells in a text, or in the JSON in it."""
    if content is not None:
        return list(conversions.cells_in(content, "", 1))
    found = []
    for item in find_all(text):
        found += [item] if item.problem else conversions.cells_in(item.value, item.name, item.line)
    return found
