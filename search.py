#!/usr/bin/env python
"""Search a cell: the weights and the alphas of a supernet learn in turn (DARTS, ICLR 2019, algorithm 1)."""

if __name__ == "__main__":  # before torch, which takes seconds to import
    from nas.config.flags import SearchConfig
    from nas.entry import answer_early

    answer_early(SearchConfig)

import functools
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas.bilevel.curvature import BACK, EVERY, has_grown, largest_eigenvalue
from nas.bilevel.perturbation import TUNING_RATE, decide, decisions
from nas.bilevel.step import Bilevel, build
from nas.config.file import search_epochs
from nas.config.flags import EarlyEnd, LowerLevel, SearchConfig, data_seed, is_several, selection_fraction
from nas.data.loader import Batch, Loader, load_training_split, require_images, training_loader
from nas.data.sampler import halves
from nas.distributed import SINGLE, World
from nas.entry import run_script
from nas.errors import InputError, count
from nas.models.supernet import EdgeWeights
from nas.report.search_log import check_export, count_skips, export_cell, log_epoch, status
from nas.search_space.genotype import Genotype
from nas.selection.protocol import check, plan, run_searches
from nas.training.accuracy import Measured
from nas.training.forecast import memory_of_step, on_meta
from nas.training.loop import Loop
from nas.training.run import Run
from nas.training.steps import about_stem, cosine, cross_entropy, estimate_statistics, evaluate

SHARE_OF_STATISTICS = 0.25  # of an epoch's images: 1 to 3 % of its time


def main(config: SearchConfig, world: World = SINGLE) -> None:
    """Search a cell, or several cells of which the best one is chosen.

    Raises:
        InputError: the search cannot begin, or cannot go on.
        Stopped: it ends early; the message says how to go on.
    """
    if is_several(config):
        with world.raise_on_all():
            if not config.run.dry_run or config.selection.time_budget is not None:
                run_searches(config, Path(__file__).parent)
                return
            check(config)
    run = Run.open(config, world, search_epochs(config), lambda: f"search-{config.data.dataset}")
    if run is not None:
        search(config, run)


def search(config: SearchConfig, run: Run) -> None:
    """Search one cell: algorithm 1 of DARTS."""
    check_export(run)
    images = load_halves(config, run)
    in_channels, _, num_classes = images.all.shape
    bilevel = build(config, in_channels, num_classes, run.device, run.world)
    notes = run.on_all(lambda: describe(config, bilevel, images))

    def cell() -> Genotype:
        return Genotype.from_edge_weights(*(rows.tolist() for rows in bilevel.alphas.mean()), space=bilevel.space)

    loaders = [images.weights, images.alphas]
    loop = Loop(
        run, bilevel.state(), cell, search_epochs(config), loaders, level="lower", rate_flag="--lower-lr", notes=notes
    )

    def take_step(train: Batch, validate: Batch) -> dict[str, Tensor]:
        bilevel.virtual_step(train)  # w′, equation 6
        upper = bilevel.alpha_step(validate, train)  # equations 7 and 8, then Adam
        lower = bilevel.weight_step(train)  # SGD
        return lower | upper

    if config.run.dry_run:
        loop.rehearse(take_step, plan(config) if is_several(config) else (), config.selection.searches)
        return

    with loop:
        loop.status = status(loop.genotype)
        for epoch in loop.epochs():
            learning_rate = learning_rate_of(epoch, config.lower)
            bilevel.begin_epoch(epoch, learning_rate)
            rates = {"lower/learning_rate": learning_rate, "upper/learning_rate": config.upper.alpha_lr}
            for step in loop.steps():
                batches = images.weights.batch(step), images.alphas.batch(step)
                loop.take(take_step, *batches, rates=rates, record=bilevel.begin_step(step))
            measured = measure(bilevel, images, loop)
            decide_next(bilevel, images, loop)
            go_back_if_curved(bilevel, images, loop)
            log_epoch(loop, bilevel.alphas, measured, images.all)
            end_early(loop, config.early_end)
        export_cell(loop, images.all)


class Halves(NamedTuple):
    """The training images: those that the weights learn from, those that the alphas learn from, and both."""

    weights: Loader
    alphas: Loader
    all: Loader


def load_halves(config: SearchConfig, run: Run) -> Halves:
    """Load the training images, in two halves; the test set, and what is held out for the choice, are not among them.

    Raises:
        InputError: the images cannot be read, or are too few for a batch.
    """
    fraction, batch_size, seed = config.upper.upper_fraction, config.lower.batch_size, config.run.seed

    def load() -> Halves:
        train = load_training_split(config.data, data_seed(config))
        num_images, held_out = len(train.targets), selection_fraction(config)
        kept = halves(num_images, held_out, data_seed(config))[0] if held_out else torch.arange(num_images)
        weights, alphas = halves(len(kept), fraction, seed)
        if min(len(weights), len(alphas)) < 2:
            raise InputError(
                f"--upper-fraction {fraction}: {count(len(weights), 'image')} for the weights and {len(alphas)} for "
                "the alphas, but each level needs at least two."
            )
        images = training_loader(train.select(kept), config.data, run.device, batch_size, seed, world=run.world)
        images = images._replace(numbers=kept)
        for half in (weights, alphas):
            require_images(run.world.size, len(half), batch_size, run.world)
        return Halves(images.part(weights, "lower"), images.part(alphas, "upper"), images)

    images = run.load(load)
    run.check_images(images.all.split)
    return images


