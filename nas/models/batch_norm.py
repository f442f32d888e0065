"""Batch norms whose statistics may be those of a batch that several processes share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gather = Callable[[Tensor], Tensor]


class BatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` that sees the images of all processes after `synchronise` (`nn.SyncBatchNorm` needs GPUs)."""

    gather: Gather | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.gather is None or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        assert self.momentum is not None
        return _synchronised(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.momentum, self.gather
        )


class StackedNorm(nn.Module):
    """One batch norm for each edge, without affine parameters; an edge's weight, if given, is its scale."""

    running_mean: Tensor
    running_var: Tensor
    momentum: float = 0.1  # as torch's
    gather: Gather | None = None

    def __init__(self, num_edges: int, channels: int):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(num_edges, channels))
        self.register_buffer("running_var", torch.ones(num_edges, channels))

    def forward(self, x: Tensor, scales: Tensor | None = None) -> Tensor:
        """Normalise (batch, edges * channels, height, width); `scales` has the shape (edges * channels,)."""
        mean, var = self.running_mean.flatten(), self.running_var.flatten()
        if self.gather is not None and self.training:
            return _synchronised(x, mean, var, scales, None, self.momentum, self.gather)
        return F.batch_norm(x, mean, var, scales, training=self.training, momentum=self.momentum)


def synchronise(network: nn.Module, gather: Gather | None) -> None:
    """Let the batch norms of a network see the whole batch in training.

    Args:
        network: its batch norms are changed in place.
        gather: takes a tensor and returns those of all processes, stacked, with gradients. With None, each process
            computes its own statistics.
    """
    for module in network.modules():
        if isinstance(module, BatchNorm2d | StackedNorm):
            module.gather = gather


@torch.no_grad()
def estimate_anew(
    network: nn.Module, of: nn.Module, inputs: Iterable[Sequence[Any]], average: Callable[[Sequence[Tensor]], None]
) -> None:
    """Give a network the weights of another one and, as running statistics, the mean of those of some batches at these.

    With a momentum of 0.1 the statistics that training keeps are those of the last ten or twenty steps, and before that
    of the start: they lag behind weights that move quickly (Wu and Johnson, "Rethinking 'Batch' in BatchNorm", 2021,
    section 3). This is `torch.optim.swa_utils.update_bn` for all batch norms here; no value is read from the device.

    Args:
        network: a copy of the other one, made at any time; it is in evaluation mode afterwards.
        of: left as it is, bit for bit.
        inputs: what the network is called with, for one batch at least.
        average: replaces tensors by their means over the processes, of which each has its part of every batch.
    """
    network.load_state_dict(of.state_dict())
    network.train()
    norms = [module for module in network.modules() if isinstance(module, BatchNorm2d | StackedNorm)]
    for number, arguments in enumerate(inputs, 1):
        for norm in norms:
            norm.momentum = 1 / number  # a cumulative mean, of which the first batch is all
        network(*arguments)
    for norm in norms:
        norm.momentum = 0.1
    average([buffer for buffer in network.buffers() if buffer.is_floating_point()])
    network.eval()


def _synchronised(
    x: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    gather: Gather,
) -> Tensor:
    """Compute what `F.batch_norm` does in training; Chan's formula combines the statistics of the processes."""
    eps = 1e-5  # torch's default
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
