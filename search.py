#!/usr/bin/env python
"""Search a cell: the weights and the alphas of a supernet learn in turn (DARTS, ICLR 2019, algorithm 1)."""

import copy
import functools
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import higher
import torch
from PIL import Image
from torch import Tensor

from nas import datasets, draw, report
from nas.batch_norm import synchronise
from nas.checkpoint import Progress, state_tensors
from nas.command_line import data_flags, run_script
from nas.config import SearchConfig, is_several
from nas.environment import versions
from nas.errors import InputError, Stopped
from nas.follower import Follower, restore
from nas.forecast import duration, memory_of_step, outlook, peak_memory_gb
from nas.genotype import Genotype, GenotypeFile, Provenance
from nas.hypergradient import FirstOrder, Onestage, State
from nas.interrupts import Interrupts
from nas.network_size import network_size
from nas.processes import ALONE, Processes
from nas.progress_bar import progress_bar
from nas.run_folder import RunFolder, folder_of_run, is_finished
from nas.search_space import PRIMITIVES, edges
from nas.searches import plan, run_searches
from nas.supernet import Alphas, EdgeWeights, Supernet
from nas.training import (
    Images,
    Target,
    average_step,
    check_finite,
    cosine,
    cross_entropy,
    evaluate,
    imbalance,
    pick_device,
    prepare,
    require_a_row_each,
    start_states,
    too_many_bad_steps,
    undone_if_not_finite,
)

RECORD_EVERY_STEPS = 10
LEVELS = ("lower", "upper")

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
    supernet = Supernet(in_channels, size.init_channels, size.num_cells, num_classes, size.num_nodes).to(device)
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


