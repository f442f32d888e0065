"""A search space as data: the primitives of an edge, the edges of a cell, and which of them a derived cell keeps.

A cell's states are numbered: first its inputs, which are outputs of earlier cells, then its nodes. In the supernet each
node takes one mixed operation from every earlier state. Edges are ordered by node, then by source.
"""

import dataclasses
import heapq
import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple, TypeVar

from nas.errors import count

T = TypeVar("T")

OWN_PRIMITIVES: list[str] = []  # names of those that were registered: every space may have them
NONE = "none"  # the primitive that passes nothing on
RESIDUAL_BLOCK = "residual block"  # the layer that halves the image where no cell does
SKIP = "skip_connect"
MAX_NODES = 32

Edges = tuple[tuple[str, int], ...]  # (primitive, source state) of each edge of a derived cell, nodes in order


class Truth(NamedTuple):
    """How good a cell is, in a space of which all cells were trained.

    Attributes:
        test: test accuracy on each data set; the first one is the one by which cells are ranked.
        validation: the same of the validation images.
        rank: 1 for the best cell: one more than the number of cells with a higher test accuracy.
        num_cells: the number of cells in the space.
        regret: by how much the test accuracy of the best cell is higher.
    """

    test: Mapping[str, float]
    validation: Mapping[str, float]
    rank: int
    num_cells: int
    regret: float

    def __str__(self) -> str:
        accuracies = ", ".join(f"{accuracy:.2%} on {name}" for name, accuracy in self.test.items())
        return (
            f"true test accuracy {accuracies}; rank {self.rank:,} of {self.num_cells:,}, "
            f"regret {100 * self.regret:.2f} points"
        )

    def scalars(self) -> dict[str, float]:
        """Return it as scalars of a run."""
        values = (*self.test.values(), float(self.rank), self.regret)
        return dict(zip(truth_names(tuple(self.test)), values, strict=True))


def truth_names(datasets: Sequence[str]) -> list[str]:
    """Return the names of the scalars of a `Truth`."""
    return [*(f"truth/{name.lower()}_test_accuracy" for name in datasets), "truth/rank", "truth/regret"]


