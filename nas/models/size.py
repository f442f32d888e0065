"""How large the final network of a genotype is, by formula: a test compares it with the real networks."""

from typing import NamedTuple

from nas.models.primitives import PRIMITIVES, Cost, convolution, half
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.space import SearchSpace


class NetworkSize(NamedTuple):
    """Counts of a final network.

    Attributes:
        weights: parameters without the auxiliary head.
        weights_with_head: parameters with it.
        multiply_adds: multiply-adds of convolutions and linear layers for one image, without the head.
    """

    weights: int
    weights_with_head: int
    multiply_adds: int


def network_size(
    genotype: Genotype,
    image_size: int = 32,
    in_channels: int = 3,
    init_channels: int = 36,
    num_cells: int = 20,
    num_classes: int = 10,
    stem: str = "cifar",
    space: SearchSpace = DARTS,
) -> NetworkSize:
    """Return the size of the final network; by default in the published form for CIFAR-10."""
    costs, channels_0, size = _stem(stem, in_channels, init_channels, image_size)
    channels_1, channels, head = channels_0, init_channels, 0
    for index in range(num_cells):
        reduction = index in space.reduction_cells(num_cells)
        channels *= 2 if reduction else 1
        costs += [convolution(channels_0, channels, 1, size**2), convolution(channels_1, channels, 1, size**2)]
        after = half(size) if reduction else size
        for _, edges in space.by_node(genotype.reduce if reduction else genotype.normal):
            for primitive, source in edges:
                is_input = source < space.num_inputs
                stride = 2 if reduction and is_input else 1
                costs.append(PRIMITIVES[primitive].cost(channels, stride, size if is_input else after))
        concat = genotype.reduce_concat if reduction else genotype.normal_concat
        channels_0, channels_1, size = channels_1, len(concat) * channels, after
        if index == 2 * num_cells // 3:
            head = _weights_of_head(channels_1, num_classes, stem)
    costs.append(Cost((channels_1 + 1) * num_classes, channels_1 * num_classes))  # the classifier
    weights = sum(cost.weights for cost in costs)
    return NetworkSize(weights, weights + head, sum(cost.multiply_adds for cost in costs))


def _stem(stem: str, in_channels: int, init_channels: int, image_size: int) -> tuple[list[Cost], int, int]:
    """Return the cost of the first layers, the channels that they make, and the size of the first cell's input."""
    if stem == "cifar":
        return [convolution(in_channels, 3 * init_channels, 9, image_size**2)], 3 * init_channels, image_size
    quarter = half(half(image_size))
    costs = [
        convolution(in_channels, init_channels // 2, 9, half(image_size) ** 2),
        convolution(init_channels // 2, init_channels, 9, quarter**2),
        convolution(init_channels, init_channels, 9, half(quarter) ** 2),
    ]
    return costs, init_channels, half(quarter)


def _weights_of_head(channels: int, num_classes: int, stem: str) -> int:
    """Return the number of parameters of `final_network.AuxiliaryHead`."""
    features = convolution(channels, 128, 1, 1).weights + 128 * 768 * 4
    return features + (0 if stem == "imagenet" else 2 * 768) + (768 + 1) * num_classes