def search(config: SearchConfig, processes: Processes = ALONE) -> None:
    data, lower, upper, options = config.data, config.lower, config.upper, config.run
    if is_several(config) and not options.dry_run:
        with processes.agreed():
            run_searches(config, Path(__file__).parent)
        return
    path = Path(processes.text_of_first(str(folder_of_run(options, f"search-{data.dataset}"))))
    exported = Path("genotypes", f"{path.resolve().name}.json")
    if processes.any(processes.first and options.resume is not None and is_finished(path, lower.epochs)):
        return
    with processes.agreed():
        if processes.first and options.resume is None and exported.exists():
            raise InputError(f"--name {path.name}: {exported} exists already; choose another --name.")
        device = pick_device(options.device, processes.local_rank)
        if options.deterministic:  # only then, as the call itself takes seconds to import what it sets
            torch.use_deterministic_algorithms(True)
        run = RunFolder.reopen(path, config) if processes.first and options.resume is not None else None
    images, lower_images, upper_images = processes.in_turn(lambda: load_images(config, device, processes))
    _, in_channels, _, _ = images.split.images.shape
    models = build(config, in_channels, len(images.split.classes), device, processes)
    alphas, supernet = models.alphas, models.supernet
    state = state_tensors(
        {"supernet": supernet, "alphas": alphas},
        {"weight_optimizer": models.weight_optimizer, "alpha_optimizer": models.alpha_optimizer},
    )
    take_step = shared_step if upper.share_lower_step else exact_step
    steps_an_epoch = datasets.num_batches(len(lower_images.split.targets), lower.batch_size)
    num_steps = lower.epochs * steps_an_epoch

    def batches(step: int) -> tuple[Batch, Batch]:
        return (
            lower_images.batch(lower.batch_size, options.seed, "lower", step),
            upper_images.batch(lower.batch_size, options.seed, "upper", step),
        )

    with processes.agreed():
        lines = forecast(config, models, images, lower_images, upper_images, device)
    if options.dry_run:
        take_step(models, *batches(0), lower.lower_lr)  # not timed, as the first one is slower than the others
        began = time.monotonic()
        take_step(models, *batches(0), lower.lower_lr)
        if is_several(config):
            lines += plan(config)
        num_steps *= config.several.searches  # one after another
        if processes.first:
            print(*lines, outlook(time.monotonic() - began, num_steps, 2 * lower.batch_size), sep="\n")
        return
    with processes.agreed():
        followed = None if processes.first else Follower(path, processes.rank)
        run = run or followed or RunFolder.create(path, config)

    with run, Interrupts() as interrupts:
        fingerprint = datasets.fingerprint(images.split)
        progress = restore(run, processes, state, fingerprint)
        with processes.agreed():
            if processes.first and exported.exists() and GenotypeFile.load(exported).provenance.date != run.started:
                raise InputError(f"--resume {path}: {exported} comes from another run; move it away.")
        for line in lines:
            run.log(line)
        run.log(f"{run.path}: tensorboard --logdir {run.path.parent} shows the search as it goes")
        genotype = Genotype.derive(alphas)
        drawn = processes.first and genotype.draw(run.path / "cells")
        upper_accuracy: float | None = None  # of the last epoch

        def save(finished: bool = False) -> None:
            run.save(state, fingerprint, genotype.to_text(), progress, finished)

        def stop_if_asked() -> None:
            if processes.any(interrupts.received is not None):
                save()
                raise Stopped(f"after step {progress.steps}; go on: {run.go_on}", interrupts.exit_code)

        if progress.steps == 0:
            save()
        with progress_bar(run.console, run.log, num_steps, progress.steps, 2 * lower.batch_size) as advance:
            for epoch in range(progress.epochs, lower.epochs):
                if progress.steps == epoch * steps_an_epoch:
                    progress.begin_epoch(run.elapsed_s())
                learning_rate = cosine(epoch, lower.epochs, lower.lower_lr, lower.lower_lr_min)
                models.weight_optimizer.param_groups[0]["lr"] = learning_rate
                recent_began, recent_images = time.monotonic(), 0
                for step in range(progress.steps, (epoch + 1) * steps_an_epoch):
                    train, validate = batches(step)
                    scalars: dict[str, float] = {}
                    try:
                        with undone_if_not_finite(state):
                            scalars, num_correct = read(take_step(models, train, validate, learning_rate), models)
                        progress.good_step(scalars["lower/step_loss"], num_correct, train[1].batch_size)
                        progress.see({f"{level}/step_loss_max": scalars[f"{level}/step_loss"] for level in LEVELS})
                    except FloatingPointError as error:
                        run.bad_step(progress, f"{error} {images_of(config, (lower_images, upper_images), step)}")
                        if progress.bad_steps_in_a_row >= options.max_bad_steps:
                            save()
                            flag = "--alpha-lr" if "alphas" in str(error) else "--lower-lr"
                            raise Stopped(too_many_bad_steps(progress.bad_steps_in_a_row, error, flag)) from None
                    recent_images += train[1].batch_size + validate[1].batch_size
                    if step % RECORD_EVERY_STEPS == 0:
                        rates = {"lower/learning_rate": learning_rate, "upper/learning_rate": upper.alpha_lr}
                        rates["speed/images_per_s"] = recent_images / (time.monotonic() - recent_began)
                        run.record(epoch + 1, step + 1, scalars | rates | progress.take_peaks())
                        recent_began, recent_images = time.monotonic(), 0
                    if time.monotonic() - run.saved_at >= 60 * options.checkpoint_minutes:
                        save()
                    stop_if_asked()
                    advance(status(progress, upper_accuracy, genotype))

                with torch.no_grad():
                    edge_weights = alphas()
                supernet.eval()
                predict = functools.partial(supernet, edge_weights=edge_weights)
                upper_loss, upper_accuracy = evaluate(predict, upper_images, 2 * lower.batch_size, stop_if_asked)
                supernet.train()
                processes.check_identical(state)
                previous, genotype = genotype, Genotype.derive(alphas)
                if processes.first and genotype != previous:
                    drawn = genotype.draw(run.path / "cells")
                progress.epochs = epoch + 1
                if processes.first:
                    note_epoch(config, run, progress, (upper_loss, upper_accuracy), edge_weights, genotype, images)
                save()

        if processes.first:
            export_cell(run, exported, images)
        if not drawn:
            run.log(draw.HOW_TO_GET_PICTURES)
        run.log(f"retrain it: python train_final.py --genotype {exported}{data_flags(data, options.seed)}")
        save(finished=True)


