"""Cells drawn at random, the measure of any search."""

import itertools
import random

from nas.search_space.genotype import Genotype
from nas.search_space.space import EDGES_PER_NODE, NUM_INPUTS, PRIMITIVES


def random_genotype(seed: int, num_nodes: int = 4) -> Genotype:
    """A cell pair drawn uniformly from the derived cells of that many nodes.

    Each node takes one of the pairs of distinct earlier states, every pair being equally likely, and on each of the two
    edges one of the seven primitives other than none, equally likely as well; all draws are independent. The normal
    cell is drawn first, nodes in order, and a node's edges are by rising source. All concatenate all their nodes.

    Args:
        seed: of a generator of its own. Only its `random()` is used, which Python keeps the same between versions.
    """
    draw = random.Random(seed).random
    cells = []
    for _ in ("normal", "reduce"):
        edges: list[tuple[str, int]] = []
        for node in range(NUM_INPUTS, NUM_INPUTS + num_nodes):
            pairs = list(itertools.combinations(range(node), EDGES_PER_NODE))
            for source in pairs[int(draw() * len(pairs))]:
                edges.append((PRIMITIVES[1:][int(draw() * len(PRIMITIVES[1:]))], source))
        cells.append(tuple(edges))
    concat = tuple(range(NUM_INPUTS, NUM_INPUTS + num_nodes))
    return Genotype(normal=cells[0], normal_concat=concat, reduce=cells[1], reduce_concat=concat)
