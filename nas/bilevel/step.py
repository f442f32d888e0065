"""One step of a search in three verbs: virtual step, alpha step, weight step (DARTS, ICLR 2019, algorithm 1)."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import higher
import torch
from torch import Tensor

from nas.bilevel.curvature import PastAlphas
from nas.bilevel.evaluation import State, gradients_of
from nas.bilevel.hypergradient import Exact, FirstOrder, Onestage
from nas.bilevel.smoothing import SMALLEST, SMOOTHINGS
from nas.config.file import searched_space
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.distributed import SINGLE, World
from nas.models.batch_norm import synchronise
from nas.models.relaxation import RELAXATIONS, ExponentiatedGradient, Simplex
from nas.models.supernet import Alphas, EdgeWeights, Supernet
from nas.runs.checkpoint import state_tensors
from nas.training.steps import average_step, cross_entropy, start_states


def objective(state: State) -> Tensor:
    """Return the cross entropy of the supernet: the lower objective, and the first term of the upper one."""
    return cross_entropy(state.lower_model(state.data, state.upper_model()), state.target)


def beta_decay(alphas: Alphas) -> Tensor:
    """Return the mean over all edges of logsumexp(α) (Ye et al., "β-DARTS", CVPR 2022, equation 14).

    Its gradient is the edge weights themselves, so it takes most from what is largest.
    """
    return torch.cat([logits.logsumexp(-1) for logits in alphas.logits()]).mean()


class Bilevel:
    """The two models, and the step that moves them as published: first the alphas, then the weights (five passes).

    Args:
        config: says the sizes, the optimizers and the kind of hypergradient.
        in_channels, num_classes: of the images.
        world: the processes that share each batch.

    Attributes:
        space: the search space.
        alphas: the upper model.
        supernet: the lower model.
        past: alphas to go back to, if --end-eigenvalue asks for it.
        evaluated: a copy of the supernet, with batch norm statistics of its own, for evaluation in its place.
    """

    def __init__(
        self, config: SearchConfig, in_channels: int, num_classes: int, device: torch.device, world: World = SINGLE
    ):
        lower, upper, size = config.lower, config.upper, config.supernet
        torch.manual_seed(config.run.seed)
        relaxation = RELAXATIONS[upper.relaxation]()
        self.space = searched_space(size)
        self.alphas = Alphas(size.num_nodes, self.space, relaxation, size.partial_channels > 1).to(device)
        shape = size.init_channels, size.num_cells, num_classes, size.num_nodes, size.stem
        if upper.derivation == "perturbation":
            self.alphas.make_fixable()
        self.past = None if config.early_end.end_eigenvalue is None else PastAlphas(self.alphas)
        self.supernet = Supernet(in_channels, *shape, self.space, size.partial_channels).to(device)
        self.alpha_optimizer = (
            ExponentiatedGradient(self.alphas.parameters(), upper.alpha_lr)
            if isinstance(relaxation, Simplex)
            else torch.optim.Adam(
                self.alphas.parameters(), upper.alpha_lr, (0.5, 0.999), weight_decay=upper.alpha_weight_decay
            )
        )
        self.weight_optimizer = torch.optim.SGD(
            self.supernet.parameters(), lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay
        )
        if config.run.sync_batch_norm and world.size > 1:
            synchronise(self.supernet, world.gather)
        start_states(self.alpha_optimizer)
        start_states(self.weight_optimizer)
        method = {"onestage": Onestage, "exact": Exact, "first-order": FirstOrder}[upper.hypergradient]
        self.hypergradient = method(
            self.upper_objective, self.alphas, objective, self.supernet, lower.lower_lr, upper.r, world.mean
        )
        # The supernet as `higher` wraps it, at w′. One wrapper serves the whole search: making one takes longer than
        # giving it new weights.
        self.auxiliary: Any = higher.monkeypatch(self.supernet, track_higher_grads=False)
        self.evaluated = copy.deepcopy(self.supernet)
        self.grad_clip = lower.grad_clip
        self.world = world
        self.config = config
        self.begin_epoch(0, lower.lower_lr)

    def begin_epoch(self, epoch: int, learning_rate: float) -> None:
        """Set what a schedule moves.

        Args:
            epoch: counted from 0.
            learning_rate: of the weights, for their steps and the virtual ones.
        """
        upper = self.config.upper
        self.learning_rate = learning_rate
        self.weight_optimizer.param_groups[0]["lr"] = learning_rate
        self.alphas_wait = not upper.alpha_warmup <= epoch < self.config.lower.epochs
        self.beta_weight = upper.beta_decay * epoch
        share = epoch / max(self.config.lower.epochs - 1, 1)
        self.smoothing_now = SMALLEST + share * (upper.smoothing_max - SMALLEST)

    def begin_step(self, step: int) -> bool:
        """Decide whether a step, counted from 0, compares the second term with the exact one; return it."""
        every = self.config.upper.fidelity_every
        compares = every is not None and step % every == 0 and not self.alphas_wait
        if isinstance(self.hypergradient, Onestage):
            self.hypergradient.compares = compares
        return compares

    def upper_objective(self, state: State) -> Tensor:
        """Return the cross entropy of the supernet plus the weighted β-decay."""
        loss = objective(state)
        return loss + self.beta_weight * beta_decay(self.alphas) if self.beta_weight else loss

    def virtual_step(self, train: Batch) -> None:
        """Bring the auxiliary supernet to w′: one step of the weights' optimizer ahead (equation 6)."""
        if self.alphas_wait:
            return
        weights = list(self.supernet.parameters())
        self.auxiliary.update_params([weight.detach().requires_grad_() for weight in weights])
        if isinstance(self.hypergradient, Onestage):
            optimizer = higher.get_diff_optim(
                self.weight_optimizer, weights, fmodel=self.auxiliary, track_higher_grads=False
            )
            loss = objective(State(train.images, train, self.alphas, self.auxiliary))
            optimizer.step(loss, grad_callback=self.world.mean)
        self.hypergradient.lower_learning_rate = self.learning_rate

    def alpha_step(self, validate: Batch, train: Batch) -> dict[str, Tensor]:
        """Move the alphas by Adam along their hypergradient (equations 7 and 8).

        Returns:
            The scalars of the step by name, on the device; none while the alphas wait.
        """
        if self.alphas_wait:
            return {}
        self.alpha_optimizer.zero_grad()
        loss = self.hypergradient.compute_gradients(validate.images, validate, self.auxiliary, train.images, train)
        gradients = [alpha.grad for alpha in self.alphas.parameters() if alpha.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self.alpha_optimizer.step()
        alphas_norm = torch.nn.utils.get_total_norm(list(self.alphas.parameters()))
        scalars = {"upper/step_loss": loss, "upper/gradient_norm": norm, "upper/alphas_norm": alphas_norm}
        if isinstance(self.hypergradient, Onestage):
            scalars["upper/second_over_first_term"] = self.hypergradient.ratio
            if self.hypergradient.compares:
                scalars["upper/second_term_cosine"] = self.hypergradient.cosine
        return scalars

    def weight_step(self, train: Batch) -> dict[str, Tensor]:
        """Move the weights by SGD.

        Returns:
            The scalars of the step by name, on the device.
        """
        weights = list(self.supernet.parameters())
        self.weight_optimizer.zero_grad()
        logits = self.supernet(train.images, self._edge_weights_of_step(train))
        loss = cross_entropy(logits, train)
        loss.backward(inputs=weights)
        loss, num_correct = average_step(self.world, self.supernet, loss, logits, train)
        norm = torch.nn.utils.clip_grad_norm_(weights, self.grad_clip)
        self.weight_optimizer.step()
        weights_norm = torch.nn.utils.get_total_norm(weights)
        return {
            "lower/step_loss": loss,
            "lower/gradient_norm": norm,
            "lower/weights_norm": weights_norm,
            "num_correct": num_correct,
        }

    def _edge_weights_of_step(self, train: Batch) -> EdgeWeights:
        """Return the edge weights with which the weights step: those of the alphas, unless --smoothing moves them."""
        edge_weights, smoothing = self.alphas(), self.config.upper.smoothing
        if smoothing == "none":
            return edge_weights

        def gradients(rows: Sequence[Tensor]) -> Sequence[Tensor]:
            buffers = list(self.supernet.buffers())
            statistics = [buffer.clone() for buffer in buffers]  # an attack leaves no trace
            leaves = [row.clone().requires_grad_() for row in rows]
            loss = cross_entropy(self.supernet(train.images, self.alphas.by_kind(*leaves)), train)
            found = self.world.mean(gradients_of(loss, leaves))
            torch._foreach_copy_(buffers, statistics)
            return found

        moved = SMOOTHINGS[smoothing]([rows.detach() for rows in edge_weights], self.smoothing_now, gradients)
        return self.alphas.by_kind(*moved)

    def state(self) -> Mapping[str, Tensor]:
        """Return all tensors that the steps move, by name and not copied."""
        past = {f"past_alphas.{number}": kept for number, kept in enumerate(self.past.tensors if self.past else ())}
        return past | state_tensors(
            {"supernet": self.supernet, "alphas": self.alphas},
            {"weight_optimizer": self.weight_optimizer, "alpha_optimizer": self.alpha_optimizer},
        )


class SharedBilevel(Bilevel):
    """A quicker step, not as published: the virtual step is the one that the weights keep (four passes).

    The alphas move at the new weights, and w′ is a step along the clipped gradient: ξ is the learning rate times the
    factor of the clipping, which is taken as constant.
    """

    def virtual_step(self, train: Batch) -> None:
        """Take the step of the weights, give it to the auxiliary supernet as w′, and put the weights back to w."""
        weights = [weight.detach() for weight in self.supernet.parameters()]
        before = [weight.clone() for weight in weights]
        self._scalars = super().weight_step(train)
        self._kept = [weight.clone() for weight in weights]
        self.auxiliary.update_params([weight.requires_grad_() for weight in self._kept])
        torch._foreach_copy_(weights, before)  # the finite differences are taken about w
        clipping = (self.grad_clip / (self._scalars["lower/gradient_norm"] + 1e-6)).clamp(max=1.0)
        self.hypergradient.lower_learning_rate = self.learning_rate * clipping

    @torch.no_grad()
    def weight_step(self, train: Batch) -> dict[str, Tensor]:
        """Give the weights the values of the virtual step."""
        torch._foreach_copy_([weight.detach() for weight in self.supernet.parameters()], self._kept)
        return self._scalars


def build(
    config: SearchConfig, in_channels: int, num_classes: int, device: torch.device, world: World = SINGLE
) -> Bilevel:
    """Return both models, started from the seed; `--share-lower-step` chooses the form of their step.

    From here on convolutions on a GPU compute in full float32, not in TF32: finite differences amplify rounding.
    """
    torch.backends.cudnn.allow_tf32 = False
    form = SharedBilevel if config.upper.share_lower_step else Bilevel
    return form(config, in_channels, num_classes, device, world)
