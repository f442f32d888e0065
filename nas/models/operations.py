"""The modules behind the primitives (Liu, Simonyan, Yang, "DARTS", ICLR 2019, section 3.1), and the stem before them.

The modules of one edge take and return images of shape (batch, channels, height, width); with stride 2 height and width
are halved, rounded up. In the supernet batch norms have no affine parameters; in the final network they do.

The stacked modules compute all edges that leave one state at once. The channels of the edges stand behind one another:
(batch, edges * channels, height, width). `takes` names the part of `Inputs` that a module is called with; its second
argument, `scales`, has the shape (edges * channels,) and holds each edge's weight once for each of its channels.
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.models.batch_norm import BatchNorm2d, StackedNorm
from nas.models.depthwise import DepthwiseConv2d, depthwise_conv2d


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch norm, in this order."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, affine: bool = True, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = BatchNorm2d(out_channels) if affine else PlanarBatchNorm2d(out_channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(F.relu(x)))


class PlanarBatchNorm2d(BatchNorm2d):
    """A batch norm on a copy that is not channels_last: of images that are, torch (2.15) adds up in float32 on a CPU.

    For the inputs of the supernet's cells, where the gradients of all edges meet: what their sums lose reaches every
    earlier cell.
    """

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input.contiguous())
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient.contiguous())
        return x.contiguous(memory_format=torch.channels_last)


class AvgPool2d(nn.AvgPool2d):
    """`nn.AvgPool2d` with a right way back on a GPU too.

    There torch (2.11, pytorch issue 188344) returns wrong gradients of padded pools, if images are channels_last.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type == "cpu":
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


