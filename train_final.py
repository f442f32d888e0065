#!/usr/bin/env python
"""Train the network of a genotype from scratch, and report its test accuracy (DARTS, ICLR 2019, appendix A.2.1)."""

if __name__ == "__main__":  # before torch, which takes seconds to import
    from nas.config.flags import FinalConfig
    from nas.entry import answer_early

    answer_early(FinalConfig)

import copy
import functools
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas.config.cli import with_size_of
from nas.config.flags import FinalConfig, TrainedOn, data_seed
from nas.data.loader import Batch, Loader, load_test_images, load_training_split, require_images, training_loader
from nas.data.sampler import generator, halves
from nas.distributed import SINGLE, World
from nas.entry import run_script
from nas.errors import InputError, count, printable
from nas.machine.memory import peak_memory_gb
from nas.machine.threads import take_threads
from nas.models.batch_norm import synchronise
from nas.models.final_network import FinalNetwork
from nas.models.size import network_size
from nas.runs.checkpoint import save_weights, state_tensors
from nas.runs.progress_bar import duration
from nas.search_space import pictures, reader
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile
from nas.training.accuracy import Measured, in_words
from nas.training.forecast import memory_of_step, on_meta
from nas.training.loop import Loop
from nas.training.run import Run
from nas.training.steps import (
    about_stem,
    average_step,
    cosine,
    cross_entropy,
    estimate_statistics,
    evaluate,
    pick_device,
    start_states,
)

# 0.9 ** 50 = 0.005: after this many steps running statistics hold nothing of what was before.
STEPS_OF_STATISTICS = 50
SHARE_OF_STATISTICS = 1 / 12  # of an epoch's images: 2 to 3 % of its time


def main(config: FinalConfig, world: World = SINGLE) -> None:
    """Train a genotype, or measure a trained network again.

    Raises:
        InputError: the training cannot begin, or cannot go on.
        Stopped: it ends early; the message says how to go on.
    """
    source = config.network.genotype
    if config.network.evaluate is not None:
        evaluate_run(Path(config.network.evaluate), config, world)
        return
    if source is None:
        raise InputError("--genotype: missing; give a genotype file or a name such as DARTS_V2, or --evaluate a run.")
    read = functools.cache(reader.read)
    run = Run.open(config, world, config.training.epochs, lambda: f"final-{read(source).name}")
    if run is not None:
        train_final(config, run, read)


class Images(NamedTuple):
    """The images to train on, and where there are such, those held out and those of the test set."""

    train: Loader
    held_out: Loader | None
    test: Loader | None


def train_final(config: FinalConfig, run: Run, read: Callable[[str], reader.Read] = reader.read) -> None:
    """Train the network of one genotype; the test images serve once, at the end."""
    file, source, notes = load_genotype(config, run, read)
    genotype = Genotype(**file.cells())
    config = run.config = with_size_of(config, genotype.space)
    training = config.training
    images = load_images(config, run)
    network, optimizer = build(config, genotype, images.train, run.world)
    state = state_tensors({"network": network}, {"optimizer": optimizer})
    notes += run.on_all(lambda: describe(config, source, network, images))
    loop = Loop(run, state, genotype, training.epochs, [images.train], level="train", rate_flag="--lr", notes=notes)
    step_of = functools.partial(take_step, config, network, optimizer, run.world)
    trained = trained_network(config, network, images.train, loop)

    if config.run.dry_run:
        loop.rehearse(functools.partial(step_of, config.network.drop_path))
        return

    with loop:
        loop.folder.save_genotype(genotype, file.provenance)
        for epoch in loop.epochs():
            learning_rate = cosine(epoch, training.epochs, training.lr, 0.0)
            optimizer.param_groups[0]["lr"] = learning_rate
            drop_path = config.network.drop_path * epoch / training.epochs
            rates = {"train/learning_rate": learning_rate, "train/drop_path": drop_path}
            for step in loop.steps():
                loop.take(functools.partial(step_of, drop_path), images.train.batch(step), rates=rates)
            held_out = accuracy_of(trained(epoch + 1), images.held_out, loop.poll) if images.held_out else None
            log_epoch(loop, held_out)
        finish(loop, trained(training.epochs), images)


def take_step(
    config: FinalConfig,
    network: FinalNetwork,
    optimizer: torch.optim.SGD,
    world: World,
    drop_path: float,
    batch: Batch,
) -> dict[str, Tensor]:
    """Move the weights by SGD, and return the scalars of the step by name, on the device."""
    optimizer.zero_grad()
    draws = generator("drop path", config.run.seed, batch.step, device=str(batch.images.device))
    logits, auxiliary_logits = network(batch.images, drop_path, draws, batch.size, batch.rows)
    loss = total = cross_entropy(logits, batch)
    if auxiliary_logits is not None:
        total = loss + config.network.auxiliary_weight * cross_entropy(auxiliary_logits, batch)
    total.backward()
    loss, num_correct = average_step(world, network, loss, logits, batch)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.training.grad_clip)
    optimizer.step()
    return {
        "train/step_loss": loss,
        "train/gradient_norm": norm,
        "train/weights_norm": torch.nn.utils.get_total_norm(list(network.parameters())),
        "num_correct": num_correct,
    }


