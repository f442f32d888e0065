"""NAS-Bench-201: what is known of its cells, its texts and files, and its models against one module per edge."""

import csv
import gzip
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas import Alphas, Genotype, GenotypeFile, InputError, Supernet
from nas.models.supernet import Cell
from nas.search_space import nas_bench_201
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.search_space.reader import read

CSV = Path(__file__).parents[3] / "shared" / "data" / "nas-bench-201.csv.gz"
SHOWN = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
SKIPS = "|skip_connect~0|+|skip_connect~0|skip_connect~1|+|skip_connect~0|skip_connect~1|skip_connect~2|"


def test_known_values():
    """Figures of the benchmark's paper and interface (methods.md)."""
    skips = Genotype.from_text(SKIPS).truth()
    assert [round(100 * accuracy, 2) for accuracy in skips.test.values()] == [54.30, 15.61, 16.32]
    assert skips.num_cells == 15_625
    assert 1 - skips.rank / skips.num_cells == pytest.approx(0.025, abs=1e-3)  # 97.5 % of all cells are better
    assert skips.test["CIFAR-10"] + skips.regret == pytest.approx(0.943733, abs=1e-6)
    table = nas_bench_201._table() / (100 * nas_bench_201.UNITS)
    assert table[:, :3].max(0).tolist() == pytest.approx([0.943733, 0.735133, 0.473111], abs=1e-5)
    assert table[:, 0].mean() == pytest.approx(0.8706, abs=1e-4)
    found = NAS_BENCH_201.quantiles([0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99])
    assert [round(100 * value, 1) for value in found] == [73.5, 87.6, 90.7, 92.2, 92.9, 93.3, 93.8]
    assert nas_bench_201.TABLE.stat().st_size < 450_000


@pytest.mark.skipif(not CSV.is_file(), reason="the benchmark's figures are not on this machine")
def test_the_table_is_what_pack_makes_of_the_benchmark(tmp_path):
    nas_bench_201.pack(CSV, tmp_path / "packed.npz")
    with np.load(tmp_path / "packed.npz", allow_pickle=False) as packed:
        assert np.array_equal(packed["accuracies"], nas_bench_201._table())
    with gzip.open(CSV, "rt") as file:
        rows = random.Random(0).sample([*csv.DictReader(file)], 100)
    for row in rows:
        truth = Genotype.from_text(row["arch"]).truth()
        found = [*truth.test.values(), *truth.validation.values()]
        assert found == pytest.approx([float(row[name]) / 100 for name in nas_bench_201.COLUMNS], abs=1e-5)


def test_cells_survive_text_and_file_and_the_last_one_of_a_log_is_read(tmp_path):
    cells = {Genotype.random(seed, space=NAS_BENCH_201) for seed in range(20)}
    assert len(cells) > 18
    for genotype in cells:
        genotype.save(tmp_path / "cell.json")
        loaded = Genotype.load(tmp_path / "cell.json")
        assert loaded == genotype == Genotype.from_text(f"found {genotype.to_text()}.")
        assert hash(loaded) == hash(genotype)
        assert GenotypeFile.load(tmp_path / "cell.json").space == "nas-bench-201"
    (tmp_path / "log.txt").write_text(f"epoch 1: {SKIPS[:40]}\nepoch 2: {SKIPS}\nepoch 3: {SHOWN}; 93 %\n")
    found = read(str(tmp_path / "log.txt"))
    assert found.genotype.to_text() == SHOWN
    assert found.notes == ["the last of 3 genotypes is used, in line 3."]


WRONG = [
    (SHOWN.replace("avg_", "max_"), "cell[2][0]: unknown primitive 'max_pool_3x3'; known: none, skip_connect"),
    (SHOWN.replace("+|skip_connect~0|", "+|"), "cell: 5 edges, but a cell has 3 nodes with an edge from every"),
    (SHOWN.replace("avg_pool_3x3~1", "avg_pool_3x3~0"), "cell[2]: avg_pool_3x3 comes from state 0, but node 2"),
    (f"{SHOWN} {SKIPS}", "2 genotypes"),
]


@pytest.mark.parametrize(("text", "expected"), WRONG)
def test_what_is_no_cell_is_told_in_a_sentence(text, expected):
    with pytest.raises(InputError) as caught:
        Genotype.from_text(text)
    assert str(caught.value).startswith(f"genotype text: {expected}")


def test_the_strongest_primitive_is_derived_none_included():
    alphas = Alphas(space=NAS_BENCH_201)
    alphas.cell.data[range(6), [3, 3, 4, 1, 3, 0]] = 1.0
    expected = SHOWN.replace("skip_connect~2", "none~2")
    assert Genotype.derive(alphas, NAS_BENCH_201).to_text() == expected
    assert Genotype.from_edge_weights(alphas().cell.tolist(), space=NAS_BENCH_201).to_text() == expected


@pytest.mark.usefixtures("float64_and_seed")
def test_the_supernets_cell_is_one_module_for_each_edge():
    cell, weights = Cell([4], 4, 3, False, False, NAS_BENCH_201), torch.randn(6, 5).softmax(-1)
    x, leaving, incoming = torch.randn(3, 4, 6, 6, requires_grad=True), [0, 0, 0], {1: 0.0, 2: 0.0, 3: 0.0}
    states = [x]
    for (source, node), row in zip(NAS_BENCH_201.edges(3), weights, strict=True):
        if node == len(states) + 1:
            states.append(incoming[node - 1])
        state, stacked, index = states[source], cell.mixed_operations[source], leaving[source]
        leaving[source] += 1
        terms = [state, F.avg_pool2d(state, 3, 1, 1, count_include_pad=False)]
        for name, padding in (("nor_conv_1x1", 0), ("nor_conv_3x3", 1)):
            convolved = F.conv2d(state.relu(), stacked.get_submodule(name).conv[index], padding=padding)
            terms.append(F.batch_norm(convolved, None, None, training=True))
        skip, pool, one, three = terms
        incoming[node] = incoming[node] + row[1] * skip + row[2] * one + row[3] * three + row[4] * pool
    found, expected = cell(x, weights), incoming[3]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad((y * torch.arange(6.0)).sum(), x)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


def test_a_supernet_has_three_stages_of_cells():
    supernet = Supernet(1, 4, 2, space=NAS_BENCH_201)
    assert [type(layer).__name__ for layer in supernet.cells] == [*2 * ["Cell"], "ResidualBlock"] * 2 + 2 * ["Cell"]
    assert supernet(torch.randn(2, 1, 9, 9), Alphas(space=NAS_BENCH_201)()).shape == (2, 10)
