"""Hypergradients of a bilevel problem: how the upper loss changes with the upper model, through the lower model's step.

    minimise over α   L_upper(w′(α), α),   w′(α) = w − ξ ∇_w L_lower(w, α)

`Onestage` is the finite-difference form of DARTS (Liu, Simonyan, Yang, ICLR 2019, equations 7 and 8), `FirstOrder` its
value for ξ = 0. Neither knows what the models are.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from higher.patch import _MonkeyPatchBase
from torch import Tensor, nn


class State(NamedTuple):
    """State is what an objective sees: one batch and the two models."""

    data: Any
    target: Any
    upper_model: nn.Module
    lower_model: nn.Module


Objective = Callable[[State], Tensor]
Reduce = Callable[[list[Tensor]], list[Tensor]]


def _alone(tensors: list[Tensor]) -> list[Tensor]:
    return tensors


class FirstOrder:
    """FirstOrder is the hypergradient for ξ = 0: ∇_α L_upper(w′, α), w′ held fixed.

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
        w_prime = _virtual_weights(self.lower_model, auxiliary_model)
        loss = self._upper_loss(validate_data, validate_target, auxiliary_model, w_prime)
        alphas = _trained(self.upper_model)
        loss, *gradients = self.reduce([loss.detach(), *_gradients(loss, alphas)])
        _check_finite(loss, "the upper objective is {}.")
        _add_gradients(alphas, gradients)
        return loss

    def _upper_loss(
        self, data: Any, target: Any, auxiliary_model: _MonkeyPatchBase, w_prime: dict[nn.Parameter, Tensor]
    ) -> Tensor:
        """L_upper(w′, α), once it is sure that w′ is what the auxiliary model computes with."""
        _trained(self.upper_model)  # raises before any pass; a pass may register more
        state = State(data, target, self.upper_model, auxiliary_model)
        loss = _evaluate(self.upper_objective, state, "upper objective")
        leaves = _leaves(loss)
        strange = leaves.difference(w_prime.values())
        missed = [w for w in w_prime if w in strange]
        unused = {w for w, tensor in w_prime.items() if tensor not in leaves}
        if unused and not missed:
            # The objective does not use them, or the wrapper does not reach them: the lower model itself can tell.
            own = {w: tensor.detach().requires_grad_(w in unused) for w, tensor in w_prime.items()}
            leaves = self._leaves_again(state._replace(lower_model=self.lower_model), own)
            missed = [w for w in unused if own[w] in leaves]
            if missed:  # or chance left them out before: the wrapper draws the same numbers now
                leaves = self._leaves_again(state, {})
                missed = [w for w in missed if w_prime[w] not in leaves]
        if missed:
            raise ValueError(
                f"the upper objective depends on the lower model's parameter {_names(missed, self.lower_model)}, but "
                "not through the auxiliary model, so its gradient would be missing. higher exchanges what forward() "
                "reads from its module, not what a hook, a plain attribute, a list or a closure holds: use weight_norm "
                "and spectral_norm of torch.nn.utils.parametrizations, not of torch.nn.utils, read the parameter from "
                "its module, and detach it where it is a constant."
            )
        return loss

    def _leaves_again(self, state: State, parameters: dict[nn.Parameter, Tensor]) -> set[Tensor]:
        """What the upper objective depends on, at other parameters of its lower model; it leaves no trace."""
        with torch.random.fork_rng(**_random_devices([*self.lower_model.parameters()])):
            return _leaves(_evaluate_at(self.upper_objective, parameters, state, "upper objective"))