def note_epoch(
    config: SearchConfig,
    run: RunFolder | Follower,
    progress: Progress,
    upper: tuple[float, float],
    edge_weights: EdgeWeights,
    genotype: Genotype,
    images: Images,
) -> None:
    """Record and show what an epoch has come to; `upper` are loss and accuracy on the images of the upper level."""
    (lower_loss, lower_accuracy), (upper_loss, upper_accuracy) = progress.means(), upper
    epoch_s = run.elapsed_s() - progress.epoch_began_s
    levels = {
        "lower/loss": lower_loss,
        "lower/accuracy": lower_accuracy,
        "upper/loss": upper_loss,
        "upper/accuracy": upper_accuracy,
        "speed/epoch_s": epoch_s,
        "speed/peak_memory_gb": peak_memory_gb(images.mean.device),
    }
    run.record(progress.epochs, progress.steps, levels | describe(edge_weights, genotype))
    provenance = Provenance(
        method=f"nas search, {config.upper.hypergradient}",
        dataset=config.data.dataset,
        num_images=len(images.split.targets),
        seed=config.run.seed,
        epochs=progress.epochs,
        supernet_accuracy=upper_accuracy,
        date=run.started,
        versions=versions(),
    )
    genotype.save(run.path / "genotype.json", provenance)
    show(run, edge_weights, progress.steps)
    run.log(
        f"epoch {progress.epochs}/{config.lower.epochs}: lower loss {lower_loss:.3f}, accuracy {lower_accuracy:.1%}; "
        f"upper loss {upper_loss:.3f}, accuracy {upper_accuracy:.1%}; {skips(genotype)}; {duration(epoch_s)}"
    )


def forecast(
    config: SearchConfig,
    models: Models,
    images: Images,
    lower_images: Images,
    upper_images: Images,
    device: torch.device,
) -> list[str]:
    """Lines on what will be searched, and what a step takes.

    Raises:
        InputError: there is not enough memory for a step.
    """
    num_lower, num_upper = (len(part.split.targets) for part in (lower_images, upper_images))
    _, in_channels, image_size, _ = images.split.images.shape
    num_weights = sum(weight.numel() for weight in models.supernet.parameters())
    lines = [
        f"{config.data.dataset}: {num_lower} images for the weights, {num_upper} for the alphas, "
        f"{in_channels} × {image_size} × {image_size}, {len(images.split.classes)} classes; "
        f"supernet of {num_weights:,} weights on {device}",
        *imbalance(images),
    ]
    if device.type == "cpu":  # no other device was ever asked for its memory
        supernet = copy.deepcopy(models.supernet)
        synchronise(supernet, None)

        def forward(num_images: int) -> Tensor:
            return supernet(torch.zeros(num_images, in_channels, image_size, image_size), models.alphas())

        lines.append(memory_of_step(forward, min(config.lower.batch_size, num_lower), images.processes))
    return lines


def export_cell(run: RunFolder | Follower, exported: Path, images: Images) -> None:
    """Leave the derived cell where `train_final.py` finds it, and the report; say what they are."""
    found = GenotypeFile.load(run.path / "genotype.json")
    genotype = Genotype(**found.cells())
    genotype.save(exported, found.provenance)
    _, in_channels, image_size, _ = images.split.images.shape
    size = network_size(genotype, image_size, in_channels, num_classes=len(images.split.classes))
    run.log(genotype.to_text())
    run.log(
        f"as a final network (36 channels, 20 cells): {size.weights:,} weights, {size.multiply_adds:,} "
        "multiply-adds an image"
    )
    names = "genotype.json, cells/, checkpoint.safetensors, metrics.jsonl, tensorboard/, log.txt"
    try:
        report.write([run.path], run.path / "report.html")
        names = f"report.html, {names}"
    except InputError as error:  # such as somebody else's page in that place: no reason not to finish
        run.log(f"no report: {error}")
    run.log(f"written: {exported}, and in {run.path}: {names}")


