"""Which signal ranks cells as their true accuracy does: Kendall's τ over random cells of NAS-Bench-201.

    python -m benchmarks.rank_signals images --supernet runs/quality-robust-seed0

`images` is a folder of CIFAR-10 as image files, train/CLASS/*.jpg; they are scaled to 16 × 16. Signals are the number
of parameters, the accuracy of the cell's primitives alone in the supernet of a finished search (one shot), and the
accuracy on held-out images after trainings of several lengths with one cell per stage. What stands in
benchmarks/rank_signals.json is not measured again, so that the command goes on where it stopped.
"""

import argparse
import copy
import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from scipy.stats import kendalltau

from nas.bilevel.step import Bilevel, build
from nas.config.file import read_config, validate
from nas.config.flags import SearchConfig
from nas.data.loader import Loader, load_training_split, training_loader
from nas.data.sampler import halves
from nas.models.batch_norm import estimate_anew
from nas.models.final_network import FinalNetwork
from nas.models.size import network_size
from nas.search_space.genotype import Genotype
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.training.steps import cosine, cross_entropy, evaluate

RESULTS = Path(__file__).with_suffix(".json")
STEPS = (25, 100, 400)  # of each training, with batches of 64
NUM_IMAGES = 2000  # that measure an accuracy
CPU = torch.device("cpu")


class Images(NamedTuple):
    """The images of a search: those that cells are trained on, and some of the others."""

    train: Loader
    held_out: Loader


def load_images(config: SearchConfig) -> Images:
    """Load the halves of a search; the second one is cut to the images that measure an accuracy."""
    train = load_training_split(config.data, config.run.seed)
    weights, alphas = halves(len(train.targets), config.upper.upper_fraction, config.run.seed)
    images = training_loader(train, config.data, CPU, 64, config.run.seed)
    return Images(images.part(weights, "train"), images.part(alphas[:NUM_IMAGES], "held out"))


def load_supernet(folder: Path, config: SearchConfig) -> Bilevel:
    """Return the models of a search as its last checkpoint has them."""
    bilevel = build(config, 3, 10, CPU)
    kept = safetensors.torch.load_file(folder / "checkpoint.safetensors")
    for name, tensor in bilevel.state().items():
        tensor.detach().copy_(kept[name])
    return bilevel


def one_shot(bilevel: Bilevel, genotype: Genotype, images: Images) -> float:
    """Return the accuracy of a cell's primitives alone, with the weights of the supernet."""
    rows = torch.zeros(len(genotype.cell), len(NAS_BENCH_201.primitives))
    for row, (primitive, _) in zip(rows, genotype.cell, strict=True):
        row[NAS_BENCH_201.primitives.index(primitive)] = 1.0
    network, edge_weights = bilevel.evaluated, bilevel.alphas.by_kind(rows)
    with torch.no_grad():
        inputs = ((images.train.batch(step).images, edge_weights) for step in range(8))
        estimate_anew(network, bilevel.supernet, inputs, lambda tensors: None)
    return evaluate(lambda batch: network(batch, edge_weights), images.held_out).accuracy


def trained(genotype: Genotype, images: Images, num_steps: int) -> float:
    """Return the accuracy after a training from scratch, with a learning rate that falls to 0 along a cosine."""
    torch.manual_seed(0)
    network = FinalNetwork(genotype, 3, 16, 1, 10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=3e-4)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = cosine(step, num_steps, 0.025, 0.0)
        batch = images.train.batch(step)
        optimizer.zero_grad()
        cross_entropy(network(batch.images)[0], batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    measured = copy.deepcopy(network)
    with torch.no_grad():
        inputs = ((images.train.batch(num_steps + step).images,) for step in range(8))
        estimate_anew(measured, network, inputs, lambda tensors: None)
    return evaluate(lambda batch: measured(batch)[0], images.held_out).accuracy


def table(cells: dict[str, dict[str, float]]) -> str:
    """Return a line for each signal: Kendall's τ with the true test accuracy, and seconds per cell."""
    lines = [f"{len(cells)} cells"]
    names = [name for name in next(iter(cells.values())) if not name.endswith("seconds") and name != "truth"]
    for name in names:
        rows = [cell for cell in cells.values() if name in cell]
        tau, _ = kendalltau([cell[name] for cell in rows], [cell["truth"] for cell in rows])
        seconds = sum(cell.get(f"{name}, seconds", 0.0) for cell in rows) / len(rows)
        lines.append(f"{name:24} Kendall's tau {tau:5.2f}, {seconds:6.2f} s per cell")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="?", help="folder of images; without it the table of what was kept is printed")
    parser.add_argument("--supernet", type=Path, help="run folder of a finished search in this space")
    parser.add_argument("--cells", type=int, default=200)
    arguments = parser.parse_args()
    cells = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if arguments.images:
        torch.set_num_threads(1)
        config = validate(SearchConfig, read_config(arguments.supernet).config, arguments.supernet)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=arguments.images))
        images, bilevel = load_images(config), load_supernet(arguments.supernet, config)
        for seed in range(arguments.cells):
            genotype = Genotype.random(seed, space=NAS_BENCH_201)
            truth = genotype.truth()
            assert truth is not None
            if (text := genotype.to_text()) in cells:
                continue
            found: dict[str, float] = {"truth": truth.test["CIFAR-10"], "parameters": network_size(genotype).weights}
            signals = {"one shot": functools.partial(one_shot, bilevel, genotype, images)} | {
                f"trained for {steps} steps": functools.partial(trained, genotype, images, steps) for steps in STEPS
            }
            for name, signal in signals.items():
                began = time.monotonic()
                found |= {name: signal(), f"{name}, seconds": round(time.monotonic() - began, 2)}
            cells[text] = found
            RESULTS.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    print(table(cells))
