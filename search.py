#!/usr/bin/env python
"""Search a cell: the weights and the alphas of a supernet learn in turn (DARTS, ICLR 2019, algorithm 1)."""

import copy
import functools
import shlex
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from nas.bilevel.step import Batch, Models, build, exact_step, read, shared_step
from nas.config.cli import data_flags
from nas.config.flags import SearchConfig, is_several
from nas.data import datasets
from nas.distributed import ALONE, Processes
from nas.entry import run_script
from nas.errors import InputError, Stopped, count
from nas.machine.threads import take_threads
from nas.report.search_log import export_cell, note_epoch, status
from nas.runs.checkpoint import state_tensors
from nas.runs.folder import RunFolder, folder_of_run, is_finished
from nas.runs.follower import Follower, check_same_images, restore
from nas.runs.interrupts import Interrupts
from nas.runs.progress_bar import outlook, progress_bar
from nas.search_space import pictures
from nas.search_space.genotype import Genotype, GenotypeFile
from nas.selection.protocol import plan, run_searches
from nas.training.forecast import memory_of_step, on_meta
from nas.training.steps import (
    Images,
    about_stem,
    cosine,
    estimate_statistics,
    evaluate,
    images_of_batch,
    imbalance,
    pick_device,
    prepare,
    require_images,
    rollback_if_not_finite,
    seconds_of_step,
    too_many_bad_steps,
)

RECORD_EVERY_STEPS = 10
SHARE_OF_STATISTICS = 0.25  # of an epoch's images: 1 to 3 % of its time
LEVELS = ("lower", "upper")


