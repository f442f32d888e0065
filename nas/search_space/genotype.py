"""Genotype: a pair of discrete cells, derived from alphas, exchanged as JSON or as the text of the DARTS papers."""

import difflib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from nas import files
from nas.errors import InputError, count, first_problem
from nas.search_space import pictures
from nas.search_space import text as text_form
from nas.search_space.space import DERIVED_PRIMITIVES, EDGES_PER_NODE, NUM_INPUTS, PRIMITIVES, edges

FORMAT_VERSION = 1
MAX_NODES = 32
MAX_CANDIDATES = 400

# In a checkout the published cells lie beside the package; an installed package carries them inside.
SHIPPED = next(
    (folder for folder in (Path(__file__).parents[1] / "published", Path(__file__).parents[2] / "genotypes")
     if folder.is_dir()),
    Path(__file__).parents[1] / "published",
)  # fmt: skip


class RawAlphas(Protocol):
    """Anything with raw alphas, shape (edges, primitives): `nas.Alphas` is one."""

    normal: Any
    reduce: Any


def _known_primitive(name: str) -> str:
    if name not in DERIVED_PRIMITIVES:
        raise ValueError(f"unknown primitive {name!r:.40}; known: {', '.join(DERIVED_PRIMITIVES)}.")
    return name


Edge = tuple[Annotated[str, AfterValidator(_known_primitive)], Annotated[int, Field(ge=0)]]


class Genotype(BaseModel):
    """Two discrete cells: immutable, equal by value, hashable.

    Attributes:
        normal: (primitive, source state) of each edge of the normal cell, two a node, nodes in order.
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
        """Lists and ranges, as in the text form, become tuples."""
        if not isinstance(items, list | tuple | range):
            return items
        return tuple(tuple(item) if isinstance(item, list) else item for item in items)

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        for cell in ("normal", "reduce"):
            _check_cell(cell, getattr(self, cell), getattr(self, f"{cell}_concat"))
        return self

    @classmethod
    def derive(cls, alphas: RawAlphas) -> Self:
        """The discrete cells of DARTS, section 2.4.

        Per node the incoming edges are ranked by the largest softmax weight over the primitives other than none, and
        two are kept, each with its strongest primitive other than none. The softmax is over all primitives, none
        included. Of equal weights the first one wins.

        Args:
            alphas: `normal` and `reduce`, each of shape (edges, 8): raw, before the softmax.

        Raises:
            ValueError: the shape is not that of a cell, or a value is not finite.
        """
        rows = {name: _rows(name, getattr(alphas, name)) for name in ("normal", "reduce")}
        return cls.from_edge_weights(**{name: list(map(_softmax, raw)) for name, raw in rows.items()})

    @classmethod
    def from_edge_weights(cls, normal: Sequence[Sequence[float]], reduce: Sequence[Sequence[float]]) -> Self:
        """The same from edge weights, which are the alphas after the softmax.

        Args:
            normal: a row of 8 an edge, in the order of `search_space.edges`.
            reduce: the same for the reduction cell.

        Raises:
            ValueError: no cell has so many edges.
        """
        cells = {"normal": _derive_cell(normal), "reduce": _derive_cell(reduce)}
        concats = {name: tuple(range(NUM_INPUTS, NUM_INPUTS + len(cell) // 2)) for name, cell in cells.items()}
        return cls(
            normal=cells["normal"],
            normal_concat=concats["normal"],
            reduce=cells["reduce"],
            reduce_concat=concats["reduce"],
        )

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> Self:
        """Read a genotype file, or a cell by its name: `genotypes/<name>.json` here, else one that ships with nas.

        Raises:
            InputError: there is no such file or name, or its content is not a genotype; the file and field are named.
        """
        return cls(**GenotypeFile.load(path_or_name).cells())

    def save(self, path: str | os.PathLike, provenance: "Provenance | None" = None) -> None:
        """Write a genotype file, replacing the one at `path` in one step."""
        content = GenotypeFile.of(self, provenance or Provenance())
        files.write_json(Path(path), content.model_dump(exclude_none=True))

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=…, reduce_concat=…)`.

        What is around it, such as `DARTS_V1 =`, is skipped; lists of nodes, positional fields, ranges and numbers as
        numpy prints them are understood (see `genotype_text`). Nothing is run.

        Raises:
            InputError: there is no such text, or more than one, or its cells are not cells.
        """
        try:
            return cls(**text_form.parse(text))
        except ValidationError as error:
            raise InputError(f"genotype text: {first_problem(error)}") from None

    def to_text(self) -> str:
        """The form that papers and repositories exchange; `from_text` reads it back."""
        return text_form.write(self.normal, self.normal_concat, self.reduce, self.reduce_concat)

    def draw(self, folder: str | os.PathLike) -> bool:
        """Write `normal` and `reduce` as .gv, and as .svg and .png where there is Graphviz.

        Returns:
            Whether the pictures were drawn; without Graphviz only the .gv files are (see `draw.HOW_TO_GET_PICTURES`).
        """
        cells = {
            "normal": pictures.cell_source(self.normal, self.normal_concat, "normal"),
            "reduce": pictures.cell_source(self.reduce, self.reduce_concat, "reduction"),
        }
        return pictures.draw_cells(cells, Path(folder))


