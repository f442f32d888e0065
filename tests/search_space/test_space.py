"""The search space of DARTS as data, and that its methods hold for other spaces."""

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.search_space.darts import DARTS
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
