"""Sizes by formula: the published figures, and what is counted on real networks."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nas import FinalNetwork, Genotype
from nas.models.primitives import PRIMITIVES, Primitive
from nas.models.size import network_size

PUBLISHED = "AmoebaNet", "DARTS_V2", "NASNet"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("DARTS_V1", (), (3_169_414, 3_645_840, 500_987_520)),
        ("DARTS_V2", (), (3_349_342, 3_825_768, 528_359_040)),
        ("DARTS_V2", (224, 3, 48, 14, 1000, "imagenet"), (4_718_752, 5_979_528, 529_911_552)),
    ],
)
def test_published_cells_have_the_size_of_the_published_networks(name, shape, expected):
    assert network_size(Genotype.load(name), *shape) == expected


# image_size, in_channels, init_channels, num_cells, num_classes, stem
SHAPES = [(9, 3, 4, 3, 10, "cifar"), (10, 1, 7, 4, 3, "cifar"), (8, 3, 4, 1, 2, "cifar"), (65, 3, 9, 3, 5, "imagenet")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_formula_counts_what_real_networks_have(shape):
    """Published cells, and random ones of 1 to 5 nodes."""
    image_size, in_channels, *arguments, stem = shape
    random_cells = [Genotype.random(seed, 1 + seed) for seed in (0, 4)]
    for genotype in [*map(Genotype.load, PUBLISHED if shape is SHAPES[0] else PUBLISHED[1:2]), *random_cells]:
        with torch.device("meta"):
            network = FinalNetwork(genotype, in_channels, *arguments, stem=stem).eval()
            with FlopCounterMode(display=False) as counter:
                network(torch.empty(1, in_channels, image_size, image_size))
        weights, head = (sum(p.numel() for p in part.parameters()) for part in (network, network.auxiliary_head))
        assert network_size(genotype, *shape) == (weights - head, weights, counter.get_total_flops() // 2), genotype


@pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES)
@pytest.mark.parametrize("stride", [1, 2])
def test_the_formula_of_a_primitive_is_what_is_counted(primitive, stride):
    for channels, size in ((6, 8), (3, 7)):
        assert primitive.cost(channels, stride, size) == Primitive.cost(primitive, channels, stride, size)
