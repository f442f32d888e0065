#!/usr/bin/env python
"""Train the network of a genotype from scratch, and report its test accuracy (DARTS, ICLR 2019, appendix A.2.1)."""

import copy
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from nas.config.flags import Data, FinalConfig, TrainedOn
from nas.data import datasets
from nas.distributed import ALONE, Processes
from nas.entry import run_script
from nas.errors import InputError, Stopped, printable
from nas.machine.memory import peak_memory_gb
from nas.machine.threads import take_threads
from nas.models.batch_norm import synchronise
from nas.models.final_network import FinalNetwork
from nas.models.size import network_size
from nas.runs.checkpoint import save_weights, state_tensors
from nas.runs.folder import RunFolder, folder_of_run, is_finished
from nas.runs.follower import Follower, check_same_images, restore
from nas.runs.interrupts import Interrupts
from nas.runs.progress_bar import duration, outlook, progress_bar
from nas.search_space import pictures, reader
from nas.search_space.genotype import Genotype, GenotypeFile
from nas.training.accuracy import Measured, in_words
from nas.training.forecast import memory_of_step, on_meta
from nas.training.steps import (
    Images,
    Target,
    about_stem,
    average_step,
    cosine,
    cross_entropy,
    estimate_statistics,
    evaluate,
    images_of_batch,
    imbalance,
    pick_device,
    prepare,
    require_images,
    rollback_if_not_finite,
    scalars_to_host,
    seconds_of_step,
    start_states,
    too_many_bad_steps,
)

RECORD_EVERY_STEPS = 10
# 0.9 ** 50 = 0.005: after so many steps running statistics hold nothing of what was before.
STEPS_OF_STATISTICS = 50
SHARE_OF_STATISTICS = 1 / 12  # of an epoch's images: 2 to 3 % of its time


def main(config: FinalConfig, processes: Processes = ALONE) -> None:
    """Train a genotype, or measure a trained network again."""
    if config.network.evaluate is not None:
        evaluate_run(Path(config.network.evaluate), config, processes)
    elif config.network.genotype is not None:
        train_final(config, config.network.genotype, processes)
    else:
        raise InputError("--genotype: missing; give a genotype file or a name such as DARTS_V2, or --evaluate a run.")


