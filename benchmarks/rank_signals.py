r"""Which signal ranks cells as their true accuracy does: Kendall's τ over random cells of NAS-Bench-201.

    python -m benchmarks.rank_signals images --supernet runs/robust-hfirst-order-e4-ic8-nc3-seed1 --device cuda \
        --processes 4

`images` is a folder of CIFAR-10 as image files, train/CLASS/*.jpg; they are scaled to 16 × 16. Signals are the number
of parameters, the accuracy of the cell's primitives alone in the supernet of a finished search (one shot), and the
accuracy on held-out images after trainings of several lengths with one cell per stage; short ones come first. What
stands in benchmarks/rank_signals.json is not measured again, so that the command goes on where it stopped.
"""

import argparse
import copy
import dataclasses
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
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
from nas.training.steps import cosine, cross_entropy, evaluate, pick_device

RESULTS = Path(__file__).with_suffix(".json")
STEPS = (25, 100, 400, 1600)  # of each training, with batches of 64
NUM_IMAGES = 2000  # that measure an accuracy

Cells = dict[str, dict[str, float]]  # what is known of each cell, by its text


class Loaded(NamedTuple):
    """What a process needs: the images that cells are trained on, some of the others, and the supernet."""

    train: Loader
    held_out: Loader
    supernet: Bilevel

    @classmethod
    def of_search(cls, folder: Path, images: str, device: torch.device) -> "Loaded":
        """Load the halves of a search, the second one cut to the images that measure an accuracy, and its models."""
        config = validate(SearchConfig, read_config(folder).config, folder)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, data_dir=images))
        split = load_training_split(config.data, config.run.seed)
        weights, alphas = halves(len(split.targets), config.upper.upper_fraction, config.run.seed)
        loader = training_loader(split, config.data, device, 64, config.run.seed)
        supernet = build(config, 3, 10, device)
        kept = safetensors.torch.load_file(folder / "checkpoint.safetensors")
        for name, tensor in supernet.state().items():
            tensor.detach().copy_(kept[name])
        return cls(loader.part(weights, "train"), loader.part(alphas[:NUM_IMAGES], "held out"), supernet)


def one_shot(genotype: Genotype, loaded: Loaded) -> float:
    """Return the accuracy of a cell's primitives alone, with the weights of the supernet."""
    bilevel = loaded.supernet
    rows = torch.zeros(len(genotype.cell), len(NAS_BENCH_201.primitives), device=loaded.train.device)
    for row, (primitive, _) in zip(rows, genotype.cell, strict=True):
        row[NAS_BENCH_201.primitives.index(primitive)] = 1.0
    network, edge_weights = bilevel.evaluated, bilevel.alphas.by_kind(rows)
    with torch.no_grad():
        inputs = ((loaded.train.batch(step).images, edge_weights) for step in range(8))
        estimate_anew(network, bilevel.supernet, inputs, lambda tensors: None)
    return evaluate(lambda batch: network(batch, edge_weights), loaded.held_out).accuracy


def trained(genotype: Genotype, loaded: Loaded, num_steps: int) -> float:
    """Return the accuracy after a training from scratch, with a learning rate that falls to 0 along a cosine."""
    torch.manual_seed(0)
    network = FinalNetwork(genotype, 3, 16, 1, 10).to(memory_format=torch.channels_last).to(loaded.train.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=3e-4)
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = cosine(step, num_steps, 0.025, 0.0)
        batch = loaded.train.batch(step)
        optimizer.zero_grad()
        cross_entropy(network(batch.images)[0], batch).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    measured = copy.deepcopy(network)
    with torch.no_grad():
        inputs = ((loaded.train.batch(num_steps + step).images,) for step in range(8))
        estimate_anew(measured, network, inputs, lambda tensors: None)
    return evaluate(lambda batch: measured(batch)[0], loaded.held_out).accuracy


LOADED: list[Loaded] = []  # the one of this process


def prepare(folder: Path, images: str, device: str) -> None:
    """Load in a process of its own what `measure` needs."""
    torch.set_num_threads(1)
    LOADED.append(Loaded.of_search(folder, images, pick_device(device)))


def measure(seed: int, num_steps: int) -> tuple[float, float]:
    """Return an accuracy of a random cell and the seconds that it took; one shot for no steps."""
    genotype, (loaded,) = Genotype.random(seed, space=NAS_BENCH_201), LOADED
    began = time.monotonic()
    accuracy = trained(genotype, loaded, num_steps) if num_steps else one_shot(genotype, loaded)
    return accuracy, time.monotonic() - began


def signal(num_steps: int) -> str:
    """Return the name of an accuracy."""
    return f"trained for {num_steps} steps" if num_steps else "one shot"


def table(cells: Cells) -> str:
    """Return a line for each signal: Kendall's τ with the truth, the truth of its best tenth, and seconds."""
    lines = [f"{'':24} {'cells':>5} {'tau':>6} {'best 10 %':>10} {'seconds':>8}"]
    for name in ("parameters", *map(signal, (0, *STEPS))):
        rows = [cell for cell in cells.values() if name in cell]
        if not rows:
            continue
        tau, _ = kendalltau([cell[name] for cell in rows], [cell["truth"] for cell in rows])
        best = sorted(rows, key=lambda cell: -cell[name])[: max(1, len(rows) // 10)]
        chosen = 100 * sum(cell["truth"] for cell in best) / len(best)
        seconds = sum(cell.get(f"{name}, seconds", 0.0) for cell in rows) / len(rows)
        lines.append(f"{name:24} {len(rows):5} {tau:6.2f} {chosen:8.2f} % {seconds:8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", nargs="?", help="folder of images; without it the table of what was kept is printed")
    parser.add_argument("--supernet", type=Path, help="run folder of a finished search in this space")
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--device", default="cpu", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--processes", type=int, default=1, help="cells side by side")
    arguments = parser.parse_args()
    cells: Cells = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if arguments.images:
        drawn = [Genotype.random(seed, space=NAS_BENCH_201) for seed in range(arguments.cells)]
        for genotype in drawn:
            truth = genotype.truth()
            assert truth is not None
            known = {"truth": truth.test["CIFAR-10"], "parameters": network_size(genotype).weights}
            cells.setdefault(genotype.to_text(), {}).update(known)
        wanted = {(cell.to_text(), steps): seed for steps in (0, *STEPS) for seed, cell in enumerate(drawn)}
        wanted = {key: seed for key, seed in wanted.items() if signal(key[1]) not in cells[key[0]]}
        context = multiprocessing.get_context("spawn")
        inputs = arguments.supernet, arguments.images, arguments.device
        with ProcessPoolExecutor(arguments.processes, context, prepare, inputs) as pool:
            running = {pool.submit(measure, seed, steps): (text, steps) for (text, steps), seed in wanted.items()}
            for done in as_completed(running):
                text, steps = running[done]
                accuracy, seconds = done.result()
                cells[text] |= {signal(steps): accuracy, f"{signal(steps)}, seconds": round(seconds, 2)}
                RESULTS.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
    print(table(cells))
