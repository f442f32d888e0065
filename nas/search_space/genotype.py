"""Genotype: a pair of discrete cells, derived from alphas, exchanged as JSON or as the text of the DARTS papers."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import ValidationError

from nas.errors import InputError, first_problem
from nas.search_space import text as text_form
from nas.search_space.darts import DARTS
from nas.search_space.genotype_file import Cells, GenotypeFile, Provenance
from nas.search_space.space import MAX_NODES, Edges, SearchSpace


class RawAlphas(Protocol):
    """Anything with raw alphas, shape (edges, primitives): `nas.Alphas` is one."""

    normal: Any
    reduce: Any


class Genotype(Cells):
    """Two discrete cells: immutable, equal by value, hashable.

    Attributes:
        normal: (primitive, source state) of each edge of the normal cell, two for each node, nodes in order.
        normal_concat: the nodes whose concatenation is the normal cell's output.
        reduce: the same for the reduction cell.
        reduce_concat: the same for the reduction cell.
    """

    @classmethod
    def derive(cls, alphas: RawAlphas, space: SearchSpace = DARTS) -> Self:
        """Derive the discrete cells (DARTS, section 2.4; see `SearchSpace.derive`).

        The softmax is over all primitives, none included.

        Args:
            alphas: `normal` and `reduce`, each of shape (edges, primitives): raw, before the softmax.
            space: the search space of the alphas.

        Raises:
            ValueError: the shape is not that of a cell, or a value is not finite.
        """
        rows = {kind: _rows(kind, getattr(alphas, kind), space) for kind in space.cells}
        return cls._of_cells({kind: space.derive(list(map(_softmax, raw))) for kind, raw in rows.items()}, space)

    @classmethod
    def from_edge_weights(
        cls, normal: Sequence[Sequence[float]], reduce: Sequence[Sequence[float]], space: SearchSpace = DARTS
    ) -> Self:
        """Derive the discrete cells from edge weights, which are the alphas after the softmax.

        Args:
            normal: one row for each edge, in the order of `space.edges`, and one column for each primitive.
            reduce: the same for the reduction cell.
            space: the search space of the edge weights.

        Raises:
            ValueError: no cell has this many edges, or a row has another number of primitives.
        """
        return cls._of_cells({"normal": space.derive(normal), "reduce": space.derive(reduce)}, space)

    @classmethod
    def random(cls, seed: int, num_nodes: int = 4, space: SearchSpace = DARTS) -> Self:
        """Draw both cells uniformly from the derived cells of this many nodes (see `SearchSpace.random_cells`)."""
        return cls._of_cells(space.random_cells(seed, num_nodes), space)

    @classmethod
    def _of_cells(cls, cells: Mapping[str, Edges], space: SearchSpace) -> Self:
        """Make the genotype of cells that concatenate all their nodes."""
        concats = {f"{kind}_concat": tuple(node for node, _ in space.by_node(cells[kind])) for kind in space.cells}
        return cls.model_validate({**cells, **concats})

    @classmethod
    def load(cls, path_or_name: str | os.PathLike) -> Self:
        """Read a genotype file, or a cell by its name: `genotypes/<name>.json` here, else one that ships with nas.

        Raises:
            InputError: there is no such file or name, or its content is not a genotype; the file and field are named.
        """
        return cls(**GenotypeFile.load(path_or_name).cells())

    def save(self, path: str | os.PathLike, provenance: Provenance | None = None) -> None:
        """Write a genotype file, replacing the one at `path` in one step."""
        GenotypeFile.of(self, provenance or Provenance()).save(path)

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Parse `Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=…, reduce_concat=…)`.

        What is around it, such as `DARTS_V1 =`, is skipped; lists of nodes, positional fields, ranges and numbers as
        numpy prints them are understood (see `nas.search_space.text`). Nothing is run.

        Raises:
            InputError: there is no such text, or more than one, or its cells are not cells.
        """
        try:
            return cls(**text_form.parse(text))
        except ValidationError as error:
            raise InputError(f"genotype text: {first_problem(error)}") from None

    def to_text(self) -> str:
        """Return the form that papers and repositories exchange; `from_text` reads it back."""
        return text_form.write(self.normal, self.normal_concat, self.reduce, self.reduce_concat)

    def draw(self, folder: str | os.PathLike) -> bool:
        """Write `normal` and `reduce` as .gv, and as .svg and .png if Graphviz is installed.

        Returns:
            Whether the pictures were drawn. Without Graphviz only the .gv files are written (see
            `pictures.HOW_TO_GET_PICTURES`).
        """
        from nas.search_space import pictures  # here, as it takes a while

        cells = {
            "normal": pictures.cell_source(self.normal, self.normal_concat, "normal"),
            "reduce": pictures.cell_source(self.reduce, self.reduce_concat, "reduction"),
        }
        return pictures.draw_cells(cells, Path(folder))


def _rows(kind: str, raw: Any, space: SearchSpace) -> list[list[float]]:
    """Return the raw alphas of one cell as plain numbers."""
    shape, num_primitives = tuple(raw.shape), len(space.primitives)
    if not any((len(space.edges(number)), num_primitives) == shape for number in range(1, MAX_NODES + 1)):
        raise ValueError(
            f"alphas of the {kind} cell: shape {shape}, but it must be (edges, {num_primitives}), with the edges of "
            f"1 to {MAX_NODES} nodes."
        )
    alphas: list[list[float]] = raw.tolist()
    if not all(math.isfinite(alpha) for row in alphas for alpha in row):
        raise ValueError(f"alphas of the {kind} cell: not all are finite.")
    return alphas


def _softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(alpha - max(row)) for alpha in row]
    total = math.fsum(exponentials)  # exact, so the same in any order: equal weights stay equal
    return [exponential / total for exponential in exponentials]