def train_final(config: FinalConfig, path_or_name: str, processes: Processes = ALONE) -> None:
    """Train a genotype, or go on with a training.

    Raises:
        InputError: it cannot be begun, or gone on with.
        Stopped: it ends before its end; how to go on is said.
    """
    data, training, options = config.data, config.training, config.run
    drop_path_at_end = config.network.drop_path
    found, default = None, ""
    with processes.agreed():
        if processes.first and options.resume is None:
            found = reader.read(path_or_name)
            default = f"final-{found.name}"
    path = Path(processes.text_of_first(str(folder_of_run(options, default))))
    (finished,) = processes.any(processes.first and options.resume is not None and is_finished(path, training.epochs))
    if finished:
        return
    threads = take_threads(options, path, processes)
    run = None
    with processes.agreed():
        device = pick_device(options.device, processes)
        if options.deterministic:  # only then, as the call itself takes seconds to import what it sets
            torch.use_deterministic_algorithms(True)
        if processes.first and options.resume is not None:
            if (path / "genotype.json").exists():
                path_or_name = str(path / "genotype.json")
            run = RunFolder.reopen(path, config)
            found = reader.read(path_or_name)
    file = GenotypeFile.model_validate_json(processes.text_of_first(found.file.model_dump_json() if found else ""))
    genotype = Genotype(**file.cells())
    images, holdout_images = processes.in_turn(lambda: load_images(config, device, processes))
    _, in_channels, image_size, _ = images.split.images.shape
    trained_on = TrainedOn(
        images.split.classes,
        in_channels,
        image_size,
        tuple(images.mean.tolist()),
        tuple(images.std.tolist()),
        data.resize,
        images.split.bits,
    )
    test_images = None
    if not training.skip_test:
        test_images = processes.in_turn(lambda: load_test_images(data, trained_on, device, processes))
    fingerprint = datasets.fingerprint(images.split, *([test_images.split] if test_images else []))
    check_same_images(processes, fingerprint)
    network, optimizer = build(config, genotype, trained_on, device, processes)
    network_to_measure = copy.deepcopy(network)  # with statistics of its own
    state = state_tensors({"network": network}, {"optimizer": optimizer})
    steps_an_epoch = datasets.num_batches(len(images.split.targets), training.batch_size)
    num_steps = training.epochs * steps_an_epoch
    with processes.agreed():
        lines = [threads] + ([f"{found.where}: {note}" for note in found.notes] if found else [])
        lines += forecast(config, printable(path_or_name, 80), network, images, holdout_images)
        lines += test_images.split.notes if test_images else ()
    if options.dry_run:
        batch, target = images.batch(training.batch_size, options.seed, "final", 0)
        with processes.agreed():
            step_s = seconds_of_step(
                lambda: scalars_to_host(
                    take_step(config, network, optimizer, batch, target, 0, drop_path_at_end, processes), state
                ),
                state,
                lambda _: "--lr",
            )
        if processes.first:
            print(*lines, outlook(step_s, num_steps, training.batch_size), sep="\n")
        return
    with processes.agreed():
        followed = None if processes.first else Follower(path, processes.rank)
        run = run or followed or RunFolder.create(path, config, trained_on)

    with run, Interrupts() as interrupts:
        progress = restore(run, processes, state, fingerprint, genotype.to_text())
        if processes.first:
            genotype.save(run.path / "genotype.json", file.provenance)
        drawn = processes.first and genotype.draw(run.path / "cells")
        for line in lines:
            run.log(line)
        run.log(f"{run.path}: tensorboard --logdir {shlex.quote(str(path.parent))} shows the training as it goes")

        def save(finished: bool = False) -> None:
            processes.check_identical(state)
            run.save(state, fingerprint, genotype.to_text(), progress, finished)

        def save_or_stop(due: bool = False) -> None:
            asked, due = processes.any(interrupts.received is not None, due)
            if asked or due:
                save()
            if asked:
                raise Stopped(f"after step {progress.steps}; go on: {run.go_on}", interrupts.exit_code)

        def to_measure(epochs: int) -> FinalNetwork:
            """The network after so many epochs, as it is measured and, after the last one, saved."""
            if steps_an_epoch >= STEPS_OF_STATISTICS:
                return network
            share = 1.0 if epochs == training.epochs else SHARE_OF_STATISTICS
            where = training.batch_size, options.seed, progress.steps, share
            estimate_statistics(network_to_measure, network, images, *where, save_or_stop)
            return network_to_measure

        if progress.steps == 0:
            save()
        held_out = ""  # accuracy after the last epoch
        with progress_bar(run.console, run.log, num_steps, progress.steps, training.batch_size, run.go_on) as advance:
            for epoch in range(progress.epochs, training.epochs):
                if progress.steps == epoch * steps_an_epoch:
                    progress.begin_epoch(run.elapsed_s())
                learning_rate = cosine(epoch, training.epochs, training.lr, 0.0)
                optimizer.param_groups[0]["lr"] = learning_rate
                drop_path = drop_path_at_end * epoch / training.epochs
                for step in range(progress.steps, (epoch + 1) * steps_an_epoch):
                    step_began = time.monotonic()
                    batch, target = images.batch(training.batch_size, options.seed, "final", step)
                    scalars: dict[str, float] = {}
                    try:
                        with rollback_if_not_finite(state):
                            scalars = scalars_to_host(
                                take_step(config, network, optimizer, batch, target, step, drop_path, processes), state
                            )
                        num_correct = scalars.pop("num_correct")
                        progress.good_step(scalars["train/step_loss"], num_correct, target.batch_size)
                        progress.see({"train/step_loss_max": scalars["train/step_loss"]})
                    except FloatingPointError as error:
                        run.bad_step(progress, f"{error} {images_of(config, images, holdout_images, step)}")
                        if progress.bad_steps_in_a_row >= options.max_bad_steps:
                            save()
                            sentence = too_many_bad_steps(progress.bad_steps_in_a_row, error, "--lr")
                            raise Stopped(sentence) from None
                    if step % RECORD_EVERY_STEPS == 0:
                        rates = {"train/learning_rate": learning_rate, "train/drop_path": drop_path}
                        rates["speed/images_per_s"] = target.batch_size / (time.monotonic() - step_began)
                        run.record(epoch + 1, step + 1, scalars | rates | progress.take_peaks())
                    save_or_stop(due=time.monotonic() - run.saved_at >= 60 * options.checkpoint_minutes)
                    advance(f"{progress.status('train')}{held_out}")

                line = f"epoch {epoch + 1}/{training.epochs}: {progress.line()}"
                scalars = progress.scalars("train")
                if holdout_images is not None:
                    result = accuracy_of(to_measure(epoch + 1), holdout_images, training.batch_size, save_or_stop)
                    line += f"; held out: loss {in_words(result.loss)}, accuracy {result.accuracy:.1%}"
                    line += f", balanced {result.balanced_accuracy:.1%}"
                    held_out = f", held out {result.accuracy:.1%}"
                    scalars |= result.scalars("holdout")
                epoch_s = run.elapsed_s() - progress.epoch_began_s
                run.record(
                    epoch + 1,
                    progress.steps,
                    scalars | {"speed/epoch_s": epoch_s, "speed/peak_memory_gb": peak_memory_gb(device)},
                )
                run.log(f"{line}; {duration(epoch_s)}")
                progress.epochs = epoch + 1
                save()

        trained = to_measure(training.epochs)
        if processes.first:
            save_weights(run.path / "weights.safetensors", trained)
        name, measured = ("test", test_images) if test_images else ("held-out", holdout_images)
        assert measured is not None
        # The test set serves here for the first time, and once: no epoch was chosen by it.
        result = accuracy_of(trained, measured, training.batch_size, save_or_stop)
        if processes.first:
            result.save(run.path, name, training.epochs)
        if test_images:
            run.record(training.epochs, num_steps, result.scalars("test"))
        run.log(
            f"written in {run.path}: weights.safetensors, accuracy.json, genotype.json, config.json, cells/, "
            "metrics.jsonl, log.txt"
        )
        if not drawn:
            run.log(pictures.HOW_TO_GET_PICTURES)
        if test_images:
            run.log(f"measure it again: python train_final.py --evaluate {shlex.quote(str(run.path))}")
        for line in result.lines(f"{name} accuracy after epoch {training.epochs}:", trained_on.classes):
            run.log(line)
        save(finished=True)


