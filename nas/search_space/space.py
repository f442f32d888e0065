"""A search space as data: the primitives of an edge, the edges of a cell, and which of them a derived cell keeps.

A cell's states are numbered: first its inputs, which are outputs of earlier cells, then its nodes. In the supernet each
node takes one mixed operation from every earlier state. Edges are ordered by node, then by source.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

NONE = "none"  # the primitive that passes nothing on
MAX_NODES = 32

Edges = tuple[tuple[str, int], ...]  # (primitive, source state) of each edge of a derived cell, nodes in order


@dataclass(frozen=True)
class SearchSpace:
    """A search space: what the supernet, derivation, random cells, pictures and sizes need to know of it.

    Attributes:
        primitives: those of a mixed operation, in the order of the columns of the alphas.
        num_inputs: how many of a cell's states are outputs of earlier cells.
        edges_kept: how many incoming edges a node of a derived cell keeps, or all where it has no more.
        cells: the kinds of cell that are searched; each has alphas of its own.
        derives_none: whether an edge of a derived cell may carry "none".
        further_primitives: what published cells carry besides; no supernet has them.
    """

    primitives: tuple[str, ...]
    num_inputs: int
    edges_kept: int
    cells: tuple[str, ...] = ("normal", "reduce")
    derives_none: bool = False
    further_primitives: tuple[str, ...] = ()

    @property
    def derived_primitives(self) -> tuple[str, ...]:
        """The primitives that derivation and random cells choose from."""
        return tuple(name for name in self.primitives if self.derives_none or name != NONE)

    @property
    def known_primitives(self) -> tuple[str, ...]:
        """All primitives that a derived cell may carry, wherever it comes from."""
        return self.derived_primitives + self.further_primitives

    def nodes(self, num_nodes: int) -> range:
        """Return the states that are nodes."""
        return range(self.num_inputs, self.num_inputs + num_nodes)

    def edges(self, num_nodes: int) -> list[tuple[int, int]]:
        """List the (source, node) states of each edge of the supernet's cell: the rows of the alphas, in order."""
        return [(source, node) for node in self.nodes(num_nodes) for source in range(node)]

    def num_nodes(self, num_edges: int) -> int:
        """Return the number of nodes of the supernet's cell that has this many edges.

        Raises:
            ValueError: no cell of 1 to 32 nodes has this many edges.
        """
        for number in range(1, MAX_NODES + 1):
            if len(self.edges(number)) == num_edges:
                return number
        raise ValueError(f"No cell of 1 to {MAX_NODES} nodes has {num_edges} edges.")

    def reduction_cells(self, num_cells: int) -> frozenset[int]:
        """Return the indices of the cells that halve the image and double the channels."""
        return frozenset({num_cells // 3, 2 * num_cells // 3})

    def num_kept(self, node: int) -> int:
        """Return the number of edges that lead to a node of a derived cell."""
        return min(node, self.edges_kept)

    def by_node(self, edges: Sequence[T]) -> list[tuple[int, Sequence[T]]]:
        """List each node of a derived cell with its incoming edges; if edges are missing, the last node has too few."""
        found, first = [], 0
        for node in itertools.count(self.num_inputs):
            if first >= len(edges):
                return found
            found.append((node, edges[first : first + self.num_kept(node)]))
            first += self.num_kept(node)
        raise AssertionError

    def derive(self, edge_weights: Sequence[Sequence[float]]) -> Edges:
        """Derive a cell (DARTS, section 2.4).

        For each node the incoming edges are ranked by their largest weight over the primitives that may be derived.
        The first ones are kept, each with its strongest such primitive. Of equal weights the first one wins.

        Args:
            edge_weights: one row for each edge, one column for each primitive: the alphas after the softmax.

        Raises:
            ValueError: no cell has these edges, or a row has another number of primitives.
        """
        edges = self.edges(self.num_nodes(len(edge_weights)))
        if any(len(row) != len(self.primitives) for row in edge_weights):
            raise ValueError(f"A row of edge weights must have {len(self.primitives)} columns.")
        rows = dict(zip(edges, edge_weights, strict=True))
        columns = [self.primitives.index(name) for name in self.derived_primitives]
        cell = []
        for node in sorted({node for _, node in edges}):
            strongest = [max(columns, key=rows[source, node].__getitem__) for source in range(node)]
            ranked = sorted(range(node), key=lambda source: -rows[source, node][strongest[source]])
            cell += [(self.primitives[strongest[source]], source) for source in ranked[: self.num_kept(node)]]
        return tuple(cell)

    def random_cells(self, seed: int, num_nodes: int) -> dict[str, Edges]:
        """Draw one cell of each kind uniformly from the derived cells of this many nodes.

        For each node, every set of distinct earlier states is equally likely; for each edge, so is every primitive that
        may be derived. All draws are independent. Cells are drawn in the order of `cells`, nodes in order, and a node's
        edges by rising source.

        Args:
            seed: seed of a generator of its own. Only its `random()` is used, which Python keeps the same between
                versions.
            num_nodes: nodes of each cell.
        """
        draw = random.Random(seed).random

        def choose(items: Sequence[T]) -> T:
            return items[int(draw() * len(items))]

        def cell() -> Edges:
            sources = (choose([*itertools.combinations(range(n), self.num_kept(n))]) for n in self.nodes(num_nodes))
            return tuple((choose(self.derived_primitives), source) for chosen in sources for source in chosen)

        return {kind: cell() for kind in self.cells}