def load_images(config: SearchConfig, device: torch.device, processes: Processes) -> tuple[Images, Images, Images]:
    """All training images, those of the lower level and those of the upper level; the test set is not read."""
    data, fraction, seed = config.data, config.upper.upper_fraction, config.run.seed
    train = datasets.load(
        data.dataset, Path(data.data_dir), "train", data.image_size, data.train_limit, seed, data.skip_bad_images
    )
    lower_half, upper_half = datasets.halves(len(train.targets), fraction, seed)
    if min(len(lower_half), len(upper_half)) < 2:
        raise InputError(
            f"--upper-fraction {fraction}: {len(lower_half)} images for the weights and {len(upper_half)} for the "
            "alphas, but each level needs two at least."
        )
    images = prepare(train, data.dataset, device, balanced=data.balanced, processes=processes)
    for half in (lower_half, upper_half):
        require_a_row_each(processes, len(half), config.lower.batch_size)
    lower_images, upper_images = (
        images._replace(split=images.split.select(half.to(device))) for half in (lower_half, upper_half)
    )
    return images, lower_images, upper_images


def read(result: StepResult, models: Models) -> tuple[dict[str, float], float]:
    """The scalars of a step by name, and the number of its correct answers.

    Here, once a step, the device is waited for: a step that went wrong is undone before the next one.

    Raises:
        FloatingPointError: one of them is not finite; it is named.
    """
    scalars = {
        "lower/step_loss": result.lower_loss,
        "lower/gradient_norm": result.lower_gradient_norm,
        "lower/weights_norm": torch.nn.utils.get_total_norm(list(models.supernet.parameters())),
        "upper/step_loss": result.upper_loss,
        "upper/gradient_norm": result.upper_gradient_norm,
        "upper/alphas_norm": torch.nn.utils.get_total_norm(list(models.alphas.parameters())),
    }
    *values, num_correct = torch.stack([*scalars.values(), result.num_correct]).tolist()
    quantities = dict(zip(scalars, values, strict=True))
    check_finite(quantities)
    return quantities, num_correct


def images_of(config: SearchConfig, levels: tuple[Images, Images], step: int) -> str:
    """Which images of the training set the two batches of a step consist of."""
    num_images = sum(len(images.split.targets) for images in levels)
    halves = datasets.halves(num_images, config.upper.upper_fraction, config.run.seed)
    weights, alphas = (
        half[images.indices(config.lower.batch_size, config.run.seed, level, step)].tolist()
        for half, images, level in zip(halves, levels, LEVELS, strict=True)
    )
    return f"images for the weights {weights}, for the alphas {alphas}"


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


def status(progress: Progress, upper_accuracy: float | None, genotype: Genotype) -> str:
    """What stands beside the bar: accuracies of this epoch's steps and of the last epoch's cell, and its skips."""
    upper = "" if upper_accuracy is None else f", upper {upper_accuracy:.1%}"
    return f"lower {progress.means()[1]:.1%}{upper}; {skips(genotype)}"


def skips(genotype: Genotype) -> str:
    """How many skip connections each derived cell has; where they take over, a search has failed."""
    normal, reduction = (sum(name == "skip_connect" for name, _ in cell) for cell in (genotype.normal, genotype.reduce))
    return f"skips {normal} + {reduction}"


def show(run: RunFolder | Follower, edge_weights: EdgeWeights, step: int) -> None:
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