def build(
    config: FinalConfig, genotype: Genotype, trained_on: TrainedOn, device: torch.device, processes: Processes = ALONE
) -> tuple[FinalNetwork, torch.optim.SGD]:
    """The network, started from the seed, with its optimizer."""
    network_config, training = config.network, config.training
    torch.manual_seed(config.run.seed)
    network = FinalNetwork(
        genotype,
        trained_on.in_channels,
        network_config.init_channels,
        network_config.num_cells,
        len(trained_on.classes),
        auxiliary=network_config.auxiliary_weight > 0,
        stem=network_config.stem,
    ).to(device)
    network.to(memory_format=torch.channels_last)
    if config.run.sync_batch_norm and processes.count > 1:
        synchronise(network, processes.gather)
    optimizer = torch.optim.SGD(
        network.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay
    )
    start_states(optimizer)
    return network, optimizer


def forecast(
    config: FinalConfig, path_or_name: str, network: FinalNetwork, images: Images, holdout_images: Images | None
) -> list[str]:
    """Lines on what will be trained, and what a step takes.

    Raises:
        InputError: there is not enough memory for a step, or the images are too small for the stem.
    """
    num_images, in_channels, image_size, _ = images.split.images.shape
    num_classes, device = len(images.split.classes), images.mean.device
    shape = image_size, in_channels, config.network.init_channels, config.network.num_cells
    size = network_size(network.genotype, *shape, num_classes, config.network.stem)
    held_out = f" ({len(holdout_images.split.targets)} held out)" if holdout_images else ""
    lines = [
        f"{path_or_name} on {config.data.dataset}: {num_images} training images{held_out}, "
        f"{in_channels} × {image_size} × {image_size}, {num_classes} classes; "
        f"{size.weights:,} weights, {size.multiply_adds:,} multiply-adds "
        f"({2 * size.multiply_adds / 1e9:.3f} GFLOP) an image, on {device}",
        *imbalance(images),
        *about_stem(config.network.stem, image_size),
        *images.split.notes,
    ]
    weightless = on_meta(network)

    def forward(num_images: int) -> torch.Tensor:
        batch = torch.zeros(num_images, in_channels, image_size, image_size, device="meta")
        logits, auxiliary_logits = weightless(batch)
        return logits if auxiliary_logits is None else logits + auxiliary_logits

    lines.append(memory_of_step(forward, min(config.training.batch_size, num_images), device, images.processes))
    return lines


def take_step(
    config: FinalConfig,
    network: FinalNetwork,
    optimizer: torch.optim.SGD,
    batch: torch.Tensor,
    target: Target,
    step: int,
    drop_path: float,
    processes: Processes = ALONE,
) -> dict[str, torch.Tensor]:
    """Move the weights, and return the scalars of the step by name, still on the device."""
    optimizer.zero_grad()
    dropped = datasets.generator("drop path", config.run.seed, step, device=str(batch.device))
    logits, auxiliary_logits = network(batch, drop_path, dropped, target.batch_size, processes.rows(target.batch_size))
    loss = total = cross_entropy(logits, target)
    if auxiliary_logits is not None:
        total = loss + config.network.auxiliary_weight * cross_entropy(auxiliary_logits, target)
    total.backward()
    loss, num_correct = average_step(processes, network, loss, logits, target)
    norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.training.grad_clip)
    optimizer.step()
    return {
        "train/step_loss": loss,
        "train/gradient_norm": norm,
        "train/weights_norm": torch.nn.utils.get_total_norm(list(network.parameters())),
        "num_correct": num_correct,
    }


