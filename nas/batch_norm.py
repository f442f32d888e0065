"""Batch norms whose statistics may be those of a batch that several processes share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d`; after `synchronise`, over the images of all processes (`nn.SyncBatchNorm` has no CPU form)."""

    gather: Gather | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.gather is None or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        return _synchronised(input, self.running_mean, self.running_var, self.weight, self.bias, self.gather)


class StackedNorm(nn.Module):
    """One batch norm an edge, without affine parameters; an edge's weight, if given, is its scale."""

    running_mean: Tensor
    running_var: Tensor
    gather: Gather | None = None

    def __init__(self, num_edges: int, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_edges, channels))
        self.register_buffer("running_var", torch.ones(num_edges, channels))

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """`scales` has the shape (edges * channels,)."""
        mean, var = self.running_mean.flatten(), self.running_var.flatten()
        if self.gather is not None and self.training:
            return _synchronised(x, mean, var, scales, None, self.gather)
        return F.batch_norm(x, mean, var, scales, training=self.training)


def synchronise(network: nn.Module, gather: Gather | None) -> None:
    """Let the batch norms of a network see the whole batch in training.

    Args:
        gather: from a tensor to those of all processes, stacked, with gradients; None: each process for itself.
    """
    for module in network.modules():
        if isinstance(module, BatchNorm2d | StackedNorm):
            module.gather = gather


def _synchronised(
    x: Tensor, running_mean: Tensor, running_var: Tensor, weight: Tensor | None, bias: Tensor | None, gather: Gather
) -> Tensor:
    """As `F.batch_norm` in training; the means and variances of the processes are put together by Chan's formula."""
    momentum, eps = 0.1, 1e-5  # torch's defaults
    var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
    count = torch.full_like(mean, x.numel() // x.shape[1])
    means, variances, counts = gather(torch.stack([mean, var, count])).unbind(1)  # each (processes, channels)
    total = counts.sum(0)
    mean = (counts * means).sum(0) / total
    var = (counts * (variances + (means - mean) ** 2)).sum(0) / total
    with torch.no_grad():
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (total / (total - 1)), momentum)
    scale = (var + eps).rsqrt() if weight is None else (var + eps).rsqrt() * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    return x * scale[:, None, None] + shift[:, None, None]
