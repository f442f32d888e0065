"""Search a cell: the weights and the alphas of a supernet learn in turn (DARTS, ICLR 2019, algorithm 1)."""

import dataclasses
import functools
import math
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import higher
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nas import datasets, draw
from nas.checkpoint import save_state
from nas.config import SearchConfig, data_flags, run_script
from nas.errors import InputError
from nas.genotype import Genotype, Provenance
from nas.hypergradient import FirstOrder, Onestage, State
from nas.network_size import network_size
from nas.run_folder import RunFolder, duration, versions
from nas.search_space import PRIMITIVES, edges
from nas.supernet import Alphas, EdgeWeights, Supernet
from nas.training import Images, cosine, evaluate, pick_device, prepare

RECORD_EVERY_STEPS = 10

Batch = tuple[Tensor, Tensor]  # images and targets


class StepResult(NamedTuple):
    """Scalars of one step, on their device."""

    lower_loss: Tensor
    lower_gradient_norm: Tensor
    num_correct: Tensor
    upper_loss: Tensor
    upper_gradient_norm: Tensor


# Of a step, and their names in metrics.jsonl and TensorBoard.
QUANTITIES = {
    "lower_loss": "lower/step_loss",
    "lower_gradient_norm": "lower/gradient_norm",
    "upper_loss": "upper/step_loss",
    "upper_gradient_norm": "upper/gradient_norm",
}


def objective(state: State) -> Tensor:
    """Cross entropy of the supernet; the same at both levels."""
    return F.cross_entropy(state.lower_model(state.data, state.upper_model()), state.target)


class Models(NamedTuple):
    """The two models, and what moves them."""

    alphas: Alphas
    supernet: Supernet
    alpha_optimizer: torch.optim.Adam
    weight_optimizer: torch.optim.SGD
    hypergradient: FirstOrder | Onestage
    auxiliary: Any  # the supernet as `higher` wraps it, at w′
    grad_clip: float


def build(config: SearchConfig, in_channels: int, num_classes: int, device: torch.device) -> Models:
    """Both models, started from the seed, with their optimizers."""
    lower, upper, size = config.lower, config.upper, config.supernet
    torch.manual_seed(config.run.seed)
    alphas = Alphas(size.num_nodes).to(device)
    supernet = Supernet(in_channels, size.init_channels, size.num_cells, num_classes, size.num_nodes).to(device)
    method = {"onestage": Onestage, "first-order": FirstOrder}[upper.hypergradient]
    return Models(
        alphas,
        supernet,
        torch.optim.Adam(alphas.parameters(), upper.alpha_lr, (0.5, 0.999), weight_decay=upper.alpha_weight_decay),
        torch.optim.SGD(supernet.parameters(), lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay),
        method(objective, alphas, objective, supernet, lower.lower_lr, upper.r),
        # One wrapper for the whole search: making one takes longer than giving it new weights.
        higher.monkeypatch(supernet, track_higher_grads=False),
        lower.grad_clip,
    )


def exact_step(models: Models, train: Batch, validate: Batch, learning_rate: float) -> StepResult:
    """Alphas, then weights, as published: w′ is a virtual step of the weights' optimizer (five passes)."""
    weights = list(models.supernet.parameters())
    models.auxiliary.update_params([weight.detach().requires_grad_() for weight in weights])
    if isinstance(models.hypergradient, Onestage):
        virtual_optimizer = higher.get_diff_optim(
            models.weight_optimizer, weights, fmodel=models.auxiliary, track_higher_grads=False
        )
        virtual_optimizer.step(objective(State(*train, models.alphas, models.auxiliary)))
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
    loss = F.cross_entropy(logits, target)
    loss.backward(inputs=weights)
    norm = torch.nn.utils.clip_grad_norm_(weights, models.grad_clip)
    models.weight_optimizer.step()
    return loss.detach(), norm, (logits.argmax(1) == target).sum()


