"""How large the final network of a genotype is, counted on shapes alone: nothing is computed or kept in memory."""

import functools
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from nas.models.final_network import FinalNetwork
from nas.search_space.genotype import Genotype


class NetworkSize(NamedTuple):
    """Counts of a final network.

    Attributes:
        weights: parameters without the auxiliary head.
        weights_with_head: parameters with it.
        multiply_adds: of convolutions and linear layers for one image, without the head.
    """

    weights: int
    weights_with_head: int
    multiply_adds: int


@functools.lru_cache  # half a second each
def network_size(
    genotype: Genotype,
    image_size: int = 32,
    in_channels: int = 3,
    init_channels: int = 36,
    num_cells: int = 20,
    num_classes: int = 10,
    stem: str = "cifar",
) -> NetworkSize:
    """Size of the final network; by default in the published form for CIFAR-10."""
    with torch.device("meta"):
        network = FinalNetwork(genotype, in_channels, init_channels, num_cells, num_classes, stem=stem).eval()
        image = torch.empty(1, in_channels, image_size, image_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    weights = sum(parameter.numel() for parameter in network.parameters())
    assert network.auxiliary_head is not None
    head = sum(parameter.numel() for parameter in network.auxiliary_head.parameters())
    # The counter has two operations a multiply-add.
    return NetworkSize(weights - head, weights, counter.get_total_flops() // 2)
