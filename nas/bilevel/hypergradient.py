"""Hypergradients of a bilevel problem: how the upper loss changes with the upper model, through the lower model's step.

    minimise over α   L_upper(w′(α), α),   w′(α) = w − ξ ∇_w L_lower(w, α)

`Onestage` is the finite-difference form of DARTS (Liu, Simonyan, Yang, ICLR 2019, equations 7 and 8), `FirstOrder` its
value for ξ = 0. Neither knows what the models are.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from higher.patch import _MonkeyPatchBase
from torch import Tensor, nn

from nas.bilevel.evaluation import (
    Objective,
    State,
    add_gradients,
    check_finite,
    evaluate,
    evaluate_at,
    flat,
    gradients_of,
    leaves_of,
    names_of,
    random_devices,
    trained,
    virtual_weights,
)

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
        w_prime = virtual_weights(self.lower_model, auxiliary_model)
        loss = self._upper_loss(validate_data, validate_target, auxiliary_model, w_prime)
        alphas = trained(self.upper_model)
        loss, *gradients = self.reduce([loss.detach(), *gradients_of(loss, alphas)])
        check_finite(loss, "the upper objective is {}.")
        add_gradients(alphas, gradients)
        return loss

    def _upper_loss(
        self, data: Any, target: Any, auxiliary_model: _MonkeyPatchBase, w_prime: dict[nn.Parameter, Tensor]
    ) -> Tensor:
        """L_upper(w′, α), once it is sure that w′ is what the auxiliary model computes with."""
        trained(self.upper_model)  # raises before any pass; a pass may register more
        state = State(data, target, self.upper_model, auxiliary_model)
        loss = evaluate(self.upper_objective, state, "upper objective")
        leaves = leaves_of(loss)
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
                f"the upper objective depends on the lower model's parameter {names_of(missed, self.lower_model)}, but "
                "not through the auxiliary model, so its gradient would be missing. higher exchanges what forward() "
                "reads from its module, not what a hook, a plain attribute, a list or a closure holds: use weight_norm "
                "and spectral_norm of torch.nn.utils.parametrizations, not of torch.nn.utils, read the parameter from "
                "its module, and detach it where it is a constant."
            )
        return loss

    def _leaves_again(self, state: State, parameters: dict[nn.Parameter, Tensor]) -> set[Tensor]:
        """What the upper objective depends on, at other parameters of its lower model; it leaves no trace."""
        with torch.random.fork_rng(**random_devices([*self.lower_model.parameters()])):
            return leaves_of(evaluate_at(self.upper_objective, parameters, state, "upper objective"))


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
            everywhere, and with the lower losses and both terms, which are linear in what is left to average. The
            objectives are then those of the part, weighted so that their mean is that of the batch.

    Attributes:
        ratio: the norm of the second term over that of the first one in the last call, a scalar tensor.
        compares: whether to compute the second term of `Exact` as well, which takes longer and changes nothing else.
        cosine: of the angle between that one and the second term by finite differences, a scalar tensor.
    """

    compares = False

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
        w_prime = virtual_weights(self.lower_model, auxiliary_model)
        upper_loss = self._upper_loss(validate_data, validate_target, auxiliary_model, w_prime)
        alphas = trained(self.upper_model)
        gradients = gradients_of(upper_loss, [*alphas, *w_prime.values()])
        alpha_gradients = gradients[: len(alphas)]
        upper_loss, *v = self.reduce([upper_loss.detach(), *gradients[len(alphas) :]])
        check_finite(upper_loss, "the upper objective is {}.")

        norm = torch.nn.utils.get_total_norm(v)
        check_finite(norm, "the gradient of the upper objective with respect to w′ has the norm {}.")
        state = State(train_data, train_target, self.upper_model, self.lower_model)
        arguments = dict(zip(w_prime, v, strict=True)), norm, state, alphas
        exact: list[Tensor] = []
        if self.compares:
            with torch.random.fork_rng(**random_devices([*w_prime])):
                exact = self._exact_second_term(*arguments)[1]
        lower_losses, second = self._second_term(*arguments)
        parts = lower_losses, alpha_gradients, second, exact
        reduced = iter(self.reduce([tensor for part in parts for tensor in part]))
        lower_losses, first, second, exact = ([next(reduced) for _ in part] for part in parts)
        for lower_loss in lower_losses:
            check_finite(lower_loss, "the lower objective is {}.")
        if exact:
            self.cosine = torch.cosine_similarity(flat(second), flat(exact), 0)
        first_norm = torch.nn.utils.get_total_norm(first).clamp(min=1e-30)
        self.ratio = torch.nn.utils.get_total_norm(second) / first_norm
        add_gradients(alphas, [one - two for one, two in zip(first, second, strict=True)])
        return upper_loss

    def _second_term(
        self, v: dict[nn.Parameter, Tensor], norm: Tensor, state: State, alphas: Sequence[nn.Parameter]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The values of the lower objective, and ξ ∇²_(α,w) L_lower(w, α) · v for each α."""
        # For a zero vector w⁺ = w⁻ = w, and the second term is 0.
        norm = torch.where(norm > 0, norm, 1)
        # ε v as r (v / ‖v‖): ε itself overflows for a vector that is short enough.
        step = {w: self.r * (part / norm) for w, part in v.items()}
        # fork_rng gives the random state back, so that the second pass draws what the first one drew.
        with torch.random.fork_rng(**random_devices([*v])):
            loss_plus, plus = self._gradients_at(1, step, state, alphas)
        loss_minus, minus = self._gradients_at(-1, step, state, alphas)
        scale = norm / (2 * self.r)
        second = [self.lower_learning_rate * (p - m) * scale for p, m in zip(plus, minus, strict=True)]
        return [loss_plus, loss_minus], second

    def _exact_second_term(
        self, v: dict[nn.Parameter, Tensor], norm: Tensor, state: State, alphas: Sequence[nn.Parameter]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The same as the gradient with respect to α of ∇_w L_lower(w, α) · v (Pearlmutter, 1994)."""
        w = {parameter: parameter.detach().requires_grad_() for parameter in v}
        loss = evaluate_at(self.lower_objective, w, state, "lower objective")
        self._check_lower_loss(loss, [*alphas, *w.values()])
        gradients = gradients_of(loss, list(w.values()), create_graph=True)
        along_v = sum(((gradient * part).sum() for gradient, part in zip(gradients, v.values(), strict=True)), norm * 0)
        return [loss.detach()], [self.lower_learning_rate * product for product in gradients_of(along_v, alphas)]

    def _gradients_at(
        self, sign: int, step: dict[nn.Parameter, Tensor], state: State, alphas: Sequence[nn.Parameter]
    ) -> tuple[Tensor, list[Tensor]]:
        """L_lower(w + sign · step, α) and its gradient with respect to α."""
        parameters = {w: w.detach() + sign * part for w, part in step.items()}
        loss = evaluate_at(self.lower_objective, parameters, state, "lower objective")
        if sign > 0:  # both passes have the same graph
            self._check_lower_loss(loss, alphas)
        return loss.detach(), gradients_of(loss, alphas)

    def _check_lower_loss(self, loss: Tensor, known: Sequence[Tensor]) -> None:
        """Raise ValueError if the loss depends on a parameter of the lower model itself; `known` are other leaves."""
        strange = leaves_of(loss).difference(known)
        # A parameter may be one that the pass has registered.
        missed = [w for w in self.lower_model.parameters() if w in strange] if strange else []
        if missed:
            raise ValueError(
                f"the lower objective depends on the lower model's parameter {names_of(missed, self.lower_model)}, but "
                "not through the module that it belongs to, so it would not be perturbed: read the parameter from its "
                "module, not from a plain attribute, a list or a closure, and detach it where it is a constant."
            )


class Exact(Onestage):
    """Exact is the hypergradient of `Onestage` by a second backward pass in place of finite differences.

    It takes more memory and time, and sees no kink: where a ReLU switches between w⁺ and w⁻, only `Onestage` notices.
    """

    _second_term = Onestage._exact_second_term