def search(config: SearchConfig) -> None:
    data, lower, upper, seed = config.data, config.lower, config.upper, config.run.seed
    device = pick_device(config.run.device)
    name = config.run.name or f"search-{data.dataset}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    exported = Path("genotypes", f"{name}.json")
    if exported.exists():
        raise InputError(f"--name {name}: {exported} exists already; choose another --name.")
    images, lower_images, upper_images = load_images(config, device)
    _, in_channels, image_size, _ = images.split.images.shape
    num_classes = len(images.split.classes)
    models = build(config, in_channels, num_classes, device)
    alphas, supernet = models.alphas, models.supernet
    take_step = shared_step if upper.share_lower_step else exact_step

    run = RunFolder(Path(config.run.run_dir, name), {"config": dataclasses.asdict(config)})
    num_weights = sum(weight.numel() for weight in supernet.parameters())
    run.log(
        f"{data.dataset}: {len(lower_images.split.targets)} images for the weights, "
        f"{len(upper_images.split.targets)} for the alphas, {in_channels} × {image_size} × {image_size}, "
        f"{num_classes} classes; supernet of {num_weights:,} weights on {device}"
    )
    run.log(f"{run.path}: tensorboard --logdir {run.path.parent} shows the search as it goes")

    genotype = Genotype.derive(alphas)
    drawn = genotype.draw(run.path / "cells")
    steps_an_epoch = datasets.num_batches(len(lower_images.split.targets), lower.batch_size)
    with run.progress(lower.epochs * steps_an_epoch) as advance:
        for epoch in range(lower.epochs):
            epoch_began = time.monotonic()
            learning_rate = cosine(epoch, lower.epochs, lower.lower_lr, lower.lower_lr_min)
            models.weight_optimizer.param_groups[0]["lr"] = learning_rate
            sums = torch.zeros(2, device=device)  # lower loss and correct answers, over the images of the epoch
            recent: list[Tensor] = []  # of the steps since values were read last: reading waits for the device
            recent_began, recent_images = time.monotonic(), 0
            for step in range(epoch * steps_an_epoch, (epoch + 1) * steps_an_epoch):
                train = lower_images.batch(lower.batch_size, seed, "lower", step)
                validate = upper_images.batch(lower.batch_size, seed, "upper", step)
                result = take_step(models, train, validate, learning_rate)
                sums += torch.stack([result.lower_loss * len(train[1]), result.num_correct])
                recent.append(torch.stack([getattr(result, quantity) for quantity in QUANTITIES]))
                recent_images += len(train[1]) + len(validate[1])
                if device.type == "cpu" or step % RECORD_EVERY_STEPS == 0 or (step + 1) % steps_an_epoch == 0:
                    values = read(recent, step)
                    if step % RECORD_EVERY_STEPS == 0:
                        speed = recent_images / (time.monotonic() - recent_began)
                        rates = {"lower/learning_rate": learning_rate, "upper/learning_rate": upper.alpha_lr}
                        run.record(epoch + 1, step + 1, values | rates | {"speed/images_per_s": speed})
                        recent_began, recent_images = time.monotonic(), 0
                    recent.clear()
                advance()

            with torch.no_grad():
                edge_weights = alphas()
            supernet.eval()
            predict = functools.partial(supernet, edge_weights=edge_weights)
            upper_loss_mean, upper_accuracy = evaluate(predict, upper_images, 2 * lower.batch_size)
            supernet.train()
            lower_loss_mean, lower_accuracy = (sums / len(lower_images.split.targets)).tolist()
            previous, genotype = genotype, Genotype.derive(alphas)
            levels = {
                "lower/loss": lower_loss_mean,
                "lower/accuracy": lower_accuracy,
                "upper/loss": upper_loss_mean,
                "upper/accuracy": upper_accuracy,
                "speed/epoch_s": time.monotonic() - epoch_began,
            }
            cells = describe(edge_weights, genotype)
            run.record(epoch + 1, step + 1, levels | cells)
            provenance = Provenance(
                method=f"nas search, {upper.hypergradient}",
                dataset=data.dataset,
                num_images=len(images.split.targets),
                seed=seed,
                epochs=epoch + 1,
                supernet_accuracy=upper_accuracy,
                date=datetime.now().astimezone().isoformat(timespec="seconds"),
                versions=versions(),
            )
            genotype.save(run.path / "genotype.json", provenance)
            save_state(
                run.path / "checkpoint.safetensors",
                {"supernet": supernet, "alphas": alphas},
                {"weight_optimizer": models.weight_optimizer, "alpha_optimizer": models.alpha_optimizer},
                step + 1,
            )
            if genotype != previous:
                drawn = genotype.draw(run.path / "cells")
            show(run, edge_weights, step + 1)
            run.log(
                f"epoch {epoch + 1}/{lower.epochs}: lower loss {lower_loss_mean:.3f}, accuracy {lower_accuracy:.1%}; "
                f"upper loss {upper_loss_mean:.3f}, accuracy {upper_accuracy:.1%}; skips "
                f"{cells['cells/skip_connections_normal']:.0f} + {cells['cells/skip_connections_reduce']:.0f}; "
                f"{duration(levels['speed/epoch_s'])}"
            )

    genotype.save(exported, provenance)
    size = network_size(genotype, image_size, in_channels, num_classes=num_classes)
    run.log(genotype.to_text())
    run.log(
        f"as a final network (36 channels, 20 cells): {size.weights:,} weights, {size.multiply_adds:,} multiply-adds "
        "an image"
    )
    run.log(
        f"written: {exported}, and in {run.path}: genotype.json, cells/, checkpoint.safetensors, metrics.jsonl, "
        "tensorboard/, log.txt"
    )
    if not drawn:
        run.log(draw.HOW_TO_GET_PICTURES)
    run.log(f"retrain it: python train_final.py --genotype {exported}{data_flags(data)}")
    run.close()