def describe(config: SearchConfig, bilevel: Bilevel, images: Halves) -> list[str]:
    """Return lines on what will be searched, and on the memory that a step takes.

    Raises:
        InputError: there is not enough memory for a step, or the images are too small for the stem.
    """
    in_channels, image_size, num_classes = images.all.shape
    num_weights = sum(weight.numel() for weight in bilevel.supernet.parameters())
    supernet, alphas = on_meta(bilevel.supernet), on_meta(bilevel.alphas)

    def forward(num_images: int) -> Tensor:
        return supernet(torch.zeros(num_images, in_channels, image_size, image_size, device="meta"), alphas.mean())

    batch_size = min(config.lower.batch_size, images.weights.num_images)
    return [
        f"{config.data.dataset}: {images.weights.num_images} images for the weights, {images.alphas.num_images} for "
        f"the alphas, {in_channels} × {image_size} × {image_size}, {num_classes} classes; "
        f"supernet of {num_weights:,} weights on {images.all.device}",
        *images.all.imbalance(),
        *about_stem(config.supernet.stem, image_size),
        *images.all.split.notes,
        memory_of_step(forward, batch_size, images.all.device, images.all.world),
    ]


def learning_rate_of(epoch: int, lower: LowerLevel) -> float:
    """Return the learning rate of the weights in an epoch of the search, or in one that tunes them afterwards."""
    if epoch < lower.epochs:
        return cosine(epoch, lower.epochs, lower.lower_lr, lower.lower_lr_min)
    return TUNING_RATE * lower.lower_lr


def decide_next(bilevel: Bilevel, images: Halves, loop: Loop) -> None:
    """Take the next decision of --derivation perturbation, if one is due after this epoch."""
    config = bilevel.config
    tuned = loop.state.epochs + 1 - config.lower.epochs
    if config.upper.derivation == "argmax" or tuned < 0 or tuned % config.upper.tuning_epochs:
        return
    network = bilevel.evaluated.train()  # batch norms by batch, as the edge weights change from call to call

    def quality(edge_weights: EdgeWeights) -> float:
        return evaluate(functools.partial(network, edge_weights=edge_weights), images.alphas, loop.poll).accuracy

    every = decisions(bilevel.space, config.supernet.num_nodes, config.run.seed)
    number = tuned // config.upper.tuning_epochs
    decided = decide(bilevel.alphas, every[number], quality)
    loop.folder.log(f"decision {number + 1} of {len(every)}: {decided}")


def go_back_if_curved(bilevel: Bilevel, images: Halves, loop: Loop) -> None:
    """End the search, with earlier alphas, if the upper loss is curved far more than it was (see --end-eigenvalue)."""
    growth, epoch = bilevel.config.early_end.end_eigenvalue, loop.state.epochs + 1
    if bilevel.past is None or growth is None or epoch % EVERY:
        return
    batch = images.alphas.batch(loop.state.steps)
    loss = cross_entropy(bilevel.evaluated(batch.images, bilevel.alphas.mean()), batch)
    found = [*loop.state.eigenvalues, largest_eigenvalue(loss, [*bilevel.alphas.parameters()], images.all.world.mean)]
    loop.folder.record(epoch, loop.state.steps, {"upper/largest_eigenvalue": found[-1]})
    bilevel.past.keep(len(found) - 1)
    if has_grown(found, growth):
        bilevel.past.go_back(len(found) - 1 - BACK)
        loop.end_early(
            f"the largest eigenvalue has grown by more than {growth:g}; the alphas are those of epoch "
            f"{epoch - EVERY * BACK} again."
        )
    loop.state.eigenvalues = found


def end_early(loop: Loop, when: EarlyEnd) -> None:
    """End the search with this epoch if its cell says so."""
    loop.state.end_epoch(loop.genotype.to_text())
    same, skips = loop.state.same_cell_epochs, max(count_skips(loop.genotype))
    if when.end_same_cell is not None and same >= when.end_same_cell:
        loop.end_early(f"the cell has been the same for {count(same, 'epoch')}.")
    elif when.end_skips is not None and skips > when.end_skips:
        loop.end_early(f"a cell has {count(skips, 'skip connection')}.")


def measure(bilevel: Bilevel, images: Halves, loop: Loop) -> Measured:
    """Measure the supernet, with the edge weights as they are, on the images that the alphas learn from."""
    with torch.no_grad():
        edge_weights = bilevel.alphas.mean()
    estimate_statistics(
        *(bilevel.evaluated, bilevel.supernet, images.weights, loop.state.steps, SHARE_OF_STATISTICS, loop.poll),
        edge_weights,
    )
    return evaluate(functools.partial(bilevel.evaluated, edge_weights=edge_weights), images.alphas, loop.poll)


if __name__ == "__main__":
    sys.exit(run_script(main, SearchConfig))