def trained_network(
    config: FinalConfig, network: FinalNetwork, train: Loader, loop: Loop
) -> Callable[[int], FinalNetwork]:
    """Return a function from the number of finished epochs to the network as it is measured and, at the end, saved.

    Where an epoch has too few steps for the running statistics, it is a copy with statistics estimated anew.
    """
    evaluated = copy.deepcopy(network)

    @functools.lru_cache(maxsize=1)  # the last epoch and the end ask for the same one
    def trained(epochs: int) -> FinalNetwork:
        if train.num_batches >= STEPS_OF_STATISTICS:
            return network
        share = 1.0 if epochs == config.training.epochs else SHARE_OF_STATISTICS
        estimate_statistics(evaluated, network, train, loop.state.steps, share, loop.poll)
        return evaluated

    return trained


def log_epoch(loop: Loop, held_out: Measured | None) -> None:
    """Record the epoch that ends, with the accuracy on the held-out images if there are any."""
    state, folder, epoch = loop.state, loop.folder, loop.state.epochs + 1
    scalars = state.scalars("train")
    line = f"epoch {epoch}/{loop.num_epochs}: {state.line()}"
    if held_out is not None:
        line += f"; held out: loss {in_words(held_out.loss)}, accuracy {held_out.accuracy:.1%}"
        line += f", balanced {held_out.balanced_accuracy:.1%}"
        loop.status = f", held out {held_out.accuracy:.1%}"
        scalars |= held_out.scalars("holdout")
    epoch_s = folder.elapsed_s() - state.epoch_began_s
    speed = {"speed/epoch_s": epoch_s, "speed/peak_memory_gb": peak_memory_gb(loop.run.device)}
    folder.record(epoch, state.steps, scalars | speed)
    folder.log(f"{line}; {duration(epoch_s)}")


def finish(loop: Loop, trained: FinalNetwork, images: Images) -> None:
    """Save the weights, and measure them on the test images, or on the held-out ones where the test set is left alone.

    The test set serves here for the first time, and once: no epoch was chosen by it.
    """
    run, folder = loop.run, loop.folder
    name, measured = ("test", images.test) if images.test else ("held-out", images.held_out)
    assert measured is not None
    result = accuracy_of(trained, measured, loop.poll)
    if not folder.is_silent:
        save_weights(folder.path / "weights.safetensors", trained)
        result.save(folder.path, name, loop.num_epochs)
    if images.test:
        folder.record(loop.num_epochs, loop.num_steps, result.scalars("test"))
    folder.log(
        f"written in {folder.path}: weights.safetensors, accuracy.json, genotype.json, config.json, cells/, "
        "metrics.jsonl, log.txt"
    )
    if not folder.has_pictures:
        folder.log(pictures.HOW_TO_GET_PICTURES)
    if images.test:
        folder.log(f"measure it again: python train_final.py --evaluate {shlex.quote(str(folder.path))}")
    assert run.trained_on is not None
    for line in result.lines(f"{name} accuracy after epoch {loop.num_epochs}:", run.trained_on.classes):
        folder.log(line)


def build(config: FinalConfig, genotype: Genotype, train: Loader, world: World) -> tuple[FinalNetwork, torch.optim.SGD]:
    """Return the network, started from the seed, with its optimizer."""
    network_config, training = config.network, config.training
    in_channels, _, num_classes = train.shape
    torch.manual_seed(config.run.seed)
    network = FinalNetwork(
        genotype,
        in_channels,
        network_config.init_channels,
        network_config.num_cells,
        num_classes,
        auxiliary=network_config.auxiliary_weight > 0,
        stem=network_config.stem,
    ).to(train.device)
    network.to(memory_format=torch.channels_last)
    if config.run.sync_batch_norm and world.size > 1:
        synchronise(network, world.gather)
    optimizer = torch.optim.SGD(
        network.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay
    )
    start_states(optimizer)
    return network, optimizer


def load_genotype(
    config: FinalConfig, run: Run, read: Callable[[str], reader.Read]
) -> tuple[GenotypeFile, str, list[str]]:
    """Read the genotype of --genotype, or that of a run folder: its cells, where they were, and how they were read."""

    def load() -> str:
        own = run.path / "genotype.json"
        source = str(own if run.is_resumed and own.exists() else config.network.genotype)
        found = read(source)
        notes = [f"{found.where}: {note}" for note in found.notes]
        return json.dumps([found.file.model_dump_json(), printable(source, 80), notes])

    file, source, notes = json.loads(run.on_main(load))
    return GenotypeFile.parse(file), source, notes