class Onestage(FirstOrder):
    """Onestage is the hypergradient through one step of the lower model, by finite differences.

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
        were, its modules have the attributes that they had, and if it raises, the upper model's gradients are what they
        were too. Random layers draw the same numbers at w⁺ and w⁻. A parameter that an objective does not use has the
        gradient 0 there; where the upper objective does not use one, it runs once more, without a backward pass, on the
        lower model itself, to tell that from a parameter that the auxiliary model does not exchange.

        Args:
            validate_data, validate_target: the batch of the upper objective.
            auxiliary_model: the lower model wrapped by `higher`, at w′, without higher gradients.
            train_data, train_target: the batch of the lower objective.

        Returns:
            The upper loss at (w′, α): a scalar without a graph.

        Raises:
            ValueError: no upper parameter requires gradients; the auxiliary model tracks higher gradients (the second
                term would count twice) or is not a wrapping of the lower model; an objective depends on a parameter of
                the lower model, which is named, where `higher` does not exchange it for w′, or `functional_call` for
                w±, as with `torch.nn.utils.weight_norm`; an objective is not scalar.
            FloatingPointError: an objective, or the gradient with respect to w′, is not finite, in all processes alike.
                On a CPU alone: other devices are never waited for, and the gradients are then not finite either.
        """
        w_prime = _virtual_weights(self.lower_model, auxiliary_model)
        upper_loss = self._upper_loss(validate_data, validate_target, auxiliary_model, w_prime)
        alphas = _trained(self.upper_model)
        gradients = _gradients(upper_loss, [*alphas, *w_prime.values()])
        alpha_gradients = gradients[: len(alphas)]
        upper_loss, *v = self.reduce([upper_loss.detach(), *gradients[len(alphas) :]])
        _check_finite(upper_loss, "the upper objective is {}.")

        norm = torch.nn.utils.get_total_norm(v)
        _check_finite(norm, "the gradient of the upper objective with respect to w′ has the norm {}.")
        # For a zero vector w⁺ = w⁻ = w, and the second term is 0.
        norm = torch.where(norm > 0, norm, 1)
        # ε v as r (v / ‖v‖): ε itself overflows for a vector that is short enough.
        step = {w: self.r * (part / norm) for w, part in zip(w_prime, v, strict=True)}
        state = State(train_data, train_target, self.upper_model, self.lower_model)
        # fork_rng gives the random state back, so that the second pass draws what the first one drew.
        with torch.random.fork_rng(**_random_devices([*w_prime])):
            loss_plus, plus = self._gradients_at(1, step, state, alphas)
        loss_minus, minus = self._gradients_at(-1, step, state, alphas)
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
        self, sign: int, step: dict[nn.Parameter, Tensor], state: State, alphas: Sequence[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]]:
        """L_lower(w + sign · step, α) and its gradient with respect to α."""
        parameters = {w: w.detach() + sign * part for w, part in step.items()}
        loss = _evaluate_at(self.lower_objective, parameters, state, "lower objective")
        # Both passes have the same graph. A parameter may be one that the pass has registered.
        strange = _leaves(loss).difference(alphas) if sign > 0 else set()
        missed = [w for w in self.lower_model.parameters() if w in strange] if strange else []
        if missed:
            raise ValueError(
                f"the lower objective depends on the lower model's parameter {_names(missed, self.lower_model)}, but "
                "not through the module that it belongs to, so it would not be perturbed: read the parameter from its "
                "module, not from a plain attribute, a list or a closure, and detach it where it is a constant."
            )
        return loss.detach(), _gradients(loss, alphas)


class _Held(nn.Module):
    """An objective as a module, so that `functional_call` can exchange the tensors of the model that it calls."""

    def __init__(self, objective: Objective, state: State, name: str):
        super().__init__()
        self.objective = objective
        self.state = state
        self.lower_model = state.lower_model
        self.name = name

    def forward(self) -> Tensor:
        return _evaluate(self.objective, self.state, self.name)


def _evaluate_at(objective: Objective, parameters: dict[nn.Parameter, Tensor], state: State, name: str) -> Tensor:
    """An objective at other parameters of its lower model.

    Parameters and buffers are exchanged for others while the objective runs, never written to. Attributes are given
    back: one that keeps what a module computed from its weight would hand it to the next pass.
    """
    held = _Held(objective, state, name)
    new = parameters | {buffer: buffer.clone() for buffer in state.lower_model.buffers()}
    exchanged, attributes = {}, []
    # Each place by itself: where a module has two names, `functional_call` would give back a tensor of ours.
    for prefix, module in state.lower_model.named_modules(prefix="lower_model"):
        for tensors in (module.named_parameters, module.named_buffers):
            places = tensors(prefix, recurse=False, remove_duplicate=False)
            exchanged |= {place: new[tensor] for place, tensor in places if tensor in new}
        attributes.append((vars(module), dict(vars(module))))
    try:
        return torch.func.functional_call(held, exchanged, (), tie_weights=False)
    finally:
        for now, before in attributes:
            for added in now.keys() - before.keys():
                del now[added]
            now.update(before)


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
        own, other = (
            {name: tuple(w.shape) for name, w in model.named_parameters()} for model in (lower_model, auxiliary_model)
        )
        in_one = [name for name in own | other if (name in own) != (name in other)]
        names = ", ".join((in_one or [name for name in own if own[name] != other[name]])[:3])
        raise ValueError(
            f"the auxiliary model is not a wrapping of the lower model (parameters: {len(shapes[1])} against "
            f"{len(shapes[0])}, or other shapes{names and f': {names}'})."
        )


def _virtual_weights(lower_model: nn.Module, auxiliary_model: _MonkeyPatchBase) -> dict[nn.Parameter, Tensor]:
    """w′ for each trained parameter of the lower model."""
    _check_auxiliary_model(auxiliary_model, lower_model)
    pairs = zip(lower_model.parameters(), auxiliary_model.parameters(), strict=True)
    return {w: w_prime for w, w_prime in pairs if w.requires_grad}


def _names(parameters: Collection[nn.Parameter], model: nn.Module) -> str:
    first, *more = [name for name, w in model.named_parameters() if w in set(parameters)]
    return f"{first} (and {len(more)} more)" if more else first


def _leaves(loss: Tensor) -> set[Tensor]:
    """The tensors that a loss has a gradient for: the leaves of its graph. No gradient is computed."""
    if loss.grad_fn is None:
        return {loss}
    found, seen, waiting = set(), set(), [loss.grad_fn]
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None and node not in seen:
                seen.add(node)
                waiting.append(node)
                if (leaf := getattr(node, "variable", None)) is not None:
                    found.add(leaf)
    return found


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
    """Return the gradients of a loss; 0 where it does not depend on a tensor."""
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
