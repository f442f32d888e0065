"""The modules behind the primitives (Liu, Simonyan, Yang, "DARTS", ICLR 2019, section 3.1), and the stem before them.

All take and return images of shape (batch, channels, height, width); with stride 2 height and width are halved, rounded
up. In the supernet batch norms have no affine parameters; in the final network they do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.models.batch_norm import BatchNorm2d
from nas.models.depthwise import DepthwiseConv2d


class ReLUConvBN(nn.Module):
    """ReLU, convolution, batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1, affine: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
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
    """What the strided 1x1 convolutions of a factorised reduction see: even rows and columns, and odd ones.

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


def make_operation(primitive: str, channels: int, stride: int) -> nn.Module:
    """The operation on one edge of a final network, `channels` in and out."""
    match primitive:
        case "max_pool_3x3":
            return nn.MaxPool2d(3, stride, padding=1)
        case "avg_pool_3x3":
            return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)
        case "skip_connect":
            return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)
        case "sep_conv_3x3" | "sep_conv_5x5" | "sep_conv_7x7":
            return SepConv(channels, int(primitive[-1]), stride)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return DilConv(channels, int(primitive[-1]), stride)
        case "conv_7x1_1x7":
            return Conv7x1And1x7(channels, stride)
    raise AssertionError(primitive)


def make_stem(stem: str, in_channels: int, init_channels: int) -> tuple[nn.Module, nn.Module, int]:
    """The first layers of a supernet or a final network: what gives the first input of the first cell, what makes the
    second input of it, and the channels of both.

    Args:
        stem: "cifar" leaves images as large as they are, and both inputs are one. "imagenet" divides their sides by
            four for the first input and by eight for the second (the authors' final network for ImageNet).
        init_channels: of the first cell; at least 2 for "imagenet".
    """
    if stem == "cifar":
        channels = 3 * init_channels
        return nn.Sequential(*_convolution(in_channels, channels, stride=1)), nn.Identity(), channels
    half = _convolution(in_channels, init_channels // 2, stride=2)
    first = nn.Sequential(*half, nn.ReLU(), *_convolution(init_channels // 2, init_channels, stride=2))
    return first, nn.Sequential(nn.ReLU(), *_convolution(init_channels, init_channels, stride=2)), init_channels


def _convolution(in_channels: int, out_channels: int, stride: int) -> tuple[nn.Module, nn.Module]:
    """3 × 3, and its batch norm."""
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return conv, BatchNorm2d(out_channels)


def concatenate(nodes: list[Tensor]) -> Tensor:
    """The output of a cell: its nodes, one after the other."""
    for node in nodes:
        if node.requires_grad:
            # Else its gradient would be a slice, and the batch norms before it would go a slow way back on a CPU.
            node.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return torch.cat(nodes, dim=1)
