"""A step of the search: alphas and weights move, as published (DARTS, ICLR 2019, algorithm 1) or in a quicker way."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import higher
import torch
from torch import Tensor

from nas.bilevel.hypergradient import FirstOrder, Onestage, State
from nas.config.flags import SearchConfig
from nas.distributed import ALONE, Processes
from nas.models.batch_norm import synchronise
from nas.models.supernet import Alphas, Supernet
from nas.training.steps import Target, average_step, cross_entropy, scalars_to_host, start_states

Batch = tuple[Tensor, Target]  # images, and what they are


class StepResult(NamedTuple):
    """Scalars of one step, on their device."""

    lower_loss: Tensor
    lower_gradient_norm: Tensor
    num_correct: Tensor
    upper_loss: Tensor
    upper_gradient_norm: Tensor


def objective(state: State) -> Tensor:
    """Cross entropy of the supernet; the same at both levels."""
    return cross_entropy(state.lower_model(state.data, state.upper_model()), state.target)


class Models(NamedTuple):
    """The two models, and what moves them."""

    alphas: Alphas
    supernet: Supernet
    alpha_optimizer: torch.optim.Adam
    weight_optimizer: torch.optim.SGD
    hypergradient: FirstOrder | Onestage
    auxiliary: Any  # the supernet as `higher` wraps it, at w′
    grad_clip: float
    processes: Processes


def build(
    config: SearchConfig, in_channels: int, num_classes: int, device: torch.device, processes: Processes = ALONE
) -> Models:
    """Both models, started from the seed, with their optimizers."""
    lower, upper, size = config.lower, config.upper, config.supernet
    torch.manual_seed(config.run.seed)
    alphas = Alphas(size.num_nodes).to(device)
    shape = size.init_channels, size.num_cells, num_classes, size.num_nodes, size.stem
    supernet = Supernet(in_channels, *shape).to(device)
    alpha_optimizer = torch.optim.Adam(
        alphas.parameters(), upper.alpha_lr, (0.5, 0.999), weight_decay=upper.alpha_weight_decay
    )
    weight_optimizer = torch.optim.SGD(
        supernet.parameters(), lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay
    )
    if config.run.sync_batch_norm and processes.count > 1:
        synchronise(supernet, processes.gather)
    start_states(alpha_optimizer)
    start_states(weight_optimizer)
    method = {"onestage": Onestage, "first-order": FirstOrder}[upper.hypergradient]
    return Models(
        alphas,
        supernet,
        alpha_optimizer,
        weight_optimizer,
        method(objective, alphas, objective, supernet, lower.lower_lr, upper.r, processes.mean),
        # One wrapper for the whole search: making one takes longer than giving it new weights.
        higher.monkeypatch(supernet, track_higher_grads=False),
        lower.grad_clip,
        processes,
    )


def exact_step(models: Models, train: Batch, validate: Batch, learning_rate: float) -> StepResult:
    """Alphas, then weights, as published: w′ is a virtual step of the weights' optimizer (five passes)."""
    weights = list(models.supernet.parameters())
    models.auxiliary.update_params([weight.detach().requires_grad_() for weight in weights])
    if isinstance(models.hypergradient, Onestage):
        virtual_optimizer = higher.get_diff_optim(
            models.weight_optimizer, weights, fmodel=models.auxiliary, track_higher_grads=False
        )
        loss = objective(State(*train, models.alphas, models.auxiliary))
        virtual_optimizer.step(loss, grad_callback=models.processes.mean)
    models.hypergradient.lower_learning_rate = learning_rate
    upper_loss, upper_norm = upper_step(models, train, validate)
    lower_loss, lower_norm, num_correct = lower_step(models, train)
    return StepResult(lower_loss, lower_norm, num_correct, upper_loss, upper_norm)


def shared_step(models: Models, train: Batch, validate: Batch, learning_rate: float) -> StepResult:
    """Weights, then alphas: w′ is the step that the weights keep (four passes).

    Other than in `exact_step` the alphas move at the new weights, and w′ is a step along the clipped gradient: ξ is the
    learning rate times the factor of the clipping, which is taken as constant.
    """
    weights = [weight.detach() for weight in models.supernet.parameters()]
    before = [weight.clone() for weight in weights]
    lower_loss, lower_norm, num_correct = lower_step(models, train)
    after = [weight.clone() for weight in weights]
    models.auxiliary.update_params([weight.requires_grad_() for weight in after])
    torch._foreach_copy_(weights, before)  # the finite differences are taken about w
    clipping = (models.grad_clip / (lower_norm + 1e-6)).clamp(max=1.0)
    models.hypergradient.lower_learning_rate = learning_rate * clipping
    upper_loss, upper_norm = upper_step(models, train, validate)
    with torch.no_grad():
        torch._foreach_copy_(weights, after)
    return StepResult(lower_loss, lower_norm, num_correct, upper_loss, upper_norm)


def upper_step(models: Models, train: Batch, validate: Batch) -> tuple[Tensor, Tensor]:
    """Move the alphas along their hypergradient; upper loss, and norm of the hypergradient."""
    models.alpha_optimizer.zero_grad()
    loss = models.hypergradient.compute_gradients(*validate, models.auxiliary, *train)
    norm = torch.nn.utils.get_total_norm([alpha.grad for alpha in models.alphas.parameters() if alpha.grad is not None])
    models.alpha_optimizer.step()
    return loss, norm


def lower_step(models: Models, train: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Move the weights; lower loss, norm of the gradient before clipping, and number of correct answers."""
    data, target = train
    weights = list(models.supernet.parameters())
    models.weight_optimizer.zero_grad()
    logits = models.supernet(data, models.alphas())
    loss = cross_entropy(logits, target)
    loss.backward(inputs=weights)
    loss, num_correct = average_step(models.processes, models.supernet, loss, logits, target)
    norm = torch.nn.utils.clip_grad_norm_(weights, models.grad_clip)
    models.weight_optimizer.step()
    return loss, norm, num_correct


def read(result: StepResult, models: Models, state: Mapping[str, Tensor]) -> tuple[dict[str, float], float]:
    """Return the scalars of a step by name, and the number of its correct answers; see `scalars_to_host`."""
    scalars = {
        "lower/step_loss": result.lower_loss,
        "lower/gradient_norm": result.lower_gradient_norm,
        "lower/weights_norm": torch.nn.utils.get_total_norm(list(models.supernet.parameters())),
        "upper/step_loss": result.upper_loss,
        "upper/gradient_norm": result.upper_gradient_norm,
        "upper/alphas_norm": torch.nn.utils.get_total_norm(list(models.alphas.parameters())),
        "num_correct": result.num_correct,
    }
    on_host = scalars_to_host(scalars, state)
    return on_host, on_host.pop("num_correct")
