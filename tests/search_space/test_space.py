"""The search space of DARTS as data, and that its methods hold for other spaces."""

import dataclasses
import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.search_space.darts import DARTS
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.search_space.space import SearchSpace

# As in NAS-Bench-201: one input, and nodes that keep all their edges, of which some may be none.
ALL_EDGES = SearchSpace(("none", "skip_connect"), num_inputs=1, edges_kept=3, cells=("cell",), derives_none=True)


@pytest.mark.parametrize(("space", "inputs", "counts"), [(DARTS, 2, [2, 5, 9, 14]), (ALL_EDGES, 1, [1, 3, 6, 10])])
def test_edges_are_ordered_by_node_then_source(space, inputs, counts):
    for num_nodes, num_edges in enumerate(counts, 1):
        found = space.edges(num_nodes)
        assert found == sorted(itertools.combinations(range(inputs + num_nodes), 2), key=lambda e: e[::-1])[-num_edges:]
        assert space.nodes_of(len(found)) == num_nodes
    for wrong in (0, counts[-1] + 1):
        with pytest.raises(ValueError, match=f"has {wrong} edges"):
            space.nodes_of(wrong)


@pytest.mark.parametrize(("num_cells", "expected"), [(1, {0}), (8, {2, 5}), (14, {4, 9}), (20, {6, 13})])
def test_reduction_cells_lie_at_one_and_two_thirds(num_cells, expected):
    assert DARTS.reduction_cells(num_cells) == expected


@given(
    rows=st.lists(st.lists(st.floats(0, 1), min_size=8, max_size=8), min_size=14, max_size=14), most=st.integers(0, 8)
)
def test_a_cell_has_at_most_as_many_skip_connections_as_allowed(rows, most):
    capped, free = dataclasses.replace(DARTS, max_skip_connections=most).derive(rows), DARTS.derive(rows)
    with pytest.raises(ValueError, match="8 columns"):
        DARTS.derive([*rows[:-1], rows[-1][1:]])
    skips = [sum(name == "skip_connect" for name, _ in cell) for cell in (capped, free)]
    assert skips[0] <= most
    assert (capped == free) == (skips[1] <= most)


@pytest.mark.parametrize(
    "space", [DARTS, NAS_BENCH_201, DARTS.with_primitives(["none", "skip_connect", "sep_conv_3x3"])]
)
def test_the_likeliest_cells_are_those_with_the_largest_products_and_the_first_ones_are_derived(space):
    draw, num_nodes = random.Random(3), 2 if space.returns_all_nodes else 3
    edges = space.edges(num_nodes)
    weights = {kind: [[draw.random() for _ in space.primitives] for _ in edges] for kind in space.cells}
    found = space.likeliest(weights, 30)
    assert found[0] == {kind: space.derive(rows) for kind, rows in weights.items()}

    def product(cells):
        rows = {kind: dict(zip(edges, weights[kind], strict=True)) for kind in space.cells}
        return math.prod(
            rows[kind][source, node][space.primitives.index(primitive)]
            for kind, cell in cells.items()
            for node, incoming in space.by_node(cell)
            for primitive, source in incoming
        )

    products = [product(cells) for cells in found]
    assert products == sorted(products, reverse=True)
    assert len({repr(cells) for cells in found}) == 30
    better = [
        cells for cells in map(space.random_cells, range(2000), [num_nodes] * 2000) if product(cells) > products[-1]
    ]
    assert {round(product(cells), 12) for cells in better} <= {round(product, 12) for product in products}