def _parsed(text: str) -> str:
    Genotype.from_text(text)
    return text


_Count = Annotated[int, Field(ge=0, lt=2**53)]
_Fraction = Annotated[float, Field(ge=0, le=1)]


class Candidate(BaseModel):
    """One of the cells from which an exported one was chosen, as trained shortly with some training images held out.

    Attributes:
        seeds: of the searches that found it.
        random_seeds: of the draws that gave it.
        genotype: its text.
        weights: of the network that was trained.
        multiply_adds: of the same, an image.
        supernet_accuracies: fraction of the upper half, a search.
        holdout_accuracy: fraction of the images held out.
        holdout_loss: of the same.
        holdout_balanced_accuracy: mean over the classes of their fractions; only where each class is drawn as often as
            any other, and cells are chosen by it.
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
        """By which cells are chosen."""
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
            _check_cell(f"{name}.edges", cell.edges, cell.concat, f"{name}.concat")
        return self

    def cells(self) -> dict[str, Any]:
        """The arguments of `Genotype`."""
        return {
            "normal": self.normal.edges,
            "normal_concat": self.normal.concat,
            "reduce": self.reduce.edges,
            "reduce_concat": self.reduce.concat,
        }

    @classmethod
    def of(cls, genotype: Genotype, provenance: Provenance) -> Self:
        """What a file of that genotype holds."""
        return cls(
            format_version=FORMAT_VERSION,
            normal=_Cell(edges=genotype.normal, concat=genotype.normal_concat),
            reduce=_Cell(edges=genotype.reduce, concat=genotype.reduce_concat),
            provenance=provenance,
        )

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> Self:
        """See `Genotype.load`."""
        path = find(path_or_name)
        try:
            return cls.model_validate_json(files.read_json(path, "genotype", FORMAT_VERSION))
        except ValidationError as error:
            raise InputError(f"genotype {path}: {first_problem(error)}") from None


def find(path_or_name: str | os.PathLike) -> Path:
    """The genotype file that a path or a name stands for.

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
        f"genotype {path}: no such file, and no such name; {meant}known names: {', '.join(known_names())}."
    )


def known_names() -> list[str]:
    """The names that `Genotype.load` accepts, sorted."""
    return sorted({path.stem for folder in (Path("genotypes"), SHIPPED) for path in folder.glob("*.json")})


def _rows(name: str, raw: Any) -> list[list[float]]:
    shape = tuple(raw.shape)
    if not any((len(edges(n)), len(PRIMITIVES)) == shape for n in range(1, MAX_NODES + 1)):
        raise ValueError(f"alphas of the {name} cell: shape {shape}, but a cell of n nodes has (n * (n + 3) / 2, 8).")
    alphas: list[list[float]] = raw.tolist()
    if not all(math.isfinite(alpha) for row in alphas for alpha in row):
        raise ValueError(f"alphas of the {name} cell: not all finite.")
    return alphas


def _derive_cell(rows: Sequence[Sequence[float]]) -> tuple[tuple[str, int], ...]:
    num_nodes = next((n for n in range(1, MAX_NODES + 1) if len(edges(n)) == len(rows)), 0)
    weights = dict(zip(edges(num_nodes), map(list, rows), strict=True))
    genes: list[tuple[str, int]] = []
    for node in range(NUM_INPUTS, NUM_INPUTS + num_nodes):
        # none is column 0
        strongest = {source: max(weights[source, node][1:]) for source in range(node)}
        kept = sorted(strongest, key=lambda source: -strongest[source])[:EDGES_PER_NODE]
        for source in kept:
            genes.append((PRIMITIVES[weights[source, node].index(strongest[source], 1)], source))
    return tuple(genes)


def _softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(alpha - max(row)) for alpha in row]
    total = math.fsum(exponentials)  # exact, so the same in any order: equal weights stay equal
    return [exponential / total for exponential in exponentials]


def _check_cell(field: str, genes: Sequence[tuple], concat: Sequence[int], concat_field: str = "") -> None:
    concat_field = concat_field or f"{field}_concat"
    num_nodes, remainder = divmod(len(genes), EDGES_PER_NODE)
    if remainder or not 1 <= num_nodes <= MAX_NODES:
        raise ValueError(
            f"{field}: {count(len(genes), 'edge')}, but a cell has two a node, and 1 to {MAX_NODES} nodes, so an even "
            "number."
        )
    for index, (primitive, source) in enumerate(genes):
        node = index // EDGES_PER_NODE + NUM_INPUTS
        if source >= node:
            raise ValueError(
                f"{field}[{index}]: {primitive} comes from state {source!r:.40}, "
                f"but node {node} takes only earlier states."
            )
    last = NUM_INPUTS + num_nodes - 1
    if not concat or list(concat) != sorted(set(concat)) or concat[0] < NUM_INPUTS or concat[-1] > last:
        raise ValueError(
            f"{concat_field}: {list(concat)!r:.40}, but it must be some of the nodes {NUM_INPUTS} to {last}, rising."
        )
