"""Depthwise convolutions whose gradients cost on a CPU what their outputs cost.

oneDNN, which computes torch's convolutions there, has quick kernels for the output of every depthwise convolution, but
for its gradients only some: of the input those without dilation, of the weights those without dilation and up to three
columns wide. All others take five to ten times as long (torch 2.15, AVX-512). Here the same gradients are put together
from what is quick. The mathematics is that of `torch.nn.functional.conv2d`, on other devices the code as well.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseConv2d(nn.Conv2d):
    """`depthwise_conv2d` as a module, without bias."""

    def __init__(self, channels: int, kernel: int, stride: int = 1, dilation: int = 1):
        padding = dilation * (kernel // 2)
        super().__init__(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return depthwise_conv2d(input, self.weight, self.stride[0], self.dilation[0])


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """Convolve each channel by itself, padded so that stride 1 keeps the size.

    Args:
        x: (batch, channels, height, width); quick if it is channels_last in memory.
        weight: (channels, 1, kernel, kernel), kernel odd.
        stride, dilation: 1 or 2.

    Returns:
        (batch, channels, height / stride, width / stride), rounded up.
    """
    if stride == dilation == 2:  # what lies between every second pixel is never read
        x, stride, dilation = x[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last), 1, 1
    if x.device.type == "cpu" and torch.is_grad_enabled():
        return _DepthwiseConv2d.apply(x, weight, stride, dilation)  # pyrefly: ignore
    padding = dilation * (weight.shape[-1] // 2)
    return F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])


class _DepthwiseConv2d(torch.autograd.Function):
    """A convolution whose backward pass consists of differentiable operations, so that second derivatives exist."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.dilation = stride, dilation
        padding = dilation * (weight.shape[-1] // 2)
        return F.conv2d(x, weight, None, stride, padding, dilation, groups=x.shape[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        kernel, channels = weight.shape[-1], x.shape[1]
        of_x = of_weight = None
        if ctx.needs_input_grad[0]:
            if ctx.stride == 1:
                padding = ctx.dilation * (kernel // 2)
                of_x = F.conv2d(gradient, weight.flip(2, 3), None, 1, padding, ctx.dilation, groups=channels)
            else:
                of_x = torch.nn.grad.conv2d_input(x.shape, weight, gradient, ctx.stride, kernel // 2, groups=channels)
        if ctx.needs_input_grad[1]:
            if ctx.dilation == 2:
                phases = _weight_gradient(_phases(x), _phases(gradient), kernel, 1)
                of_weight = phases.unflatten(0, (2, channels)).sum(0)
            else:
                of_weight = _weight_gradient(x, gradient, kernel, ctx.stride)
        return of_x, of_weight, None, None


def _weight_gradient(x: Tensor, gradient: Tensor, kernel: int, stride: int) -> Tensor:
    """Compute the weight gradient of an undilated convolution, in strips of up to three columns."""
    if kernel <= 3:
        return _strip(x, gradient, (kernel, kernel), stride, (kernel // 2, kernel // 2))
    # The quick kernel also wants as many rows as it has itself, and every strip some of the columns.
    height, width = x.shape[2:]
    if min(height, width) < kernel:
        height, width = max(height, kernel), max(width, kernel)
        x = _fill_up(x, height, width)
        gradient = _fill_up(gradient, -(-height // stride), -(-width // stride))
    padding = kernel // 2
    strips = []
    for first in range(0, kernel, 3):
        last = min(first + 3, kernel) - 1
        seen = F.pad(x, (padding - first, last - padding))
        strips.append(_strip(seen, gradient, (kernel, last - first + 1), stride, (padding, 0)))
    return torch.cat(strips, dim=3)


def _strip(x: Tensor, gradient: Tensor, kernel: tuple[int, int], stride: int, padding: tuple[int, int]) -> Tensor:
    channels = x.shape[1]
    return torch.nn.grad.conv2d_weight(x, (channels, 1, *kernel), gradient, stride, padding, groups=channels)


def _phases(x: Tensor) -> Tensor:
    """Make images of every second row and column, on which a convolution with dilation 2 has no dilation.

    Even and odd columns become channels, which channels_last makes a mere view; even and odd rows become images: from
    (batch, channels, height, width) to (2 * batch, 2 * channels, height / 2, width / 2), odd sizes filled up with 0.
    """
    batch, channels, height, width = x.shape
    if height % 2 or width % 2:
        height, width = height + height % 2, width + width % 2
        x = _fill_up(x, height, width)
    rows = x.permute(0, 2, 3, 1).reshape(batch, height // 2, 2, width // 2, 2 * channels)
    return rows.permute(2, 0, 1, 3, 4).reshape(2 * batch, height // 2, width // 2, 2 * channels).permute(0, 3, 1, 2)


def _fill_up(x: Tensor, height: int, width: int) -> Tensor:
    """Add zeros below and to the right."""
    return F.pad(x, (0, width - x.shape[3], 0, height - x.shape[2]))
