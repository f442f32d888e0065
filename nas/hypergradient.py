"""Hypergradients of a bilevel problem: how the upper loss changes with the upper model, through the lower model's step.

    minimise over α   L_upper(w′(α), α),   w′(α) = w − ξ ∇_w L_lower(w, α)

`Onestage` is the finite-difference form of DARTS (Liu, Simonyan, Yang, ICLR 2019, equations 7 and 8), `FirstOrder` its
value for ξ = 0. Neither knows what the models are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from higher.patch import _MonkeyPatchBase
from torch import Tensor, nn


class State(NamedTuple):
    """What an objective sees: one batch and the two models."""

    data: Any
    target: Any
    upper_model: nn.Module
    lower_model: nn.Module


Objective = Callable[[State], Tensor]
Reduce = Callable[[list[Tensor]], list[Tensor]]


def _alone(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


class FirstOrder:
    """The hypergradient for ξ = 0: ∇_α L_upper(w′, α), w′ held fixed.

    Takes the arguments of `Onestage`, so that one can stand for the other; it uses the upper objective alone.
    """

    def __init__(
        self,
        upper_objective: Objective,
        upper_model: nn.Module,
        lower_objective: Objective,
        lower_model: nn.Module,
        lower_learning_rate: float | Tensor,
        r: float = 1e-2,
        reduce: Reduce = _alone,
    ):
        self.upper_objective = upper_objective
        self.upper_model = upper_model
        self.lower_objective = lower_objective
        self.lower_model = lower_model
        self.lower_learning_rate = lower_learning_rate
        self.r = r
        self.reduce = reduce

    @torch.enable_grad()
    def compute_gradients(
        self,
        validate_data: Any,
        validate_target: Any,
        auxiliary_model: _MonkeyPatchBase,
        train_data: Any,
        train_target: Any,
    ) -> Tensor:
        """See `Onestage.compute_gradients`; the training batch is not used."""
        alphas = _trained(self.upper_model)
        loss = self._upper_loss(validate_data, validate_target, auxiliary_model)
        loss, *gradients = self.reduce([loss.detach(), *_gradients(loss, alphas)])
        _check_finite(loss, "the upper objective is {}.")
        _add_gradients(alphas, gradients)
        return loss

    def _upper_loss(self, validate_data: Any, validate_target: Any, auxiliary_model: _MonkeyPatchBase) -> Tensor:
        _check_auxiliary_model(auxiliary_model, self.lower_model)
        state = State(validate_data, validate_target, self.upper_model, auxiliary_model)
        return _evaluate(self.upper_objective, state, "upper objective")


class Onestage(FirstOrder):
    """The hypergradient through one step of the lower model, by finite differences.

        ∇_α L_upper(w′, α) − ξ · (∇_α L_lower(w⁺, α) − ∇_α L_lower(w⁻, α)) / (2 ε)
        w± = w ± ε v,   v = ∇_w′ L_upper(w′, α),   ε = r / ‖v‖₂

    Source: DARTS (ICLR 2019), equations 7 and 8. It takes three passes forward and backward, one of them
    to w′ and α and two to α alone; no second derivative and no matrix-vector product.

    Args:
        upper_objective: from a `State` to a scalar loss; its lower model is the auxiliary model.
        upper_model: its parameters are α.
        lower_objective: from a `State` to a scalar loss; its lower model is `lower_model`.
        lower_model: its parameters are w.
        lower_learning_rate: ξ of the step that made w′ from w, a number or a scalar tensor. Set the attribute when a
            schedule moves it.
        r: length of the perturbation of w, as a Euclidean norm.
        reduce: where several processes compute on a part of each batch: from a list of tensors to the list of their
            means over the processes. It is called twice: with the upper loss and v, which makes ε and w± the same
            everywhere, and with both lower losses and the hypergradient, which is linear in what is left to average.
            The objectives are then those of the part, weighted so that their mean is that of the batch.
    """

    @torch.enable_grad()
    def compute_gradients(
        self,
        validate_data: Any,
        validate_target: Any,
        auxiliary_model: _MonkeyPatchBase,
        train_data: Any,
        train_target: Any,
    ) -> Tensor:
        """Add the hypergradient to the `.grad` of the upper model's parameters.

        Whether it returns or raises, parameters, buffers and gradients of the lower model are bit for bit what they
        were, and if it raises, so are the upper model's gradients. Random layers draw the same numbers at w⁺ and w⁻. A
        parameter that an objective does not use has the gradient 0 there.

        Args:
            validate_data, validate_target: the batch of the upper objective.
            auxiliary_model: the lower model wrapped by `higher`, at w′, without higher gradients.
            train_data, train_target: the batch of the lower objective.

        Returns:
            The upper loss at (w′, α): a scalar without a graph.

        Raises:
            ValueError: no upper parameter requires gradients; the auxiliary model tracks higher gradients (the second
                term would count twice) or is not a wrapping of the lower model; an objective is not scalar.
            FloatingPointError: an objective, or the gradient with respect to w′, is not finite, in all processes alike.
                On a CPU alone: other devices are never waited for, and the gradients are then not finite either.
        """
        alphas = _trained(self.upper_model)
        upper_loss = self._upper_loss(validate_data, validate_target, auxiliary_model)
        names, w_prime = _virtual_weights(self.lower_model, auxiliary_model)
        gradients = _gradients(upper_loss, [*alphas, *w_prime])
        alpha_gradients = gradients[: len(alphas)]
        upper_loss, *v = self.reduce([upper_loss.detach(), *gradients[len(alphas) :]])
        _check_finite(upper_loss, "the upper objective is {}.")

        norm = torch.nn.utils.get_total_norm(v)
        _check_finite(norm, "the gradient of the upper objective with respect to w′ has the norm {}.")
        # For a zero vector w⁺ = w⁻ = w, and the second term is 0.
        norm = torch.where(norm > 0, norm, 1)
        # ε v as r (v / ‖v‖): ε itself overflows for a vector that is short enough.
        step = [self.r * (part / norm) for part in v]
        state = State(train_data, train_target, self.upper_model, self.lower_model)
        # fork_rng gives the random state back, so that the second pass draws what the first one drew.
        with torch.random.fork_rng(**_random_devices(w_prime)):
            loss_plus, plus = self._gradients_at(1, names, step, state, alphas)
        loss_minus, minus = self._gradients_at(-1, names, step, state, alphas)
        alpha_gradients = [
            gradient - self.lower_learning_rate * (p - m) * (norm / (2 * self.r))
            for gradient, p, m in zip(alpha_gradients, plus, minus, strict=True)
        ]
        loss_plus, loss_minus, *alpha_gradients = self.reduce([loss_plus, loss_minus, *alpha_gradients])
        for lower_loss in (loss_plus, loss_minus):
            _check_finite(lower_loss, "the lower objective is {}.")
        _add_gradients(alphas, alpha_gradients)
        return upper_loss

    def _gradients_at(
        self, sign: int, names: Sequence[str], step: Sequence[Tensor], state: State, alphas: Sequence[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]]:
        """L_lower(w + sign · step, α) and its gradient with respect to α.

        The lower model's parameters and buffers are exchanged for others while the objective runs, never written to.
        """
        parameters = dict(self.lower_model.named_parameters())
        tensors = {name: parameter.detach() for name, parameter in parameters.items()}
        tensors |= {name: buffer.clone() for name, buffer in self.lower_model.named_buffers()}
        tensors |= {name: parameters[name].detach() + sign * part for name, part in zip(names, step, strict=True)}
        held = _Held(self.lower_objective, self.lower_model)
        exchanged = {f"lower_model.{name}": tensor for name, tensor in tensors.items()}
        loss = torch.func.functional_call(held, exchanged, (state,))
        return loss.detach(), _gradients(loss, alphas)


class _Held(nn.Module):
    """An objective as a module, so that `functional_call` can exchange the tensors of the model that it calls."""

    def __init__(self, objective: Objective, lower_model: nn.Module):
        super().__init__()
        self.objective = objective
        self.lower_model = lower_model

    def forward(self, state: State) -> Tensor:
        return _evaluate(self.objective, state, "lower objective")


def _trained(upper_model: nn.Module) -> list[nn.Parameter]:
    alphas = [parameter for parameter in upper_model.parameters() if parameter.requires_grad]
    if not alphas:
        raise ValueError("the upper model has no parameter that requires gradients.")
    return alphas


def _check_auxiliary_model(auxiliary_model: _MonkeyPatchBase, lower_model: nn.Module) -> None:
    if not isinstance(auxiliary_model, _MonkeyPatchBase):
        raise ValueError(
            f"the auxiliary model is a {type(auxiliary_model).__name__}, "
            "not the lower model wrapped by higher.monkeypatch."
        )
    if auxiliary_model.track_higher_grads or any(w.grad_fn is not None for w in auxiliary_model.parameters()):
        raise ValueError(
            "the auxiliary model tracks higher gradients, so the second term would count twice: "
            "wrap the lower model, and take the step, with track_higher_grads=False."
        )
    shapes = [[tuple(w.shape) for w in model.parameters()] for model in (lower_model, auxiliary_model)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"the auxiliary model is not a wrapping of the lower model: {len(shapes[1])} parameters against "
            f"{len(shapes[0])}, or other shapes."
        )


def _virtual_weights(lower_model: nn.Module, auxiliary_model: _MonkeyPatchBase) -> tuple[list[str], list[Tensor]]:
    """Names of the lower model's trained parameters, and w′ for each."""
    pairs = zip(lower_model.named_parameters(), auxiliary_model.parameters(), strict=True)
    trained = [(name, w_prime) for (name, parameter), w_prime in pairs if parameter.requires_grad]
    return [name for name, _ in trained], [w_prime for _, w_prime in trained]


def _evaluate(objective: Objective, state: State, name: str) -> Tensor:
    loss = objective(state)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        shape = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"the {name} must return a scalar tensor, but its result is {shape}.")
    return loss


def _check_finite(value: Tensor, complaint: str) -> None:
    """On a CPU alone: elsewhere, to look at a value is to wait for all that was begun."""
    if value.device.type == "cpu" and not torch.isfinite(value):
        raise FloatingPointError(complaint.format(value.item()))


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of a loss, 0 where it does not depend on a tensor."""
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not loss.requires_grad or not wanted:
        return [torch.zeros_like(tensor) for tensor in tensors]
    found = iter(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True))
    return [next(found) if tensor.requires_grad else torch.zeros_like(tensor) for tensor in tensors]


def _add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # A new tensor: autograd may hand out one expanded tensor for several parameters.
        before = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = before + gradient


def _random_devices(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Return the arguments of `fork_rng`: the generators of the CPU and of the tensors' devices (`meta` has none)."""
    elsewhere = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    types = {device.type for device in elsewhere} or {"cuda"}
    return {"devices": sorted(device.index for device in elsewhere), "device_type": types.pop()}