class FactorizedReduce(nn.Module):
    """A skip connection of stride 2: two strided 1x1 convolutions, the second on the image shifted by one pixel."""

    def __init__(self, in_channels: int, out_channels: int, affine: bool = True):
        super().__init__()
        self.conv_1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.conv_2 = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)
        self.norm = BatchNorm2d(out_channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        first, second = every_second_pixel(F.relu(x))
        return self.norm(torch.cat([self.conv_1(first), self.conv_2(second)], dim=1))


def every_second_pixel(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the strided 1x1 convolutions of a factorised reduction see: even rows and columns, and odd ones.

    An odd size gets a row and a column of zeros at its end, so that both are equally large. They are taken out here, as
    oneDNN's weight gradient of a strided 1x1 convolution writes beyond its memory where images of fewer than 8 channels
    are channels_last and the CPU has no more than AVX2 (torch 2.15).
    """
    height, width = x.shape[2:]
    padded = F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
    first, second = x[:, :, ::2, ::2], padded[:, :, 1::2, 1::2]
    return first.contiguous(memory_format=torch.channels_last), second.contiguous(memory_format=torch.channels_last)


class SepConv(nn.Module):
    """(ReLU, depthwise, pointwise, batch norm) twice; the first depthwise convolution has the stride."""

    def __init__(self, channels: int, kernel: int, stride: int, affine: bool = True):
        super().__init__()
        self.first = DilConv(channels, kernel, stride, dilation=1, affine=affine)
        self.second = DilConv(channels, kernel, 1, dilation=1, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class DilConv(nn.Module):
    """ReLU, dilated depthwise convolution, pointwise convolution, batch norm."""

    def __init__(self, channels: int, kernel: int, stride: int, dilation: int = 2, affine: bool = True):
        super().__init__()
        self.depthwise = DepthwiseConv2d(channels, kernel, stride, dilation)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.pointwise(self.depthwise(F.relu(x))))


class Conv7x1And1x7(nn.Module):
    """ReLU, 1x7 and 7x1 convolution, batch norm (AmoebaNet's cells)."""

    def __init__(self, channels: int, stride: int, affine: bool = True):
        super().__init__()
        self.conv_1 = nn.Conv2d(channels, channels, (1, 7), stride=(1, stride), padding=(0, 3), bias=False)
        self.conv_2 = nn.Conv2d(channels, channels, (7, 1), stride=(stride, 1), padding=(3, 0), bias=False)
        self.norm = BatchNorm2d(channels, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv_2(self.conv_1(F.relu(x))))


class Zero(nn.Module):
    """Zeros in the shape of the input: what an edge with the primitive none adds."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, the first of stride 2, and a shortcut (He et al., 2016), between the stages of cells."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, out_channels, 3, stride=2)
        self.conv_b = ReLUConvBN(out_channels, out_channels, 3)
        # An odd size is rounded up, as by the convolutions.
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        self.shortcut = nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_b(self.conv_a(x)) + self.shortcut(x)


class Inputs:
    """What the edges that leave one state have in common, each part computed once and only if it is used.

    Attributes:
        x: the state, (batch, channels, height, width).
        num_edges: the number of edges.
    """

    def __init__(self, x: Tensor, num_edges: int):
        self.x, self.num_edges = x, num_edges

    @functools.cached_property
    def rectified(self) -> Tensor:
        """The state after a ReLU."""
        return F.relu(self.x)

    @functools.cached_property
    def repeated(self) -> Tensor:
        """`rectified` once for each edge, (batch, edges * channels, height, width)."""
        return torch.cat(self.num_edges * [self.rectified], dim=1)


class Shared(nn.Sequential):
    """An operation without weights, whose output all edges that leave a state share."""


class EdgeByEdge(nn.ModuleList):
    """One module for each edge that leaves a state: what any primitive can do, and the slowest form."""

    takes = "x"

    def forward(self, x: Tensor, scales: Tensor) -> Tensor:
        return torch.cat([operation(x) for operation in self], dim=1) * scales[:, None, None]


class StackedConv(nn.Module):
    """`ReLUConvBN` behind its ReLU, on each of several edges: one convolution, as all edges see the same state."""

    takes = "rectified"

    def __init__(self, num_edges: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.stride = stride
        self.conv = _stacked_kernels(num_edges, channels, channels, kernel)
        self.norm = StackedNorm(num_edges, channels)

    def forward(self, rectified: Tensor, scales: Tensor) -> Tensor:
        x = F.conv2d(rectified, self.conv.flatten(0, 1), stride=self.stride, padding=self.conv.shape[-1] // 2)
        return self.norm(x, scales)


class StackedDilConv(nn.Module):
    """`DilConv` behind its ReLU, on each of several edges."""

    takes = "repeated"

    def __init__(self, num_edges: int, channels: int, kernel: int, stride: int, dilation: int):
        super().__init__()
        self.num_edges, self.stride, self.dilation = num_edges, stride, dilation
        self.depthwise = _stacked_kernels(num_edges, channels, 1, kernel)
        self.pointwise = _stacked_kernels(num_edges, channels, channels, 1)
        self.norm = StackedNorm(num_edges, channels)

    def forward(self, rectified: Tensor, scales: Tensor | None = None) -> Tensor:
        x = depthwise_conv2d(rectified, self.depthwise.flatten(0, 1), self.stride, self.dilation)
        return self.norm(F.conv2d(x, self.pointwise.flatten(0, 1), groups=self.num_edges), scales)


class StackedSepConv(nn.Module):
    """`SepConv` behind its first ReLU, on each of several edges."""

    takes = "repeated"

    def __init__(self, num_edges: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.first = StackedDilConv(num_edges, channels, kernel, stride, dilation=1)
        self.second = StackedDilConv(num_edges, channels, kernel, 1, dilation=1)

    def forward(self, rectified: Tensor, scales: Tensor) -> Tensor:
        return self.second(F.relu_(self.first(rectified)), scales)


class StackedFactorizedReduce(nn.Module):
    """`FactorizedReduce` behind its ReLU, on each of several edges."""

    takes = "rectified"

    def __init__(self, num_edges: int, channels: int):
        super().__init__()
        self.num_edges = num_edges
        self.conv_1 = _stacked_kernels(num_edges, channels // 2, channels, 1)
        self.conv_2 = _stacked_kernels(num_edges, channels - channels // 2, channels, 1)
        self.norm = StackedNorm(num_edges, channels)

    def forward(self, rectified: Tensor, scales: Tensor) -> Tensor:
        halves = [
            F.conv2d(x, kernels.flatten(0, 1)).unflatten(1, (self.num_edges, -1))
            for x, kernels in zip(every_second_pixel(rectified), (self.conv_1, self.conv_2), strict=True)
        ]
        x = torch.cat(halves, dim=2).flatten(1, 2)
        return self.norm(x.contiguous(memory_format=torch.channels_last), scales)


def _stacked_kernels(num_edges: int, out_channels: int, in_channels: int, kernel: int) -> nn.Parameter:
    """Draw the kernels of one convolution for each edge, as `nn.Conv2d` draws its own."""
    bound = (in_channels * kernel * kernel) ** -0.5
    return nn.Parameter(torch.empty(num_edges, out_channels, in_channels, kernel, kernel).uniform_(-bound, bound))


def make_stem(stem: str, in_channels: int, init_channels: int, factor: int = 3) -> tuple[nn.Module, nn.Module, int]:
    """Make the first layers of a supernet or a final network.

    Args:
        stem: "cifar" leaves the size of images as it is, and the first cell gets one tensor for both inputs. "imagenet"
            divides their sides by four for the first input and by eight for the second (the authors' final network for
            ImageNet).
        in_channels: channels of the images.
        init_channels: channels of the first cell; at least 2 for "imagenet".
        factor: how many times as many the stem "cifar" makes.

    Returns:
        The module that makes the first input of the first cell from images, the module that makes the second input from
        the first one, and the number of channels of both.
    """
    if stem == "cifar":
        channels = factor * init_channels
        return nn.Sequential(*_convolution(in_channels, channels, stride=1)), nn.Identity(), channels
    half = _convolution(in_channels, init_channels // 2, stride=2)
    first = nn.Sequential(*half, nn.ReLU(), *_convolution(init_channels // 2, init_channels, stride=2))
    return first, nn.Sequential(nn.ReLU(), *_convolution(init_channels, init_channels, stride=2)), init_channels


def make_last(channels: int, has_norm: bool) -> nn.Module:
    """Make what comes between the last cell and the global pooling: nothing, or a batch norm and a ReLU."""
    return nn.Sequential(BatchNorm2d(channels), nn.ReLU()) if has_norm else nn.Identity()


def _convolution(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """Make a 3 × 3 convolution and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return conv, BatchNorm2d(out_channels)


def concatenate(nodes: list[Tensor]) -> Tensor:
    """Concatenate the nodes of a cell along the channels: its output."""
    if len(nodes) == 1:
        return nodes[0]
    for node in nodes:
        if node.requires_grad:
            # Else its gradient would be a slice, and the batch norms before it would go a slow way back on a CPU.
            node.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return torch.cat(nodes, dim=1)


class PreprocessedCell(nn.Module):
    """PreprocessedCell brings the inputs of a cell to its own channels, where the space asks for it.

    Args:
        in_channels: channels of each input.
        channels: channels of each node.
        after_reduction: whether the last layer halved the image, so that earlier inputs are twice as large.
        preprocesses: whether anything is done to the inputs.
        affine: whether the batch norms have affine parameters.
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, after_reduction: bool, preprocesses: bool, affine: bool
    ):
        super().__init__()
        for number, made in enumerate(in_channels):
            form = FactorizedReduce if after_reduction and number < len(in_channels) - 1 else ReLUConvBN
            module = form(made, channels, affine=affine) if preprocesses else nn.Identity()
            self.add_module(f"preprocess_{number}", module)

    def preprocess(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Return the first states of the cell."""
        return [getattr(self, f"preprocess_{number}")(x) for number, x in enumerate(inputs)]
