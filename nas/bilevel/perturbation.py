"""Derivation by perturbation: an edge keeps the primitive that the supernet misses most.

Source: Wang et al., "Rethinking Architecture Selection in Differentiable NAS" (DARTS-PT), ICLR 2021, algorithm 1. After
the search each edge is decided, then each node that keeps some of its edges, both in random order; in between the
weights are tuned with the alphas at rest.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

import torch

from nas.models.supernet import Alphas, EdgeWeights
from nas.search_space.space import SearchSpace

TUNING_RATE = 0.1  # of the learning rate at the start of the search


class Decision(NamedTuple):
    """What is decided at once: the primitive of one edge, or which of a node's edges are kept.

    Attributes:
        kind: the kind of cell.
        edges: rows of its edge weights.
    """

    kind: str
    edges: tuple[int, ...]


def decisions(space: SearchSpace, num_nodes: int, seed: int) -> list[Decision]:
    """List the decisions in the order of the seed: `SearchSpace.num_decisions` of them."""
    ends = space.edges(num_nodes)
    edges = [Decision(kind, (edge,)) for kind in space.cells for edge in range(len(ends))]
    incoming = [tuple(row for row, (_, end) in enumerate(ends) if end == node) for node in space.nodes(num_nodes)]
    nodes = [Decision(kind, rows) for kind in space.cells for rows in incoming if len(rows) > space.edges_kept]
    shuffle = random.Random(seed).shuffle
    shuffle(edges)
    shuffle(nodes)
    return edges + nodes


@torch.no_grad()
def decide(alphas: Alphas, decision: Decision, quality: Callable[[EdgeWeights], float]) -> str:
    """Fix what costs the supernet most when it is taken away; of equal ones the first. Return what was decided.

    Args:
        alphas: which can be fixed (see `Alphas.make_fixable`).
        quality: of the supernet with these edge weights; more is better.
    """
    space, fixed = alphas.space, alphas.fixed(decision.kind)
    names = [f"{source}-{node}" for source, node in space.edges(space.nodes_of(len(fixed)))]

    def quality_without(edge: int, column: int | None) -> float:
        edge_weights = alphas.mean()
        getattr(edge_weights, decision.kind)[edge, slice(None) if column is None else column] = 0.0
        return quality(edge_weights)

    if len(decision.edges) == 1:
        columns = [space.primitives.index(name) for name in space.derived_primitives]
        (edge,) = decision.edges
        fixed[edge] = best = min(columns, key=lambda column: quality_without(edge, column))
        return f"{decision.kind}: edge {names[edge]} carries {space.primitives[best]}"
    ranked = sorted(decision.edges, key=lambda edge: quality_without(edge, None))
    kept, dropped = ranked[: space.edges_kept], ranked[space.edges_kept :]
    fixed[dropped] = len(space.primitives)
    return f"{decision.kind}: edges {' and '.join(names[edge] for edge in sorted(kept))} are kept"
