"""Relaxations: from raw alphas to the edge weights that a supernet computes with, each row of which adds up to 1."""

from collections.abc import Iterable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Dirichlet


class Relaxation(Protocol):
    """Relaxation is how the discrete choice of a primitive on each edge becomes continuous.

    All tensors have the shape (edges, primitives).
    """

    def start(self, raw: Tensor) -> None:
        """Give the raw alphas, which are standard normal, the values that a search begins with."""
        ...

    def draw(self, raw: Tensor) -> Tensor:
        """Return the edge weights of one pass, with gradients."""
        ...

    def logits(self, raw: Tensor) -> Tensor:
        """Return what the mean edge weights are the softmax of: evaluation and derivation use these."""
        ...


class Softmax:
    """The softmax of the alphas (Liu, Simonyan, Yang, "DARTS", ICLR 2019, equation 2)."""

    def start(self, raw: Tensor) -> None:
        raw.mul_(1e-3)

    def draw(self, raw: Tensor) -> Tensor:
        return raw.softmax(-1)

    def logits(self, raw: Tensor) -> Tensor:
        return raw


class DirichletDraws:
    """Edge weights are drawn from Dirichlet(elu(α) + 1) in each pass (Chen et al., "DrNAS", ICLR 2021, equation 4)."""

    def start(self, raw: Tensor) -> None:
        raw.mul_(1e-3)

    def draw(self, raw: Tensor) -> Tensor:
        return Dirichlet(F.elu(raw) + 1, validate_args=False).rsample()

    def logits(self, raw: Tensor) -> Tensor:
        return (F.elu(raw) + 1).log()


class Simplex:
    """The alphas are the edge weights themselves (Li et al., "GAEA", ICLR 2021); see `ExponentiatedGradient`."""

    def start(self, raw: Tensor) -> None:
        raw.fill_(1 / raw.shape[-1])

    def draw(self, raw: Tensor) -> Tensor:
        return raw

    def logits(self, raw: Tensor) -> Tensor:
        return raw.log()


class ExponentiatedGradient(torch.optim.Optimizer):
    """Exponentiated gradient on the simplex: α ← α · exp(−η g), each row then divided by its sum (GAEA, equation 7)."""

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # pyrefly: ignore
        """Move each parameter; its gradient is set."""
        for group in self.param_groups:
            for alpha in group["params"]:
                # A softmax of logarithms: exp(−η g) alone may overflow.
                alpha.copy_((alpha.log() - group["lr"] * alpha.grad).log_softmax(-1).clamp(min=-60).exp())
                alpha.div_(alpha.sum(-1, keepdim=True))


RELAXATIONS: dict[str, type[Relaxation]] = {"softmax": Softmax, "dirichlet": DirichletDraws, "simplex": Simplex}
