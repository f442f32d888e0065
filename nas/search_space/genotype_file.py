"""The content of a genotype file: cells, checked, and where they come from; and where such files are."""

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nas import files
from nas.errors import InputError, count, first_problem
from nas.search_space import text as text_form
from nas.search_space.darts import DARTS
from nas.search_space.space import MAX_NODES, SearchSpace

FORMAT_VERSION = 1
MAX_CANDIDATES = 400

# In a checkout the published cells lie beside the package; an installed package carries them inside.
SHIPPED = next(
    (folder for folder in (Path(__file__).parents[1] / "published", Path(__file__).parents[2] / "genotypes")
     if folder.is_dir()),
    Path(__file__).parents[1] / "published",
)  # fmt: skip


def _known_primitive(name: str) -> str:
    if name not in DARTS.known_primitives:
        raise ValueError(f"unknown primitive {name!r:.40}; known: {', '.join(DARTS.known_primitives)}.")
    return name


Edge = tuple[Annotated[str, AfterValidator(_known_primitive)], Annotated[int, Field(ge=0)]]


class Cells(BaseModel):
    """Two discrete cells, checked.

    Attributes:
        normal: (primitive, source state) of each edge of the normal cell, two for each node, nodes in order.
        normal_concat: the nodes whose concatenation is the normal cell's output.
        reduce: the same for the reduction cell.
        reduce_concat: the same for the reduction cell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    normal: tuple[Edge, ...]
    normal_concat: tuple[int, ...]
    reduce: tuple[Edge, ...]
    reduce_concat: tuple[int, ...]

    @field_validator("*", mode="before")
    @classmethod
    def _to_tuples(cls, items: Any) -> Any:
        """Turn lists and ranges, as in the text form, into tuples."""
        if not isinstance(items, list | tuple | range):
            return items
        return tuple(tuple(item) if isinstance(item, list) else item for item in items)

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        for cell in ("normal", "reduce"):
            check_cell(cell, getattr(self, cell), f"{cell}_concat", getattr(self, f"{cell}_concat"))
        return self


def check_cell(
    field: str, edges: Sequence[tuple[str, int]], concat_field: str, concat: Sequence[int], space: SearchSpace = DARTS
) -> None:
    """Raise ValueError if these edges and outputs are not those of a cell; the field is named."""
    nodes = space.by_node(edges)
    if not 1 <= len(nodes) <= MAX_NODES or len(nodes[-1][1]) != space.num_kept(nodes[-1][0]):
        raise ValueError(
            f"{field}: {count(len(edges), 'edge')}, but a cell has 1 to {MAX_NODES} nodes with "
            f"{count(space.edges_kept, 'edge')} each."
        )
    index = 0
    for node, incoming in nodes:
        for primitive, source in incoming:
            if source >= node:
                raise ValueError(
                    f"{field}[{index}]: {primitive} comes from state {source!r:.40}, "
                    f"but node {node} takes only earlier states."
                )
            index += 1
    first, last = nodes[0][0], nodes[-1][0]
    if not concat or list(concat) != sorted(set(concat)) or concat[0] < first or concat[-1] > last:
        raise ValueError(
            f"{concat_field}: {list(concat)!r:.40}, but it must be some of the nodes {first} to {last}, rising."
        )


def _parsed(text: str) -> str:
    Cells(**text_form.parse(text))
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
    def of(cls, genotype: Cells, provenance: Provenance) -> Self:
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
