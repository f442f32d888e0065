"""Train the network of a genotype from scratch, and report its test accuracy (DARTS, ICLR 2019, appendix A.2.1)."""

import dataclasses
import sys
import time
from datetime import datetime
from pathlib import Path

import torch
import torch.nn.functional as F

from nas import datasets
from nas.checkpoint import load_weights, save_weights
from nas.config import Data, FinalConfig, data_flags, run_script, validate
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
    ).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        network.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay
    )

    # What is needed to rebuild the network, and to read its images as they were read here.
    dataset = {"classes": images.split.classes, "in_channels": in_channels, "image_size": image_size,
               "mean": images.mean.tolist(), "std": images.std.tolist()}  # fmt: skip
    run = RunFolder(Path(config.run.run_dir, name), {"config": dataclasses.asdict(config), "dataset": dataset})
    genotype.save(run.path / "genotype.json", file.provenance)
    drawn = genotype.draw(run.path / "cells")
    size = network_size(
        genotype, image_size, in_channels, network_config.init_channels, network_config.num_cells, num_classes
    )
    run.log(
        f"{path_or_name} on {data.dataset}: {num_images} training images, {in_channels} × {image_size} × {image_size}, "
        f"{num_classes} classes; {size.weights:,} weights, {size.multiply_adds:,} multiply-adds an image, on {device}"
    )
    run.log(f"{run.path}: tensorboard --logdir {run.path.parent} shows the training as it goes")

    steps_an_epoch = datasets.num_batches(num_images, training.batch_size)
    with run.progress(training.epochs * steps_an_epoch) as advance:
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
                if not torch.isfinite(norm):
                    raise FloatingPointError(f"step {step + 1}: the gradient is {norm.item()}; try a smaller --lr.")
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

    save_weights(run.path / "weights.safetensors", network.state_dict())
    # The test set is read here for the first time, and once: no epoch was chosen by it.
    test_images = load_test_images(data, images.split.classes, images.mean, images.std)
    test_loss, test_accuracy = accuracy_of(network, test_images, training.batch_size)
    run.record(training.epochs, training.epochs * steps_an_epoch, {"test/loss": test_loss, "test/accuracy": test_accuracy})
    pictures = "cells/, " if drawn else "cells/ (.gv only: no Graphviz), "
    run.log(f"written in {run.path}: weights.safetensors, genotype.json, config.json, {pictures}metrics.jsonl, tensorboard/, log.txt")
    run.log(f"measure it again: python train_final.py --evaluate {run.path}{data_flags(data)}")
    run.log(
        f"test accuracy after epoch {training.epochs}: {test_accuracy:.2%} of {len(test_images.split.targets)} images "
        f"(loss {test_loss:.3f})"
    )
    run.close()


def evaluate_run(path: Path, config: FinalConfig) -> None:
    """Rebuild the network of a run folder, and print its test accuracy.

    The images are those of the run's config; --data-dir tells where they lie now.
    """
    device = pick_device(config.run.device)
    content = read_config(path / "config.json", {"config", "dataset"})
    trained = validate(FinalConfig, content["config"], path / "config.json")
    dataset = validate(TrainedOn, content["dataset"], path / "config.json")
    genotype = Genotype.load(path / "genotype.json")
    network = FinalNetwork(
        genotype,
        dataset.in_channels,
        trained.network.init_channels,
        trained.network.num_cells,
        len(dataset.classes),
        auxiliary=trained.network.auxiliary_weight > 0,
    )
    load_weights(path / "weights.safetensors", network)
    network.to(device, memory_format=torch.channels_last)
    data = dataclasses.replace(trained.data, data_dir=config.data.data_dir)
    mean, std = (torch.tensor(values, device=device) for values in (dataset.mean, dataset.std))
    images = load_test_images(data, dataset.classes, mean, std)
    loss, accuracy = accuracy_of(network, images, trained.training.batch_size)
    print(f"{path}: test accuracy {accuracy:.2%} of {len(images.split.targets)} images (loss {loss:.3f})")
