"""Train the network of a genotype from scratch, and report its test accuracy (DARTS, ICLR 2019, appendix A.2.1)."""

import dataclasses
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path

import torch
import torch.nn.functional as F

from nas import datasets, draw
from nas.checkpoint import load_weights, save_weights
from nas.config import Data, FinalConfig, TrainedOn, run_script, validate
from nas.errors import InputError
from nas.final_network import FinalNetwork
from nas.genotype import Genotype, GenotypeFile, find
from nas.network_size import network_size
from nas.run_folder import RunFolder, duration, read_config
from nas.training import Images, cosine, evaluate, pick_device, prepare

RECORD_EVERY_STEPS = 10


def main(config: FinalConfig) -> None:
    if config.network.evaluate is not None:
        evaluate_run(Path(config.network.evaluate), config)
    elif config.network.genotype is not None:
        train_final(config, config.network.genotype)
    else:
        raise InputError("--genotype: missing; give a genotype file or a name such as DARTS_V2, or --evaluate a run.")


def train_final(config: FinalConfig, path_or_name: str) -> None:
    data, network_config, training, seed = config.data, config.network, config.training, config.run.seed
    device = pick_device(config.run.device)
    file = GenotypeFile.load(path_or_name)
    genotype = Genotype(**file.cells())
    name = config.run.name or f"final-{find(path_or_name).stem}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    images, holdout_images = load_images(config, device)
    num_images, in_channels, image_size, _ = images.split.images.shape
    num_classes = len(images.split.classes)

    torch.manual_seed(seed)
    network = FinalNetwork(
        genotype,
        in_channels,
        network_config.init_channels,
        network_config.num_cells,
        num_classes,
        auxiliary=network_config.auxiliary_weight > 0,
    ).to(device)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay
    )

    trained_on = TrainedOn(
        images.split.classes, in_channels, image_size, tuple(images.mean.tolist()), tuple(images.std.tolist())
    )
    test_images = load_test_images(data, trained_on, device)
    description = {"config": dataclasses.asdict(config), "trained_on": dataclasses.asdict(trained_on)}
    run = RunFolder(Path(config.run.run_dir, name), description)
    genotype.save(run.path / "genotype.json", file.provenance)
    drawn = genotype.draw(run.path / "cells")
    size = network_size(
        genotype, image_size, in_channels, network_config.init_channels, network_config.num_cells, num_classes
    )
    held_out = f" ({len(holdout_images.split.targets)} held out)" if holdout_images else ""
    run.log(
        f"{path_or_name} on {data.dataset}: {num_images} training images{held_out}, "
        f"{in_channels} × {image_size} × {image_size}, {num_classes} classes; "
        f"{size.weights:,} weights, {size.multiply_adds:,} multiply-adds ({2 * size.multiply_adds / 1e9:.3f} GFLOP) an "
        f"image, on {device}"
    )
    run.log(f"{run.path}: tensorboard --logdir {run.path.parent} shows the training as it goes")

    steps_an_epoch = datasets.num_batches(num_images, training.batch_size)
    num_steps = training.epochs * steps_an_epoch
    probed = min(RECORD_EVERY_STEPS, num_steps - 1)  # the step after which the speed is known
    began = time.monotonic()
    with run.progress(num_steps) as advance:
        for epoch in range(training.epochs):
            epoch_began = time.monotonic()
            learning_rate = cosine(epoch, training.epochs, training.lr, 0.0)
            optimizer.param_groups[0]["lr"] = learning_rate
            drop_path = network_config.drop_path * epoch / training.epochs
            sums = torch.zeros(2, device=device)  # loss and correct answers, over the images of the epoch
            for step in range(epoch * steps_an_epoch, (epoch + 1) * steps_an_epoch):
                step_began = time.monotonic()
                batch, target = images.batch(training.batch_size, seed, "final", step)
                dropped = datasets.generator("drop path", seed, step, device=str(device))
                optimizer.zero_grad()
                logits, auxiliary_logits = network(batch, drop_path, dropped)
                loss = F.cross_entropy(logits, target)
                total = loss
                if auxiliary_logits is not None:
                    total = loss + network_config.auxiliary_weight * F.cross_entropy(auxiliary_logits, target)
                total.backward()
                norm = torch.nn.utils.clip_grad_norm_(network.parameters(), training.grad_clip)
                # To look at a value is to wait for the device.
                if (device.type == "cpu" or step % RECORD_EVERY_STEPS == 0) and not torch.isfinite(norm):
                    raise FloatingPointError(f"step {step + 1}: the gradient is {norm.item()}.")
                optimizer.step()

                sums += torch.stack([loss.detach() * len(target), (logits.argmax(1) == target).sum()])
                if step % RECORD_EVERY_STEPS == 0:
                    scalars = {
                        "train/step_loss": loss.item(),
                        "train/gradient_norm": norm.item(),
                        "train/learning_rate": learning_rate,
                        "train/drop_path": drop_path,
                        "speed/images_per_s": len(target) / (time.monotonic() - step_began),
                    }
                    run.record(epoch + 1, step + 1, scalars)
                if step == 0:
                    began = time.monotonic()  # the first step is slower than the others
                elif step == probed:
                    step_s = (time.monotonic() - began) / probed
                    speed = training.batch_size / step_s
                    run.log(f"{speed:.1f} images a second: {duration(step_s * num_steps)} for {training.epochs} epochs")
                advance()

            train_loss, train_accuracy = (sums / num_images).tolist()
            line = f"epoch {epoch + 1}/{training.epochs}: loss {train_loss:.3f}, accuracy {train_accuracy:.1%}"
            scalars = {"train/loss": train_loss, "train/accuracy": train_accuracy}
            if holdout_images is not None:
                holdout_loss, holdout_accuracy = accuracy_of(network, holdout_images, training.batch_size)
                line += f"; held out: loss {holdout_loss:.3f}, accuracy {holdout_accuracy:.1%}"
                scalars |= {"holdout/loss": holdout_loss, "holdout/accuracy": holdout_accuracy}
            epoch_s = time.monotonic() - epoch_began
            run.record(epoch + 1, step + 1, scalars | {"speed/epoch_s": epoch_s})
            run.log(f"{line}; {duration(epoch_s)}")

    save_weights(run.path / "weights.safetensors", network)
    # The test set serves here for the first time, and once: no epoch was chosen by it.
    test_loss, test_accuracy = accuracy_of(network, test_images, training.batch_size)
    run.record(training.epochs, num_steps, {"test/loss": test_loss, "test/accuracy": test_accuracy})
    run.log(f"written in {run.path}: weights.safetensors, genotype.json, config.json, cells/, metrics.jsonl, log.txt")
    if not drawn:
        run.log(draw.HOW_TO_GET_PICTURES)
    moved = "" if data.data_dir == Data.data_dir else f" --data-dir {shlex.quote(data.data_dir)}"
    run.log(f"measure it again: python train_final.py --evaluate {shlex.quote(str(run.path))}{moved}")
    run.log(
        f"test accuracy after epoch {training.epochs}: {test_accuracy:.2%} of {len(test_images.split.targets)} images "
        f"(loss {test_loss:.3f})"
    )
    run.close()


