"""The largest eigenvalue of the Hessian of the upper loss in the alphas, whose growth foretells a search that fails.

Source: Zela et al., "Understanding and Robustifying Differentiable Architecture Search", ICLR 2020, section 4.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from nas.bilevel.evaluation import flat, gradients_of

EVERY = 2  # epochs between two evaluations
WINDOW = 5  # evaluations in a mean
BACK = 4  # evaluations between two means, and to go back
LANCZOS_STEPS = 20


def largest_eigenvalue(
    loss: Tensor, parameters: Sequence[Tensor], mean: Callable[[list[Tensor]], list[Tensor]] = list
) -> float:
    """Return the largest eigenvalue of the Hessian of a loss, by the method of Lanczos.

    Args:
        loss: a scalar with a graph that can be differentiated twice.
        parameters: tensors that the loss depends on.
        mean: over the processes, of which each has its part of the loss.
    """
    gradient = flat(gradients_of(loss, parameters, create_graph=True))
    draws = torch.Generator().manual_seed(0)
    rest, directions, products = torch.randn(len(gradient), generator=draws).to(gradient), [], []
    while len(products) < min(LANCZOS_STEPS, len(gradient)) and rest.norm() > 1e-6 * (products or [rest])[-1].norm():
        directions.append(rest / rest.norm())
        products.append(flat(mean(gradients_of(gradient @ directions[-1], parameters, retain_graph=True))))
        basis = torch.stack(directions)
        rest = products[-1] - basis.t() @ (basis @ products[-1])
        rest = rest - basis.t() @ (basis @ rest)  # once more against rounding
    return torch.linalg.eigvalsh(torch.stack(directions) @ torch.stack(products).t()).max().item()


class PastAlphas:
    """The alphas of the last evaluations, to go back to.

    Attributes:
        tensors: for each parameter its values, (BACK + 1, ...): a part of the state of a run.
    """

    def __init__(self, alphas: nn.Module):
        self.alphas = alphas
        self.tensors = [torch.zeros(BACK + 1, *alpha.shape).to(alpha) for alpha in alphas.parameters()]

    @torch.no_grad()
    def keep(self, number: int) -> None:
        """Keep the alphas of an evaluation, counted from 0."""
        for past, alpha in zip(self.tensors, self.alphas.parameters(), strict=True):
            past[number % (BACK + 1)] = alpha

    @torch.no_grad()
    def go_back(self, number: int) -> None:
        """Give the alphas the values of one of the last evaluations."""
        for past, alpha in zip(self.tensors, self.alphas.parameters(), strict=True):
            alpha.copy_(past[number % (BACK + 1)])


def has_grown(eigenvalues: Sequence[float], growth: float) -> bool:
    """Return whether the mean of the last evaluations is larger than that of BACK evaluations ago by this factor."""
    now, before = ([*eigenvalues[:end]][-WINDOW:] for end in (len(eigenvalues), len(eigenvalues) - BACK))
    return len(eigenvalues) > BACK and sum(now) / len(now) > growth * sum(before) / len(before)
