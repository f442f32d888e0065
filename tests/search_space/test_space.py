import ast
import sys
from pathlib import Path

import pytest

from nas.search_space import space
from nas.search_space.space import DERIVED_PRIMITIVES, PRIMITIVES, edges, reduction_cells


def test_primitives_are_the_papers_in_the_order_of_the_columns():
    assert PRIMITIVES == (
        "none", "max_pool_3x3", "avg_pool_3x3", "skip_connect",
        "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5",
    )  # fmt: skip


def test_derived_cells_know_no_none_but_the_operations_of_other_papers():
    assert set(DERIVED_PRIMITIVES) - set(PRIMITIVES) == {"sep_conv_7x7", "conv_7x1_1x7"}
    assert set(PRIMITIVES) - set(DERIVED_PRIMITIVES) == {"none"}


def test_edges_of_two_nodes():
    assert edges(2) == [(0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("num_nodes", range(7))
def test_edges_are_ordered_by_node_then_source(num_nodes):
    found = edges(num_nodes)
    assert found == sorted(found, key=lambda edge: (edge[1], edge[0]))
    assert len(set(found)) == len(found) == num_nodes * (num_nodes + 3) // 2
    assert all(0 <= source < node for source, node in found)


@pytest.mark.parametrize(("num_cells", "expected"), [(8, {2, 5}), (14, {4, 9}), (20, {6, 13})])
def test_reduction_cells_lie_at_one_and_two_thirds(num_cells, expected):
    assert reduction_cells(num_cells) == expected


def test_search_space_needs_the_standard_library_alone():
    tree = ast.parse(Path(space.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
