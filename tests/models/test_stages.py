"""The final network of NAS-Bench-201 against the benchmark's formula, and its cell against the supernet's."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas import FinalNetwork, Genotype
from nas.models.final_network import FinalCell
from nas.models.size import network_size
from nas.models.supernet import Cell
from nas.search_space.nas_bench_201 import NAS_BENCH_201

CELLS = [Genotype.random(seed, space=NAS_BENCH_201) for seed in range(50)]


def test_sizes_are_those_of_the_benchmarks_formula():
    """The benchmark counts the ten biases of the classifier as multiply-adds."""
    for genotype in CELLS:
        names = [name for name, _ in genotype.cell]
        n1, n3 = names.count("nor_conv_1x1"), names.count("nor_conv_3x3")
        weights = 73_306 + 5 * n3 * (9 * 5376 + 224) + 5 * n1 * (5376 + 224)
        multiply_adds = 7_783_050 + 15 * n3 * 2_359_296 + 15 * n1 * 262_144 - 10
        assert network_size(genotype) == (weights, weights, multiply_adds)
    with torch.device("meta"):
        network = FinalNetwork(genotype).eval()
        with FlopCounterMode(display=False) as counter:
            network(torch.empty(1, 3, 32, 32))
    assert network.auxiliary_head is None
    assert sum(weight.numel() for weight in network.parameters()) == weights
    assert counter.get_total_flops() // 2 == multiply_adds


@pytest.mark.parametrize("genotype", CELLS[:6], ids=Genotype.to_text)
def test_one_hot_edge_weights_compute_the_final_networks_cell(genotype):
    channels, primitives = 4, NAS_BENCH_201.primitives
    searched = Cell([channels], channels, 3, False, False, NAS_BENCH_201).double()
    final = FinalCell(genotype.cell, (3,), [channels], channels, False, False, NAS_BENCH_201).double()
    leaving = [0, 0, 0]
    for (name, source), operation in zip(genotype.cell, final.operations, strict=True):
        if name.startswith("nor_conv"):
            operation.conv.weight.data = searched.mixed_operations[source].get_submodule(name).conv[leaving[source]]
        leaving[source] += 1
    x = torch.randn(3, channels, 6, 6, dtype=torch.float64)
    weights = torch.eye(5, dtype=torch.float64)[[primitives.index(name) for name, _ in genotype.cell]]
    torch.testing.assert_close(final([x], 0.0, None), searched(x, weights), rtol=0, atol=1e-10)
