"""The primitives: how each computes one edge, how it computes all edges that leave a state, and what it costs.

The modules are in `nas.models.operations`, which is imported only where one is made: names and costs need no torch.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nas.search_space.space import NONE, OWN_PRIMITIVES

if TYPE_CHECKING:
    from torch import nn


class Cost(NamedTuple):
    """What a part of a final network costs.

    Attributes:
        weights: number of parameters.
        multiply_adds: multiply-adds of its convolutions and linear layers for one image.
    """

    weights: int
    multiply_adds: int


class Primitive:
    """What an edge of a cell may carry."""

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        """Make the operation of one edge.

        Args:
            channels: channels of its input and of its output.
            stride: 1, or 2 to halve height and width, rounded up.
            in_supernet: whether it is part of a supernet: batch norms have no affine parameters there, and pools are
                followed by one.
        """
        raise NotImplementedError

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        """Make the operations of all edges that leave one state in a supernet: by default edge by edge.

        Returns:
            Either a `Shared` module, which is called with the state and returns what all edges share, before it is
            weighted. Or a module with an attribute `takes` that is called with this part of `Inputs` and with
            `scales`, and returns the weighted outputs, (batch, edges * channels, height, width).
        """
        from nas.models.operations import EdgeByEdge

        return EdgeByEdge(self.on_edge(channels, stride, in_supernet=True) for _ in range(num_edges))

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        """Return what one edge of a final network costs: by default counted on shapes alone.

        Args:
            channels: channels of its input and of its output.
            stride: 1 or 2.
            size: height and width of its input.
        """
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with torch.device("meta"):
            operation, x = self.on_edge(channels, stride).eval(), torch.empty(1, channels, size, size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            operation(x)
        # The counter has two operations for each multiply-add.
        return Cost(sum(weight.numel() for weight in operation.parameters()), counter.get_total_flops() // 2)


class _Pool(Primitive):
    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from torch import nn

        from nas.models.batch_norm import BatchNorm2d

        pool = self.pool(stride)
        return nn.Sequential(pool, BatchNorm2d(channels, affine=False)) if in_supernet else pool

    def pool(self, stride: int) -> "nn.Module":
        raise NotImplementedError

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        from nas.models.operations import Shared

        return Shared(*self.on_edge(channels, stride, in_supernet=True).children())

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        return Cost(0, 0)


class MaxPool(_Pool):
    """3 × 3 max pooling."""

    def pool(self, stride: int) -> "nn.Module":
        from torch import nn

        return nn.MaxPool2d(3, stride, padding=1)


class AveragePool(_Pool):
    """3 × 3 average pooling, which does not count the padding."""

    def pool(self, stride: int) -> "nn.Module":
        from nas.models.operations import AvgPool2d

        return AvgPool2d(3, stride, padding=1, count_include_pad=False)


class AveragePoolWithoutNorm(AveragePool):
    """The same, which no batch norm follows in the supernet either (NAS-Bench-201)."""

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        return self.pool(stride)

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        from nas.models.operations import Shared

        return Shared(self.pool(stride))


class Nothing(Primitive):
    """Zeros; a supernet leaves them out."""

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from nas.models.operations import Zero

        return Zero()

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        return Cost(0, 0)


@dataclass(frozen=True)
class Convolution(Primitive):
    """ReLU, convolution, batch norm (NAS-Bench-201)."""

    kernel: int

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from nas.models.operations import ReLUConvBN

        return ReLUConvBN(channels, channels, self.kernel, not in_supernet, stride)

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        from nas.models.operations import StackedConv

        return StackedConv(num_edges, channels, self.kernel, stride)

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        return convolution(channels, channels, self.kernel**2, (size if stride == 1 else half(size)) ** 2)


class SkipConnection(Primitive):
    """Identity; with stride 2 a factorised reduction."""

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from torch import nn

        from nas.models.operations import FactorizedReduce

        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, affine=not in_supernet)

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        from nas.models.operations import Shared, StackedFactorizedReduce

        return Shared() if stride == 1 else StackedFactorizedReduce(num_edges, channels)

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        return Cost(0, 0) if stride == 1 else convolution(channels, channels, 1, half(size) ** 2)


@dataclass(frozen=True)
class SeparableConvolution(Primitive):
    """A depthwise and a pointwise convolution, twice."""

    kernel: int

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from nas.models.operations import SepConv

        return SepConv(channels, self.kernel, stride, affine=not in_supernet)

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        from nas.models.operations import StackedSepConv

        return StackedSepConv(num_edges, channels, self.kernel, stride)

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        once = DilatedConvolution(self.kernel).cost(channels, stride, size)
        return Cost(2 * once.weights, 2 * once.multiply_adds)


@dataclass(frozen=True)
class DilatedConvolution(Primitive):
    """A depthwise convolution with dilation 2, and a pointwise one."""

    kernel: int

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from nas.models.operations import DilConv

        return DilConv(channels, self.kernel, stride, affine=not in_supernet)

    def on_edges(self, num_edges: int, channels: int, stride: int) -> "nn.Module":
        from nas.models.operations import StackedDilConv

        return StackedDilConv(num_edges, channels, self.kernel, stride, dilation=2)

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        pixels = (size if stride == 1 else half(size)) ** 2
        pointwise, depthwise = convolution(channels, channels, 1, pixels), self.kernel**2 * channels
        return Cost(pointwise.weights + depthwise, pointwise.multiply_adds + depthwise * pixels)


class Convolution7x1And1x7(Primitive):
    """A 1 × 7 and a 7 × 1 convolution (AmoebaNet's cells)."""

    def on_edge(self, channels: int, stride: int, in_supernet: bool = False) -> "nn.Module":
        from nas.models.operations import Conv7x1And1x7

        return Conv7x1And1x7(channels, stride, affine=not in_supernet)

    def cost(self, channels: int, stride: int, size: int) -> Cost:
        after = size if stride == 1 else half(size)
        return Cost(2 * 7 * channels**2 + 2 * channels, 7 * channels**2 * (size * after + after * after))


def register_primitive(name: str, primitive: Primitive) -> None:
    """Add a primitive of one's own to every search space; `--primitives` and genotype files then know its name.

    Raises:
        ValueError: the name is taken, or no word of up to 40 letters, digits and '_'.
    """
    if name in PRIMITIVES or name == NONE or not re.fullmatch(r"[A-Za-z]\w{0,39}", name, re.ASCII):
        raise ValueError(f"primitive {name!r:.60}: must be a new word of up to 40 letters, digits and '_'.")
    PRIMITIVES[name] = primitive
    OWN_PRIMITIVES.append(name)


def convolution(in_channels: int, out_channels: int, kernel_area: int, pixels: int) -> Cost:
    """Return the cost of a convolution and its batch norm; `pixels` are those of its output."""
    kernels = in_channels * out_channels * kernel_area
    return Cost(kernels + 2 * out_channels, kernels * pixels)


def half(size: int) -> int:
    """Return height or width after an operation of stride 2."""
    return (size + 1) // 2


PRIMITIVES: dict[str, Primitive] = {
    NONE: Nothing(),
    "max_pool_3x3": MaxPool(),
    "avg_pool_3x3": AveragePool(),
    "skip_connect": SkipConnection(),
    "sep_conv_3x3": SeparableConvolution(3),
    "sep_conv_5x5": SeparableConvolution(5),
    "sep_conv_7x7": SeparableConvolution(7),
    "dil_conv_3x3": DilatedConvolution(3),
    "dil_conv_5x5": DilatedConvolution(5),
    "conv_7x1_1x7": Convolution7x1And1x7(),
    "nor_conv_1x1": Convolution(1),
    "nor_conv_3x3": Convolution(3),
    "avg_pool_3x3 without norm": AveragePoolWithoutNorm(),
}
