"""Primitives, states and edges of a cell: the search space of DARTS (Liu, Simonyan, Yang, ICLR 2019, section 2.1).

A cell's states are numbered: 0 and 1 are its inputs c_{k-2} and c_{k-1}, then come its nodes, 2, 3, …
Each node takes one mixed operation from every earlier state. Edges are ordered by node, then by source.
"""

NUM_INPUTS = 2
EDGES_PER_NODE = 2  # kept when a cell is derived

# The order is that of the columns of the alphas.
PRIMITIVES = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)

# What an edge of a derived cell may carry: published cells (NASNet, AmoebaNet) also use the last two.
DERIVED_PRIMITIVES = (*PRIMITIVES[1:], "sep_conv_7x7", "conv_7x1_1x7")


def edges(num_nodes: int) -> list[tuple[int, int]]:
    """The (source, node) states of each edge, in the order of the rows of the alphas."""
    return [(source, node) for node in range(NUM_INPUTS, NUM_INPUTS + num_nodes) for source in range(node)]


def reduction_cells(num_cells: int) -> frozenset[int]:
    """Indices of the cells that halve the image and double the channels."""
    return frozenset({num_cells // 3, 2 * num_cells // 3})
