"""Evaluates objectives of two models: at other parameters, with gradients that may be missing, without a trace."""

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


class _Held(nn.Module):
    """An objective as a module, so that `functional_call` can exchange the tensors of the model that it calls."""

    def __init__(self, objective: Objective, state: State, name: str):
        super().__init__()
        self.objective = objective
        self.state = state
        self.lower_model = state.lower_model
        self.name = name

    def forward(self) -> Tensor:
        return evaluate(self.objective, self.state, self.name)


def evaluate_at(objective: Objective, parameters: dict[nn.Parameter, Tensor], state: State, name: str) -> Tensor:
    """Return an objective at other parameters of its lower model.

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


def trained(upper_model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that require gradients; ValueError if there is none."""
    alphas = [parameter for parameter in upper_model.parameters() if parameter.requires_grad]
    if not alphas:
        raise ValueError("the upper model has no parameter that requires gradients.")
    return alphas


def check_auxiliary_model(auxiliary_model: _MonkeyPatchBase, lower_model: nn.Module) -> None:
    """Raise ValueError unless the auxiliary model is the lower model as `higher` wraps it, without higher gradients."""
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


def virtual_weights(lower_model: nn.Module, auxiliary_model: _MonkeyPatchBase) -> dict[nn.Parameter, Tensor]:
    """Return w′ for each trained parameter of the lower model; ValueError as `check_auxiliary_model`."""
    check_auxiliary_model(auxiliary_model, lower_model)
    pairs = zip(lower_model.parameters(), auxiliary_model.parameters(), strict=True)
    return {w: w_prime for w, w_prime in pairs if w.requires_grad}


def names_of(parameters: Collection[nn.Parameter], model: nn.Module) -> str:
    """Return the name of the first of these parameters, and the number of the others."""
    first, *more = [name for name, w in model.named_parameters() if w in set(parameters)]
    return f"{first} (and {len(more)} more)" if more else first


def leaves_of(loss: Tensor) -> set[Tensor]:
    """Return the tensors that a loss has a gradient for: the leaves of its graph. No gradient is computed."""
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


def evaluate(objective: Objective, state: State, name: str) -> Tensor:
    """Return what an objective returns; ValueError, with its name, if that is no scalar tensor."""
    loss = objective(state)
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        shape = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(f"the {name} must return a scalar tensor, but its result is {shape}.")
    return loss


def check_finite(value: Tensor, complaint: str) -> None:
    """Raise FloatingPointError if a value is not finite, on a CPU alone: elsewhere, to look at it is to wait for it."""
    if value.device.type == "cpu" and not torch.isfinite(value):
        raise FloatingPointError(complaint.format(value.item()))


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return all values as one vector."""
    return torch.cat([*map(torch.ravel, tensors)])


def gradients_of(
    loss: Tensor, tensors: Sequence[Tensor], create_graph: bool = False, retain_graph: bool | None = None
) -> list[Tensor]:
    """Return the gradients of a loss, 0 where it does not depend on a tensor; graphs as in `torch.autograd.grad`."""
    wanted = [tensor for tensor in tensors if tensor.requires_grad]
    if not loss.requires_grad or not wanted:
        return [torch.zeros_like(tensor) for tensor in tensors]
    graphs: dict[str, Any] = {"create_graph": create_graph, "retain_graph": retain_graph}
    found = iter(torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True, **graphs))
    return [next(found) if tensor.requires_grad else torch.zeros_like(tensor) for tensor in tensors]


def add_gradients(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    """Add gradients to the `.grad` of parameters."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        # A new tensor: autograd may hand out one expanded tensor for several parameters.
        before = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = before + gradient


def random_devices(tensors: Sequence[Tensor]) -> dict[str, Any]:
    """Return the arguments of `fork_rng`: the generators of the CPU and of the tensors' devices (`meta` has none)."""
    elsewhere = {tensor.device for tensor in tensors if tensor.device.type not in ("cpu", "meta")}
    types = {device.type for device in elsewhere} or {"cuda"}
    return {"devices": sorted(device.index for device in elsewhere), "device_type": types.pop()}