def search(config: SearchConfig, processes: Processes = ALONE) -> None:
    """Search a cell, or go on with a search, or run several and choose.

    Raises:
        InputError: it cannot be begun, or gone on with.
        Stopped: it ends before its end; how to go on is said.
    """
    data, lower, upper, options = config.data, config.lower, config.upper, config.run
    if is_several(config) and not options.dry_run:
        with processes.agreed():
            run_searches(config, Path(__file__).parent)
        return
    path = Path(processes.text_of_first(str(folder_of_run(options, f"search-{data.dataset}"))))
    exported = Path("genotypes", f"{path.resolve().name}.json")
    (finished,) = processes.any(processes.first and options.resume is not None and is_finished(path, lower.epochs))
    if finished:
        return
    threads = take_threads(options, path, processes)
    with processes.agreed():
        if processes.first and options.resume is None and exported.exists():
            raise InputError(f"--name {path.name}: {exported} exists already; choose another --name.")
        device = pick_device(options.device, processes)
        if options.deterministic:  # only then, as the call itself takes seconds to import what it sets
            torch.use_deterministic_algorithms(True)
        run = RunFolder.reopen(path, config) if processes.first and options.resume is not None else None
    images, lower_images, upper_images = processes.in_turn(lambda: load_images(config, device, processes))
    fingerprint = datasets.fingerprint(images.split)
    check_same_images(processes, fingerprint)
    _, in_channels, _, _ = images.split.images.shape
    models = build(config, in_channels, len(images.split.classes), device, processes)
    alphas, supernet = models.alphas, models.supernet
    measured = copy.deepcopy(supernet)  # with statistics of its own
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
        lines = [threads, *forecast(config, models, images, lower_images, upper_images, device)]
    if options.dry_run:
        with processes.agreed():
            step_s = seconds_of_step(
                lambda: read(take_step(models, *batches(0), lower.lower_lr), models, state), state, cause_of_bad_step
            )
        if is_several(config):
            lines += plan(config)
        num_steps *= config.several.searches  # one after another
        if processes.first:
            print(*lines, outlook(step_s, num_steps, 2 * lower.batch_size), sep="\n")
        return
    with processes.agreed():
        followed = None if processes.first else Follower(path, processes.rank)
        run = run or followed or RunFolder.create(path, config)

    with run, Interrupts() as interrupts:
        progress = restore(run, processes, state, fingerprint)
        with processes.agreed():
            if processes.first and exported.exists() and GenotypeFile.load(exported).provenance.date != run.started:
                raise InputError(f"--resume {path}: {exported} comes from another run; move it away.")
        for line in lines:
            run.log(line)
        run.log(f"{run.path}: tensorboard --logdir {shlex.quote(str(path.parent))} shows the search as it goes")
        genotype = Genotype.derive(alphas)
        drawn = processes.first and genotype.draw(run.path / "cells")
        upper_accuracy: float | None = None  # of the last epoch

        def save(finished: bool = False) -> None:
            processes.check_identical(state)
            run.save(state, fingerprint, genotype.to_text(), progress, finished)

        def save_or_stop(due: bool = False) -> None:
            asked, due = processes.any(interrupts.received is not None, due)
            if asked or due:
                save()
            if asked:
                raise Stopped(f"after step {progress.steps}; go on: {run.go_on}", interrupts.exit_code)

        if progress.steps == 0:
            save()
        with progress_bar(run.console, run.log, num_steps, progress.steps, 2 * lower.batch_size, run.go_on) as advance:
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
                        with rollback_if_not_finite(state):
                            result = take_step(models, train, validate, learning_rate)
                            scalars, num_correct = read(result, models, state)
                        progress.good_step(scalars["lower/step_loss"], num_correct, train[1].batch_size)
                        progress.see({f"{level}/step_loss_max": scalars[f"{level}/step_loss"] for level in LEVELS})
                    except FloatingPointError as error:
                        run.bad_step(progress, f"{error} {images_of(config, (lower_images, upper_images), step)}")
                        if progress.bad_steps_in_a_row >= options.max_bad_steps:
                            save()
                            cause = cause_of_bad_step(error)
                            raise Stopped(too_many_bad_steps(progress.bad_steps_in_a_row, error, cause)) from None
                    recent_images += train[1].batch_size + validate[1].batch_size
                    if step % RECORD_EVERY_STEPS == 0:
                        rates = {"lower/learning_rate": learning_rate, "upper/learning_rate": upper.alpha_lr}
                        rates["speed/images_per_s"] = recent_images / (time.monotonic() - recent_began)
                        run.record(epoch + 1, step + 1, scalars | rates | progress.take_peaks())
                        recent_began, recent_images = time.monotonic(), 0
                    save_or_stop(due=time.monotonic() - run.saved_at >= 60 * options.checkpoint_minutes)
                    advance(status(progress, upper_accuracy, genotype))

                with torch.no_grad():
                    edge_weights = alphas()
                estimate_statistics(
                    *(measured, supernet, lower_images, lower.batch_size, options.seed, progress.steps),
                    *(SHARE_OF_STATISTICS, save_or_stop, edge_weights),
                )
                predict = functools.partial(measured, edge_weights=edge_weights)
                result = evaluate(predict, upper_images, 2 * lower.batch_size, save_or_stop)
                upper_accuracy = result.accuracy
                previous, genotype = genotype, Genotype.derive(alphas)
                if processes.first and genotype != previous:
                    drawn = genotype.draw(run.path / "cells")
                progress.epochs = epoch + 1
                if processes.first:
                    note_epoch(config, run, progress, result, edge_weights, genotype, images)
                save()

        if processes.first:
            export_cell(run, exported, images, config.supernet.stem)
        if not drawn:
            run.log(pictures.HOW_TO_GET_PICTURES)
        how = f"--genotype {shlex.quote(str(exported))}{data_flags(data, options.seed, config.supernet.stem)}"
        run.log(f"retrain it: python train_final.py {how}")
        save(finished=True)


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
        InputError: there is not enough memory for a step, or the images are too small for the stem.
    """
    num_lower, num_upper = (len(part.split.targets) for part in (lower_images, upper_images))
    _, in_channels, image_size, _ = images.split.images.shape
    num_weights = sum(weight.numel() for weight in models.supernet.parameters())
    lines = [
        f"{config.data.dataset}: {num_lower} images for the weights, {num_upper} for the alphas, "
        f"{in_channels} × {image_size} × {image_size}, {len(images.split.classes)} classes; "
        f"supernet of {num_weights:,} weights on {device}",
        *imbalance(images),
        *about_stem(config.supernet.stem, image_size),
        *images.split.notes,
    ]
    supernet, alphas = on_meta(models.supernet), on_meta(models.alphas)

    def forward(num_images: int) -> Tensor:
        return supernet(torch.zeros(num_images, in_channels, image_size, image_size, device="meta"), alphas())

    lines.append(memory_of_step(forward, min(config.lower.batch_size, num_lower), device, images.processes))
    return lines


def load_images(config: SearchConfig, device: torch.device, processes: Processes) -> tuple[Images, Images, Images]:
    """All training images, those of the lower level and those of the upper level; the test set is not read."""
    data, fraction, seed = config.data, config.upper.upper_fraction, config.run.seed
    train = datasets.load(
        data.dataset,
        Path(data.data_dir),
        "train",
        data.image_size,
        data.train_limit,
        seed,
        data.skip_bad_images,
        resize=data.resize,
        test_fraction=data.test_fraction,
    )
    lower_half, upper_half = datasets.halves(len(train.targets), fraction, seed)
    if min(len(lower_half), len(upper_half)) < 2:
        raise InputError(
            f"--upper-fraction {fraction}: {count(len(lower_half), 'image')} for the weights and {len(upper_half)} for "
            "the alphas, but each level needs two at least."
        )
    images = prepare(train, data.dataset, device, 0, data.balanced, processes, data.no_flip, data.crop_padding)
    for half in (lower_half, upper_half):
        require_images(processes.count, len(half), config.lower.batch_size, processes)
    lower_images, upper_images = (images._replace(split=images.split.select(half)) for half in (lower_half, upper_half))
    return images, lower_images, upper_images


def cause_of_bad_step(error: FloatingPointError) -> str:
    """The flag that is likely to have led to it."""
    return "--alpha-lr" if "alpha" in str(error) else "--lower-lr"


def images_of(config: SearchConfig, levels: tuple[Images, Images], step: int) -> str:
    """Which images of the training set the two batches of a step consist of."""
    num_images = sum(len(images.split.targets) for images in levels)
    halves = datasets.halves(num_images, config.upper.upper_fraction, config.run.seed)
    weights, alphas = (
        images_of_batch(half, images, config.lower.batch_size, config.run.seed, level, step)
        for half, images, level in zip(halves, levels, LEVELS, strict=True)
    )
    return f"for the weights {weights}, for the alphas {alphas}"


if __name__ == "__main__":
    sys.exit(run_script(search, SearchConfig))