def load_images(config: SearchConfig, device: torch.device) -> tuple[Images, Images, Images]:
    """All training images, those of the lower level and those of the upper level; the test set is not read."""
    data, fraction, seed = config.data, config.upper.upper_fraction, config.run.seed
    train = datasets.load(data.dataset, Path(data.data_dir), "train", data.image_size, data.train_limit, seed)
    lower_half, upper_half = datasets.halves(len(train.targets), fraction, seed)
    if min(len(lower_half), len(upper_half)) < 2:
        raise InputError(
            f"--upper-fraction {fraction}: {len(lower_half)} images for the weights and {len(upper_half)} for the "
            "alphas, but each level needs two at least."
        )
    images = prepare(train, data.dataset, device)
    lower_images, upper_images = (
        images._replace(split=images.split.select(half.to(device))) for half in (lower_half, upper_half)
    )
    return images, lower_images, upper_images


def read(recent: list[Tensor], step: int) -> dict[str, float]:
    """The scalars of the last of the recent steps.

    Raises:
        FloatingPointError: one of them is not finite; it names the step.
    """
    rows = torch.stack(recent).tolist()
    for ago, row in enumerate(reversed(rows)):
        for quantity, value in zip(QUANTITIES, row, strict=True):
            if not math.isfinite(value):
                raise FloatingPointError(f"step {step + 1 - ago}: the {quantity.replace('_', ' ')} is {value}.")
    return dict(zip(QUANTITIES.values(), rows[-1], strict=True))


def describe(edge_weights: EdgeWeights, genotype: Genotype) -> dict[str, float]:
    """Scalars of the cells: one an edge and primitive, entropy of the edges, skip connections of the derived cells."""
    scalars: dict[str, float] = {}
    for cell, weights in edge_weights._asdict().items():
        scalars[f"cells/entropy_{cell}_nats"] = -torch.special.xlogy(weights, weights).sum(1).mean().item()
        skips = [primitive == "skip_connect" for primitive, _ in getattr(genotype, cell)]
        scalars[f"cells/skip_connections_{cell}"] = sum(skips)
        for edge, row in zip(edge_names(weights), weights.tolist(), strict=True):
            for primitive, weight in zip(PRIMITIVES, row, strict=True):
                scalars[f"edge_weights_{cell}/{edge}_{primitive}"] = weight
    return scalars


def show(run: RunFolder, edge_weights: EdgeWeights, step: int) -> None:
    """In TensorBoard: edge weights as heat maps and, where they were drawn, the derived cells."""
    for cell, weights in edge_weights._asdict().items():
        run.picture(f"heat_map/{cell}", draw.heat_map(weights.tolist(), edge_names(weights), PRIMITIVES), step)
        drawing = run.path / "cells" / f"{cell}.png"
        if drawing.is_file():
            run.picture(f"cells/{cell}", Image.open(drawing), step)


def edge_names(weights: Tensor) -> list[str]:
    """Such as 0-2, from the first input to the first node."""
    num_nodes = next(nodes for nodes in range(1, len(weights) + 1) if len(edges(nodes)) == len(weights))
    return [f"{source}-{node}" for source, node in edges(num_nodes)]


if __name__ == "__main__":
    sys.exit(run_script(search, SearchConfig))
