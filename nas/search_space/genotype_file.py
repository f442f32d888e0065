"""The content of a genotype file: cells, checked, and where they come from; and where such files are."""

import difflib
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    create_model,
    model_validator,
)

from nas import files
from nas.errors import InputError, first_problem
from nas.search_space import text as text_form
from nas.search_space.darts import DARTS
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.search_space.space import Edges, SearchSpace, Truth

FORMAT_VERSION = 1
MAX_CANDIDATES = 400

# In a checkout the published cells lie beside the package; an installed package carries them inside.
_INSTALLED, _CHECKOUT = (Path(__file__).parents[up] / name for up, name in ((1, "published"), (2, "genotypes")))
SHIPPED = _CHECKOUT if _CHECKOUT.is_dir() and not _INSTALLED.is_dir() else _INSTALLED

SPACES: dict[str, SearchSpace] = {space.name: space for space in (DARTS, NAS_BENCH_201)}


def _tuple_of_tuples(items: Any) -> Any:
    """Turn lists and ranges, as in the text form, into tuples."""
    if not isinstance(items, list | tuple | range):
        return items
    return tuple(tuple(item) if isinstance(item, list) else item for item in items)


def _edges_type(space: SearchSpace) -> Any:
    """Return the type of a cell's edges, each a primitive and a source state."""

    def known(name: str) -> str:
        if name not in space.known_primitives:
            raise ValueError(f"unknown primitive {name!r:.40}; known: {', '.join(space.known_primitives)}.")
        return name

    return tuple[tuple[Annotated[str, AfterValidator(known)], Annotated[int, Field(ge=0)]], ...]


_STRICT = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Fields(BaseModel):
    """The fields of `Cells`: for each kind of cell of a space its edges, and the nodes that it returns."""

    model_config = _STRICT
    space: ClassVar[SearchSpace]

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        for kind in self.space.cells:
            self.space.check_cell(kind, getattr(self, kind), f"{kind}_concat", getattr(self, f"{kind}_concat"))
        return self


@functools.cache
def _fields_of(space: SearchSpace) -> type[_Fields]:
    fields: dict[str, Any] = {}
    for kind in space.cells:
        edges = _edges_type(space)
        fields[kind] = (Annotated[edges, BeforeValidator(_tuple_of_tuples)], ...)
        # Where all cells have the same nodes it says nothing.
        concat = space.outputs(space.num_nodes) if len(space.node_counts) == 1 else ...
        fields[f"{kind}_concat"] = (Annotated[tuple[int, ...], BeforeValidator(_tuple_of_tuples)], concat)
    model = create_model("Genotype", __base__=_Fields, **fields)
    model.space = space
    return model