def load_images(config: FinalConfig, run: Run) -> Images:
    """Load the images, and tell the run what it is trained on.

    Raises:
        InputError: images cannot be read, are too few, or those of the test set are of another kind.
    """
    data, training, seed = config.data, config.training, config.run.seed

    def load() -> tuple[Loader, Loader | None]:
        split = load_training_split(data, data_seed(config))
        image_size = split.images.shape[-1]
        cutout = image_size // 2 if training.cutout is None else training.cutout
        if cutout > image_size:
            raise InputError(f"--cutout {cutout}: larger than the images, which have {image_size} pixels a side.")
        kept, held_out = halves(len(split.targets), training.holdout_fraction, data_seed(config))
        if len(kept) < 2:
            raise InputError(
                f"--holdout-fraction {training.holdout_fraction}: fewer than two images are left to train on."
            )
        if training.holdout_fraction and not len(held_out):
            raise InputError(
                f"--holdout-fraction {training.holdout_fraction}: not one of {count(len(kept), 'image')} would be held "
                "out; choose a larger fraction."
            )
        train = training_loader(split.select(kept), data, run.device, training.batch_size, seed, cutout, run.world)
        train = train._replace(numbers=kept, purpose="final")
        # A batch norm of the auxiliary head has one value per image.
        needed = max(2, run.world.size) if config.run.sync_batch_norm else 2 * run.world.size
        require_images(needed, len(kept), training.batch_size, run.world)
        rest = split.select(held_out).to(run.device)
        return train, train._replace(split=rest, numbers=held_out) if len(held_out) else None

    train, held_out = run.load(load)
    in_channels, image_size, _ = train.shape
    split, mean, std = train.split, tuple(train.mean.tolist()), tuple(train.std.tolist())
    kind = split.classes, in_channels, image_size, mean, std, data.resize, split.bits
    run.trained_on = TrainedOn(*kind, train.num_images)
    trained_on = run.trained_on
    test = None
    if not training.skip_test:
        test = run.load(lambda: load_test_images(config, trained_on, run.device, run.world))
    run.check_images(split, *([test.split] if test else []))
    return Images(train, held_out, test)


def describe(config: FinalConfig, source: str, network: FinalNetwork, images: Images) -> list[str]:
    """Return lines on what will be trained, and on the memory that a step takes.

    Raises:
        InputError: there is not enough memory for a step, or the images are too small for the stem.
    """
    train = images.train
    in_channels, image_size, num_classes = train.shape
    shape = image_size, in_channels, config.network.init_channels, config.network.num_cells
    size = network_size(network.genotype, *shape, num_classes, config.network.stem)
    held_out = f" ({images.held_out.num_images} held out)" if images.held_out else ""
    weightless = on_meta(network)

    def forward(num_images: int) -> Tensor:
        batch = torch.zeros(num_images, in_channels, image_size, image_size, device="meta")
        logits, auxiliary_logits = weightless(batch)
        return logits if auxiliary_logits is None else logits + auxiliary_logits

    batch_size = min(config.training.batch_size, train.num_images)
    return [
        f"{source} on {config.data.dataset}: {train.num_images} training images{held_out}, "
        f"{in_channels} × {image_size} × {image_size}, {num_classes} classes; "
        f"{size.weights:,} weights, {size.multiply_adds:,} multiply-adds "
        f"({2 * size.multiply_adds / 1e9:.3f} GFLOP) per image, on {train.device}",
        *train.imbalance(),
        *about_stem(config.network.stem, image_size),
        *train.split.notes,
        memory_of_step(forward, batch_size, train.device, train.world),
        *(images.test.split.notes if images.test else ()),
    ]


def accuracy_of(network: FinalNetwork, images: Loader, before_batch: Callable[[], None] = lambda: None) -> Measured:
    """Measure a network without drop path and auxiliary head, by the running statistics of its batch norms."""
    network.eval()
    result = evaluate(lambda batch: network(batch)[0], images, before_batch)
    network.train()
    return result


def evaluate_run(path: Path, config: FinalConfig, world: World = SINGLE) -> None:
    """Rebuild the network of a run folder, and print its test accuracy; `config` is that of the run."""
    threads = take_threads(config.run, path, world)

    def load() -> tuple[FinalNetwork, TrainedOn, Loader]:
        device = pick_device(config.run.device, world)
        network = FinalNetwork.from_run(path).to(device).to(memory_format=torch.channels_last)
        assert network.trained_on is not None
        return network, network.trained_on, load_test_images(config, network.trained_on, device, world)

    network, trained_on, test_images = world.local_first(load)
    result = accuracy_of(network, test_images)
    lines = [threads, *test_images.split.notes, *result.lines(f"{path}: test accuracy", trained_on.classes)]
    world.print(*lines)


if __name__ == "__main__":
    sys.exit(run_script(main, FinalConfig))