def images_of(config: FinalConfig, images: Images, holdout_images: Images | None, step: int) -> str:
    """Which images of the training set the batch of a step consists of."""
    num_images, num_held_out = (len(part.split.targets) if part else 0 for part in (images, holdout_images))
    seed, training = config.run.seed, config.training
    kept, _ = datasets.halves(num_images + num_held_out, training.holdout_fraction, seed)
    return images_of_batch(kept, images, training.batch_size, seed, "final", step)


def load_images(
    config: FinalConfig, device: torch.device, processes: Processes = ALONE
) -> tuple[Images, Images | None]:
    """Images to train on, and those held out of the training set, if any."""
    data, training, seed = config.data, config.training, config.run.seed
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
    image_size = train.images.shape[-1]
    cutout = image_size // 2 if training.cutout is None else training.cutout
    if cutout > image_size:
        raise InputError(f"--cutout {cutout}: larger than the images, which have {image_size} pixels a side.")
    kept, held_out = datasets.halves(len(train.targets), training.holdout_fraction, seed)
    if len(kept) < 2:
        raise InputError(f"--holdout-fraction {training.holdout_fraction}: fewer than two images are left to train on.")
    images = prepare(
        train.select(kept), data.dataset, device, cutout, data.balanced, processes, data.no_flip, data.crop_padding
    )
    # A batch norm of the auxiliary head has one value an image.
    needed = max(2, processes.count) if config.run.sync_batch_norm else 2 * processes.count
    require_images(needed, len(kept), training.batch_size, processes)
    holdout = images._replace(split=train.select(held_out).to(device)) if len(held_out) else None
    return images, holdout


def load_test_images(data: Data, trained_on: TrainedOn, device: torch.device, processes: Processes = ALONE) -> Images:
    """The test set, prepared as the training images were."""
    test = datasets.load(
        data.dataset,
        Path(data.data_dir),
        "test",
        data.image_size,
        skip_bad=data.skip_bad_images,
        classes=trained_on.classes,
        resize=trained_on.resize,
        test_fraction=data.test_fraction,
        bits=trained_on.bits,
    )
    if test.classes != trained_on.classes:
        other = sorted(set(test.classes) ^ set(trained_on.classes)) or ["their order"]
        raise InputError(
            f"--data-dir {data.data_dir}: training and test images differ in their classes "
            f"({printable(', '.join(other[:5]), 300)}); give both the same ones, or --skip-test --holdout-fraction 0.1."
        )
    shape, trained = test.images.shape[1:], (trained_on.in_channels, trained_on.image_size, trained_on.image_size)
    if shape != trained:
        raise InputError(
            f"--data-dir {data.data_dir}: test images are {' × '.join(map(str, shape))} (channels, rows, columns), "
            f"training images {' × '.join(map(str, trained))}; bring them to one shape."
        )
    mean, std = (torch.tensor(values, device=device) for values in (trained_on.mean, trained_on.std))
    return Images(test.to(device), mean, std, flip=False, processes=processes)


def accuracy_of(
    network: FinalNetwork, images: Images, batch_size: int, before_batch: Callable[[], None] = lambda: None
) -> Measured:
    """Loss and answers without drop path and auxiliary head, by the batch norms' running statistics."""
    network.eval()
    result = evaluate(lambda batch: network(batch)[0], images, 2 * batch_size, before_batch)
    network.train()
    return result


def evaluate_run(path: Path, config: FinalConfig, processes: Processes = ALONE) -> None:
    """Rebuild the network of a run folder, and print its test accuracy; `config` is that of the run."""
    threads = take_threads(config.run, path, processes)
    with processes.agreed():
        device = pick_device(config.run.device, processes)
        network = FinalNetwork.from_run(path).to(device).to(memory_format=torch.channels_last)
    trained_on = network.trained_on
    assert trained_on is not None
    test_images = processes.in_turn(lambda: load_test_images(config.data, trained_on, device, processes))
    result = accuracy_of(network, test_images, config.training.batch_size)
    if processes.first:
        print(threads, *test_images.split.notes, sep="\n")
        print(*result.lines(f"{path}: test accuracy", trained_on.classes), sep="\n")


if __name__ == "__main__":
    sys.exit(run_script(main, FinalConfig))