class Cells(BaseModel):
    """The discrete cells of a genotype, checked: immutable, equal by value, hashable.

    Args:
        space: the search space of the cells.
        fields: for each kind of cell in the space, (primitive, source state) of each edge, nodes in order; and, as
            `normal_concat` for the kind "normal", the nodes whose concatenation is the cell's output.

    Raises:
        ValidationError: these are no cells of the space; the field is named.
    """

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    _space: SearchSpace = PrivateAttr(DARTS)

    if TYPE_CHECKING:  # the fields are those of the space

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, space: SearchSpace = DARTS, **fields: Any):
        super().__init__(**dict(_fields_of(space).model_validate(fields)))
        self._space = space

    def __hash__(self) -> int:
        return hash((self._space, *((self.edges(kind), self.concat(kind)) for kind in self._space.cells)))

    @property
    def space(self) -> SearchSpace:
        """The space of the cells."""
        return self._space

    def edges(self, kind: str) -> Edges:
        """Return (primitive, source state) of each edge of a kind of cell."""
        return getattr(self, kind)

    def concat(self, kind: str) -> tuple[int, ...]:
        """Return the nodes that a kind of cell returns."""
        return getattr(self, f"{kind}_concat")

    def to_text(self) -> str:
        """Return the form that papers and repositories exchange; `from_text` reads it back."""
        cells = {kind: (self.edges(kind), self.concat(kind)) for kind in self.space.cells}
        return self.space.write_text(cells) or text_form.write(cells)

    def truth(self) -> Truth | None:
        """Look up how good the cells are; None if nobody has trained all cells of the space."""
        return self.space.truth({kind: self.edges(kind) for kind in self.space.cells})

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=…, reduce_concat=…)`.

        What is around it, such as `DARTS_V1 =`, is skipped; lists of nodes, positional fields, ranges and numbers as
        numpy prints them are understood (see `nas.search_space.text`). Nothing is run. So is the text form of another
        search space, such as `|nor_conv_3x3~0|+…` of NAS-Bench-201.

        Raises:
            InputError: there is no such text, or more than one, or its cells are not cells.
        """
        own = texts_of_spaces(text)
        if len(own) > 1:
            raise InputError(f"genotype text: {len(own)} genotypes.")
        try:
            return cls(**(own[0][1] if own else text_form.parse(text)))
        except ValidationError as error:
            raise InputError(f"genotype text: {first_problem(error)}") from None


def texts_of_spaces(text: str) -> list[tuple[int, dict[str, Any]]]:
    """List the cells in the text forms of single spaces: where each begins, and the arguments of `Genotype`.

    Raises:
        InputError: there are too many.
    """
    found = []
    for space in SPACES.values():
        for start, fields in space.find_texts(text):
            found.append((start, {"space": space, **fields}))
            if len(found) > text_form.MAX_GENOTYPES:
                raise InputError(f"more than {text_form.MAX_GENOTYPES:,} genotypes.")
    return found


def _parsed(text: str) -> str:
    Cells.from_text(text)
    return text


_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Seeds = Annotated[tuple[_Count, ...], Field(max_length=MAX_CANDIDATES)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class Candidate(BaseModel):
    """One of the cells from which an exported cell was chosen, trained for a short time with held-out images.

    Attributes:
        seeds: seeds of the searches that found it.
        runner_up_seeds, random_seeds: those to whose searches it was not the likeliest cell; those that drew it.
        names: how --candidates gave it.
        genotype: its text.
        weights, multiply_adds: of the network that was trained; multiply-adds per image.
        supernet_accuracies: for each search, the fraction of the upper half that the supernet classified correctly.
        holdout_accuracy: fraction of the held-out images that the network classified correctly.
        holdout_loss: cross entropy on the held-out images.
        holdout_balanced_accuracy: mean of the accuracies of the classes; set only if cells are chosen by it.
        epochs: of its training.
        scores: the accuracy by which cells are chosen, after each training; the figures above are means over these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    seeds: _Seeds
    runner_up_seeds: _Seeds = ()
    random_seeds: _Seeds
    names: Annotated[tuple[Annotated[str, Field(max_length=100)], ...], Field(max_length=MAX_CANDIDATES)] = ()
    genotype: Annotated[str, Field(max_length=10_000), AfterValidator(_parsed)]
    weights: _Count
    multiply_adds: _Count
    supernet_accuracies: Annotated[tuple[_Fraction, ...], Field(max_length=MAX_CANDIDATES)]
    holdout_accuracy: _Fraction
    holdout_loss: Annotated[float, Field(ge=0)]
    holdout_balanced_accuracy: _Fraction | None = None
    epochs: _Count = 0  # 0: not known
    scores: Annotated[tuple[_Fraction, ...], Field(max_length=MAX_CANDIDATES)] = ()

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


def _known_space(name: str) -> str:
    if name not in SPACES:
        raise ValueError(f"unknown search space {name!r:.40}; known: {', '.join(SPACES)}.")
    return name


class GenotypeFile(BaseModel):
    """The content of a genotype file: the cells, one field for each kind, and where they come from.

    A file without `space` is of the search space of DARTS.
    """

    model_config = _STRICT

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)]  # Literal[1] would let True and 1.0 in
    space: Annotated[str, AfterValidator(_known_space)] = DARTS.name
    provenance: Provenance = Provenance()

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        space = SPACES[self.space]
        for kind in space.cells:
            cell = getattr(self, kind)
            space.check_cell(f"{kind}.edges", cell.edges, f"{kind}.concat", cell.concat)
        return self

    def cells(self) -> dict[str, Any]:
        """Return the arguments of `Genotype`."""
        space = SPACES[self.space]
        cells = {kind: getattr(self, kind) for kind in space.cells}
        concats = {f"{kind}_concat": cell.concat for kind, cell in cells.items()}
        return {"space": space, **{kind: cell.edges for kind, cell in cells.items()}, **concats}

    def content(self) -> dict[str, Any]:
        """Return what the file holds: the space if it is not that of DARTS, the cells, and where they come from."""
        content = self.model_dump(exclude_none=True)
        provenance = content.pop("provenance")
        if self.space == DARTS.name:
            del content["space"]
        return content | {"provenance": provenance}

    @classmethod
    def of(cls, genotype: Cells, provenance: Provenance) -> "GenotypeFile":
        """Make the content of a file for a genotype."""
        space = genotype.space
        cells = {kind: {"edges": genotype.edges(kind), "concat": genotype.concat(kind)} for kind in space.cells}
        kind_of_file = _file_of(space.name)
        return kind_of_file(format_version=FORMAT_VERSION, space=space.name, provenance=provenance, **cells)

    @classmethod
    def parse(cls, text: str | bytes) -> "GenotypeFile":
        """Read the content of a file.

        Raises:
            ValidationError: it is JSON, but no genotype; the field is named.
        """
        content = json.loads(text)
        name = content.get("space") if isinstance(content, dict) else None
        return _file_of(name if isinstance(name, str) and name in SPACES else DARTS.name).model_validate_json(text)

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> "GenotypeFile":
        """Read a genotype file by its path or name, as `Genotype.load` does."""
        path = find(path_or_name)
        try:
            return cls.parse(files.read_json(path, "genotype", FORMAT_VERSION))
        except ValidationError as error:
            raise InputError(f"genotype {path}: {first_problem(error)}") from None

    def save(self, path: str | os.PathLike) -> None:
        """Write the file, replacing the one at `path` in one step."""
        files.write_json(Path(path), self.content())


@functools.cache
def _file_of(space: str) -> type[GenotypeFile]:
    """Return the form of a genotype file of a space, which has one field for each kind of cell."""
    cell = create_model(
        "Cell", __config__=_STRICT, edges=(_edges_type(SPACES[space]), ...), concat=(tuple[int, ...], ...)
    )
    fields: dict[str, Any] = dict.fromkeys(SPACES[space].cells, (cell, ...))
    return create_model("GenotypeFile", __base__=GenotypeFile, **fields)


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