@dataclass(frozen=True)
class SearchSpace:
    """A search space: what the supernet, derivation, random cells, pictures and sizes need to know of it.

    Attributes:
        primitives: those of a mixed operation, in the order of the columns of the alphas.
        num_inputs: how many of a cell's states are outputs of earlier cells.
        edges_kept: how many incoming edges a node of a derived cell keeps, or all where it has no more; with MAX_NODES
            all of them, by rising source.
        cells: the kinds of cell that are searched; each has alphas of its own.
        derives_none: whether an edge of a derived cell may carry "none".
        max_skip_connections: how many skip connections a derived cell may have; None for any number.
        further_primitives: what published cells carry besides; no supernet has them.
        name: what --space calls it.
        titles: what people call each kind of cell.
        halving: the layers that halve the image and double the channels (see `layers`).
        node_counts: how many nodes a cell may have.
        num_nodes: how many it has by default.
        returns_all_nodes: whether a cell returns all nodes, concatenated; otherwise the last one.
        preprocesses: whether a cell brings its inputs to its own channels.
        stem_factor: channels of the stem "cifar", as a multiple of those of the first cell.
        norm_before_pool: whether a batch norm and a ReLU come before the global pooling.
        auxiliary_head: whether the final network has an auxiliary head in training.
        supernet_forms: the entry of `PRIMITIVES` for a primitive, where it is not its name in the supernet.
        per: what --num-cells counts the cells of, if not of the network: " per stage".
        supernet, final_network: sizes as published: channels of the first cell, and --num-cells.
    """

    primitives: tuple[str, ...]
    num_inputs: int
    edges_kept: int
    cells: tuple[str, ...] = ("normal", "reduce")
    derives_none: bool = False
    further_primitives: tuple[str, ...] = ()
    max_skip_connections: int | None = None
    name: str = ""
    titles: tuple[str, ...] = ("normal cell", "reduction cell")
    halving: tuple[str, ...] = ("reduce",)
    node_counts: range = range(1, MAX_NODES + 1)
    num_nodes: int = 4
    returns_all_nodes: bool = True
    preprocesses: bool = True
    stem_factor: int = 3
    norm_before_pool: bool = False
    auxiliary_head: bool = True
    supernet_forms: Mapping[str, str] = field(default_factory=dict, hash=False)
    per: str = ""
    supernet: tuple[int, int] = (16, 8)
    final_network: tuple[int, int] = (36, 20)

    @property
    def derived_primitives(self) -> tuple[str, ...]:
        """The primitives that derivation and random cells choose from."""
        return tuple(name for name in self.primitives if self.derives_none or name != NONE)

    @property
    def known_primitives(self) -> tuple[str, ...]:
        """All primitives that a derived cell may carry, wherever it comes from."""
        return tuple(dict.fromkeys((*self.derived_primitives, *self.further_primitives, *OWN_PRIMITIVES)))

    @property
    def keeps_all(self) -> bool:
        """Whether each node of a derived cell keeps all its edges."""
        return self.edges_kept >= MAX_NODES

    def with_primitives(self, names: Sequence[str]) -> "SearchSpace":
        """Return the space in which an edge carries one of these primitives, in the order of this space.

        Raises:
            ValueError: there is no such primitive, one is named twice, or nothing is left to derive.
        """
        known = tuple(dict.fromkeys((*self.primitives, *self.known_primitives)))
        if unknown := [name for name in names if name not in known]:
            raise ValueError(f"no primitive {unknown[0]!r:.40} in the space {self.name}; known: {', '.join(known)}.")
        if len({*names}) < len(names) or not {*names} - {NONE}:
            raise ValueError("each primitive must be named once, and one besides none.")
        return dataclasses.replace(self, primitives=tuple(sorted(names, key=known.index)))

    def nodes(self, num_nodes: int) -> range:
        """Return the states that are nodes."""
        return range(self.num_inputs, self.num_inputs + num_nodes)

    def edges(self, num_nodes: int) -> list[tuple[int, int]]:
        """List the (source, node) states of each edge of the supernet's cell: the rows of the alphas, in order."""
        return [(source, node) for node in self.nodes(num_nodes) for source in range(node)]

    def nodes_of(self, num_edges: int) -> int:
        """Return the number of nodes of the supernet's cell that has this many edges.

        Raises:
            ValueError: no cell of this space has this many edges.
        """
        for number in self.node_counts:
            if len(self.edges(number)) == num_edges:
                return number
        raise ValueError(f"No cell of {self.nodes_in_words} has {num_edges} edges.")

    @property
    def nodes_in_words(self) -> str:
        """The number of nodes that a cell may have, such as "1 to 32 nodes"."""
        first, last = self.node_counts[0], self.node_counts[-1]
        return f"{first} to {last} nodes" if first < last else f"{last} nodes"

    @property
    def final_network_in_words(self) -> str:
        """The published size of the final network, such as "36 channels, 20 cells"."""
        channels, num_cells = self.final_network
        return f"{channels} channels, {num_cells} cells{self.per}"

    def num_decisions(self, num_nodes: int) -> int:
        """Return how many decisions lead to a derived cell of each kind: one for each edge, and each node that keeps
        some of its edges."""
        choosing = [node for node in self.nodes(num_nodes) if node > self.edges_kept]
        return len(self.cells) * (len(self.edges(num_nodes)) + len(choosing))

    def outputs(self, num_nodes: int) -> tuple[int, ...]:
        """Return the nodes that a derived cell of this many nodes returns."""
        nodes = self.nodes(num_nodes)
        return tuple(nodes) if self.returns_all_nodes else (nodes[-1],)

    def layers(self, num_cells: int) -> list[str]:
        """List the layers between stem and classifier, in order: kinds of cell, and `RESIDUAL_BLOCK`."""
        reductions = self.reduction_cells(num_cells)
        return ["reduce" if index in reductions else "normal" for index in range(num_cells)]

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
        The first ones are kept, each with its strongest such primitive. Of equal weights the first one wins. While a
        cell has more skip connections than allowed, the weakest of them is ruled out and the cell derived again, as in
        P-DARTS (Chen et al., ICCV 2019, section 3.3).

        Args:
            edge_weights: one row for each edge, one column for each primitive: the alphas after the softmax.

        Raises:
            ValueError: no cell has these edges, or a row has another number of primitives.
        """
        edges = self.edges(self.nodes_of(len(edge_weights)))
        if any(len(row) != len(self.primitives) for row in edge_weights):
            raise ValueError(f"A row of edge weights must have {len(self.primitives)} columns.")
        rows = {edge: list(row) for edge, row in zip(edges, edge_weights, strict=True)}
        derived = self._derive(rows)
        skips = [edge for edge, primitive in derived.items() if primitive == SKIP]
        while self.max_skip_connections is not None and len(skips) > self.max_skip_connections:
            column = self.primitives.index(SKIP)
            rows[min(skips, key=lambda edge: rows[edge][column])][column] = -1.0
            derived = self._derive(rows)
            skips = [edge for edge, primitive in derived.items() if primitive == SKIP]
        return tuple((primitive, source) for (source, _), primitive in derived.items())

    def _derive(self, rows: Mapping[tuple[int, int], Sequence[float]]) -> dict[tuple[int, int], str]:
        """Return the primitive of each (source, node) that is kept, nodes in order."""
        columns = [self.primitives.index(name) for name in self.derived_primitives]
        cell = {}
        for node in sorted({node for _, node in rows}):
            strongest = [max(columns, key=rows[source, node].__getitem__) for source in range(node)]
            ranked = list(range(node))
            if not self.keeps_all:
                ranked.sort(key=lambda source: -rows[source, node][strongest[source]])
            for source in ranked[: self.num_kept(node)]:
                cell[source, node] = self.primitives[strongest[source]]
        return cell

    def likeliest(self, edge_weights: Mapping[str, Sequence[Sequence[float]]], number: int) -> list[dict[str, Edges]]:
        """Return the cells with the largest products of the edge weights that they keep; those of `derive` come first.

        `edge_weights` has, for each kind of cell, one row for each edge, one column for each primitive.
        """
        found: list[tuple[float, dict[str, Edges]]] = [(0.0, dict.fromkeys(self.cells, ()))]
        for kind, rows in edge_weights.items():
            edges = self.edges(self.nodes_of(len(rows)))
            logs_of = ([math.log(max(weight, 1e-300)) for weight in row] for row in rows)
            logs = dict(zip(edges, logs_of, strict=True))
            for node in sorted({node for _, node in edges}):
                ways = heapq.nlargest(number, self._ways_into(node, logs), key=itemgetter(0))
                longer = ((old + new, cells | {kind: cells[kind] + way}) for old, cells in found for new, way in ways)
                found = heapq.nlargest(number, longer, key=itemgetter(0))
        return [cells for _, cells in found]

    def _ways_into(self, node: int, logs: Mapping[tuple[int, int], Sequence[float]]) -> Iterator[tuple[float, Edges]]:
        """Yield what a node may keep, the stronger edge first, with the sum of the logarithms of its edge weights."""
        columns = [self.primitives.index(name) for name in self.derived_primitives]
        for sources in itertools.combinations(range(node), self.num_kept(node)):
            for chosen in itertools.product(columns, repeat=len(sources)):
                pairs = zip(sources, chosen, strict=True)
                kept = [(logs[source, node][column], source, column) for source, column in pairs]
                if not self.keeps_all:
                    kept.sort(key=lambda edge: -edge[0])
                edges = tuple((self.primitives[column], source) for _, source, column in kept)
                yield sum(log for log, _, _ in kept), edges

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

    def check_cell(
        self, field: str, edges: Sequence[tuple[str, int]], concat_field: str, concat: Sequence[int]
    ) -> None:
        """Raise ValueError if these edges and outputs are not those of a cell; the field is named."""
        nodes = self.by_node(edges)
        if len(nodes) not in self.node_counts or len(nodes[-1][1]) != self.num_kept(nodes[-1][0]):
            which = "an edge from every earlier state" if self.keeps_all else f"{count(self.edges_kept, 'edge')} each"
            raise ValueError(
                f"{field}: {count(len(edges), 'edge')}, but a cell has {self.nodes_in_words} with {which}."
            )
        index = 0
        for node, incoming in nodes:
            for place, (primitive, source) in enumerate(incoming):
                if source >= node:
                    raise ValueError(
                        f"{field}[{index}]: {primitive} comes from state {source!r:.40}, "
                        f"but node {node} takes only earlier states."
                    )
                if self.keeps_all and source != place:
                    raise ValueError(
                        f"{field}[{index}]: {primitive} comes from state {source!r:.40}, "
                        f"but node {node} takes all earlier states, rising."
                    )
                index += 1
        first, last = nodes[0][0], nodes[-1][0]
        if not concat or list(concat) != sorted(set(concat)) or concat[0] < first or concat[-1] > last:
            raise ValueError(
                f"{concat_field}: {list(concat)!r:.40}, but it must be some of the nodes {first} to {last}, rising."
            )
        if not self.returns_all_nodes and list(concat) != [last]:
            raise ValueError(f"{concat_field}: {list(concat)!r:.40}, but a cell returns its last node, {last}.")

    def write_text(self, cells: Mapping[str, tuple[Edges, Sequence[int]]]) -> str | None:
        """Write the edges and outputs of each cell in a text form of the space's own; None if it has none."""
        return None

    def find_texts(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        """Find the cells in a text that are in this form: where each begins, and its edges, still to be checked."""
        return iter(())

    @property
    def truth_names(self) -> list[str]:
        """The scalars that say how good a cell is; empty if nobody knows it."""
        return []

    def truth(self, cells: Mapping[str, Edges]) -> Truth | None:
        """Look up how good a derived cell is; None if nobody has trained all cells of the space."""
        return None

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """Return the test accuracies that these shares of all cells do not exceed; empty if nobody knows them."""
        return []
