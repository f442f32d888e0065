"""Edge weights moved in the step of the weights, which flattens the loss around the alphas.

Source: Chen and Hsieh, "Stabilizing Differentiable Architecture Search via Perturbation-based Regularization", 2020.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

SMALLEST = 0.03  # change of an edge weight in the first epoch
ATTACK_STEPS = 7

Gradients = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def random_smoothing(edge_weights: Sequence[Tensor], largest: float, gradients: Gradients) -> list[Tensor]:
    """Return edge weights with noise, uniform in ±`largest` (equation 5); `gradients` is not used."""
    return [_normalised(rows + torch.empty_like(rows).uniform_(-largest, largest)) for rows in edge_weights]


def adversarial_smoothing(edge_weights: Sequence[Tensor], largest: float, gradients: Gradients) -> list[Tensor]:
    """Return edge weights that were moved uphill by at most `largest` each, by the sign of the gradient (equation 6).

    Args:
        gradients: of the lower objective, at edge weights of these shapes.
    """
    moved = list(edge_weights)
    for _ in range(ATTACK_STEPS):
        uphill = zip(edge_weights, moved, gradients(moved), strict=True)
        changes = ((start, rows - start + 2 * largest / ATTACK_STEPS * g.sign()) for start, rows, g in uphill)
        moved = [_normalised(start + change.clamp(-largest, largest)) for start, change in changes]
    return moved


def _normalised(rows: Tensor) -> Tensor:
    """Clip to [0, 1], and let each row add up to 1."""
    clipped = rows.clamp(1e-6, 1)
    return clipped / clipped.sum(-1, keepdim=True)


SMOOTHINGS = {"random": random_smoothing, "adversarial": adversarial_smoothing}