def load_images(config: FinalConfig, device: torch.device) -> tuple[Images, Images | None]:
    """Images to train on, and those held out of the training set, if any."""
    data, training, seed = config.data, config.training, config.run.seed
    train = datasets.load(data.dataset, Path(data.data_dir), "train", data.image_size, data.train_limit, seed)
    image_size = train.images.shape[-1]
    cutout = image_size // 2 if training.cutout is None else training.cutout
    if cutout > image_size:
        raise InputError(f"--cutout {cutout}: larger than the images, which have {image_size} pixels a side.")
    kept, held_out = datasets.halves(len(train.targets), training.holdout_fraction, seed)
    if len(kept) < 2:
        raise InputError(f"--holdout-fraction {training.holdout_fraction}: fewer than two images are left to train on.")
    images = prepare(train.select(kept), data.dataset, device, cutout)
    holdout = images._replace(split=train.select(held_out).to(device)) if len(held_out) else None
    return images, holdout


def load_test_images(data: Data, trained_on: TrainedOn, device: torch.device) -> Images:
    """The test set, prepared as the training images were."""
    test = datasets.load(data.dataset, Path(data.data_dir), "test", data.image_size)
    if test.classes != trained_on.classes:
        other = sorted(set(test.classes) ^ set(trained_on.classes))
        raise InputError(
            f"--data-dir {data.data_dir}: training and test images differ in their classes: {', '.join(other[:5])}."
        )
    mean, std = (torch.tensor(values, device=device) for values in (trained_on.mean, trained_on.std))
    return Images(test.to(device), mean, std, flip=False)


def accuracy_of(network: FinalNetwork, images: Images, batch_size: int) -> tuple[float, float]:
    """Loss and accuracy without drop path and auxiliary head, by the batch norms' running statistics."""
    network.eval()
    result = evaluate(lambda batch: network(batch)[0], images, 2 * batch_size)
    network.train()
    return result


def evaluate_run(path: Path, config: FinalConfig) -> None:
    """Rebuild the network of a run folder, and print its test accuracy.

    What was trained, and on what, is read from the folder; --data-dir tells where the images lie now.
    """
    device = pick_device(config.run.device)
    parts = read_config(path / "config.json", ("config", "trained_on"))
    trained = validate(FinalConfig, parts[0], path / "config.json")
    trained_on = validate(TrainedOn, parts[1], path / "config.json")
    if not len(trained_on.mean) == len(trained_on.std) == trained_on.in_channels or min(trained_on.std) <= 0:
        raise InputError(f"config {path / 'config.json'}: trained_on: mean and std need one positive value a channel.")
    with torch.device("meta"):  # the weights come from the file
        network = FinalNetwork(
            Genotype.load(path / "genotype.json"),
            trained_on.in_channels,
            trained.network.init_channels,
            trained.network.num_cells,
            len(trained_on.classes),
            auxiliary=trained.network.auxiliary_weight > 0,
        )
    load_weights(path / "weights.safetensors", network)
    network.to(device).to(memory_format=torch.channels_last)
    data = dataclasses.replace(trained.data, data_dir=config.data.data_dir)
    test_images = load_test_images(data, trained_on, device)
    loss, accuracy = accuracy_of(network, test_images, trained.training.batch_size)
    print(f"{path}: test accuracy {accuracy:.2%} of {len(test_images.split.targets)} images (loss {loss:.3f})")


if __name__ == "__main__":
    sys.exit(run_script(main, FinalConfig))
