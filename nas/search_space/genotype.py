"""Genotype: discrete cells, derived from alphas or drawn at random, exchanged as JSON or as text."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from nas.search_space.darts import DARTS
from nas.search_space.genotype_file import SPACES, Cells, GenotypeFile, Provenance
from nas.search_space.space import Edges, SearchSpace


class Genotype(Cells):
    """Discrete cells of a search space: immutable, equal by value, hashable.

    A pair of cells in the search space of DARTS, which has these attributes; `edges` and `concat` return the same for a
    kind of cell in any space.

    Attributes:
        normal: (primitive, source state) of each edge of the normal cell, two for each node, nodes in order.
        normal_concat: the nodes whose concatenation is the normal cell's output.
        reduce: the same for the reduction cell.
        reduce_concat: the same for the reduction cell.
    """

    @classmethod
    def derive(cls, alphas: Any, space: SearchSpace = DARTS) -> Self:
        """Derive the discrete cells (DARTS, section 2.4; see `SearchSpace.derive`).

        The softmax is over all primitives, none included.

        Args:
            alphas: has an attribute for each kind of cell (`nas.Alphas` is one), of shape (edges, primitives): raw,
                before the softmax.
            space: the search space of the alphas.

        Raises:
            ValueError: the shape is not that of a cell, or a value is not finite.
        """
        rows = {kind: _rows(kind, getattr(alphas, kind), space) for kind in space.cells}
        return cls._of_cells({kind: space.derive(list(map(_softmax, raw))) for kind, raw in rows.items()}, space)

    @classmethod
    def from_edge_weights(cls, *weights: Sequence[Sequence[float]], space: SearchSpace = DARTS) -> Self:
        """Derive the discrete cells from edge weights, which are the alphas after the softmax.

        Args:
            weights: for each kind of cell, as `normal, reduce`: one row for each edge, in the order of `space.edges`,
                and one column for each primitive.
            space: the search space of the edge weights.

        Raises:
            ValueError: no cell has this many edges, or a row has another number of primitives.
        """
        return cls._of_cells(dict(zip(space.cells, map(space.derive, weights), strict=True)), space)

    @classmethod
    def random(cls, seed: int, num_nodes: int | None = None, space: SearchSpace = DARTS) -> Self:
        """Draw the cells uniformly from the derived cells of this many nodes (see `SearchSpace.random_cells`)."""
        return cls._of_cells(space.random_cells(seed, num_nodes or space.num_nodes), space)

    @classmethod
    def _of_cells(cls, cells: Mapping[str, Edges], space: SearchSpace) -> Self:
        """Make the genotype of cells that return what cells of the space return by default."""
        concats = {f"{kind}_concat": space.outputs(len(space.by_node(cells[kind]))) for kind in space.cells}
        return cls(space=SPACES.get(space.name, space), **cells, **concats)  # whichever primitives were searched

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

    def draw(self, folder: str | os.PathLike) -> bool:
        """Write each cell as .gv, and as .svg and .png if Graphviz is installed; the file is named by its kind.

        Returns:
            Whether the pictures were drawn. Without Graphviz only the .gv files are written (see
            `pictures.HOW_TO_GET_PICTURES`).
        """
        from nas.search_space import pictures  # here, as it takes a while

        return pictures.draw_cells(self.sources(), Path(folder))

    def sources(self) -> dict[str, str]:
        """Return the Graphviz source of each cell by its kind."""
        from nas.search_space import pictures

        return {
            kind: pictures.cell_source(self.edges(kind), self.concat(kind), title, self.space)
            for kind, title in zip(self.space.cells, self.space.titles, strict=True)
        }


def _rows(kind: str, raw: Any, space: SearchSpace) -> list[list[float]]:
    """Return the raw alphas of one cell as plain numbers."""
    shape, num_primitives = tuple(raw.shape), len(space.primitives)
    if not any((len(space.edges(number)), num_primitives) == shape for number in space.node_counts):
        raise ValueError(
            f"alphas of the {kind} cell: shape {shape}, but it must be (edges, {num_primitives}), with the edges of "
            f"{space.nodes_in_words}."
        )
    alphas: list[list[float]] = raw.tolist()
    if not all(math.isfinite(alpha) for row in alphas for alpha in row):
        raise ValueError(f"alphas of the {kind} cell: not all are finite.")
    return alphas


def _softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(alpha - max(row)) for alpha in row]
    total = math.fsum(exponentials)  # exact, so the same in any order: equal weights stay equal
    return [exponential / total for exponential in exponentials]
