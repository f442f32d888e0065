"""How large the final network of a genotype is, by formula: a test compares it with the real networks."""

from typing import NamedTuple

from nas.models.primitives import PRIMITIVES, Cost, convolution, half
from nas.search_space.genotype import Genotype
from nas.search_space.space import RESIDUAL_BLOCK


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
    init_channels: int | None = None,
    num_cells: int | None = None,
    num_classes: int = 10,
    stem: str = "cifar",
) -> NetworkSize:
    """Return the size of the final network; by default in the form that its space was published with for CIFAR-10."""
    space = genotype.space
    channels, num_cells = init_channels or space.final_network[0], num_cells or space.final_network[1]
    costs, made, size = _stem(stem, in_channels, channels, image_size, space.stem_factor)
    inputs, head = space.num_inputs * [made], 0
    for index, kind in enumerate(space.layers(num_cells)):
        reduction = kind in space.halving
        channels *= 2 if reduction else 1
        made, after = channels, half(size) if reduction else size
        if kind == RESIDUAL_BLOCK:
            costs += _residual_block(inputs[-1], channels, after)
        else:
            costs += [convolution(before, channels, 1, size**2) for before in inputs if space.preprocesses]
            for _, edges in space.by_node(genotype.edges(kind)):
                for primitive, source in edges:
                    is_input = source < space.num_inputs
                    stride = 2 if reduction and is_input else 1
                    costs.append(PRIMITIVES[primitive].cost(channels, stride, size if is_input else after))
            made *= len(genotype.concat(kind))
        inputs, size = [*inputs[1:], made], after
        if space.auxiliary_head and index == 2 * num_cells // 3:
            head = _weights_of_head(made, num_classes, stem)
    if space.norm_before_pool:
        costs.append(Cost(2 * inputs[-1], 0))
    costs.append(Cost((inputs[-1] + 1) * num_classes, inputs[-1] * num_classes))  # the classifier
    weights = sum(cost.weights for cost in costs)
    return NetworkSize(weights, weights + head, sum(cost.multiply_adds for cost in costs))


def _residual_block(in_channels: int, channels: int, size: int) -> list[Cost]:
    """Return the costs of an `operations.ResidualBlock`; `size` is that of its output."""
    shortcut = in_channels * channels
    convolutions = [convolution(before, channels, 9, size**2) for before in (in_channels, channels)]
    return [*convolutions, Cost(shortcut, shortcut * size**2)]


def _stem(stem: str, in_channels: int, init_channels: int, image_size: int, factor: int) -> tuple[list[Cost], int, int]:
    """Return the cost of the first layers, the channels that they make, and the size of the first cell's input."""
    if stem == "cifar":
        channels = factor * init_channels
        return [convolution(in_channels, channels, 9, image_size**2)], channels, image_size
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
