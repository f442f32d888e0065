"""Kill a run again and again, resume it each time, and compare it with one that was left alone.

    python -m tests.torture --kills 30 [--script train_final]

Every kill is a SIGKILL. A third of them falls at any moment of the start and the first steps, the others into the
writing of a checkpoint, which follows each step here, and each epoch. A run that comes to its end is compared in all
bits, tensors, genotype, metrics and TensorBoard's events, and another one begins, until there were all the kills.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas.search_space.genotype import Genotype
from tests.in_process import TWO

ROOT = Path(__file__).parent.parent
SMALL = ["--dataset=digits", "--train-limit=96", "--init-channels=2", "--num-cells=3", "--batch-size=8"]
COMMANDS = {
    "search": ["search.py", *SMALL, "--num-nodes=1", *TWO],
    "train_final": ["train_final.py", "--genotype=DARTS_V2", "--holdout-fraction=0.25", *SMALL],
}
STEPS_AN_EPOCH = {"search": 6, "train_final": 9}


@dataclass
class Kills:
    """How many there were, by where they fell."""

    before_the_folder: int = 0
    elsewhere: int = 0
    inside_a_write: int = 0

    def total(self) -> int:
        return self.before_the_folder + self.elsewhere + self.inside_a_write


def command(script: str, epochs: int, *more: str) -> list[str]:
    name, *flags = COMMANDS[script]
    return [sys.executable, str(ROOT / name), *flags, f"--epochs={epochs}", "--name=run", *more]


def start(arguments: Sequence[str], folder: Path) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    log = (folder / "output.txt").open("ab")
    environment = os.environ | {"NO_COLOR": "1", "OMP_NUM_THREADS": "1"}  # bits depend on the number of threads
    return subprocess.Popen(arguments, cwd=folder, stdout=log, stderr=log, env=environment)


def kill_some_time(process: subprocess.Popen, run: Path, start_s: float, chance: random.Random) -> bool:
    """Kill a process, which takes `start_s` to its first step, at a random moment; whether it still ran then."""
    if chance.random() < 1 / 3:
        end = time.monotonic() + chance.uniform(0.1, 1.5 * start_s)
        while time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
    else:  # in one of the next checkpoints, of which each takes some milliseconds
        for _ in range(chance.randint(1, 8)):
            for writing in (False, True):
                while aside(run, process) != writing and process.poll() is None:
                    time.sleep(0.0003)
        time.sleep(chance.uniform(0, 0.003))
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


def aside(run: Path, process: subprocess.Popen) -> bool:
    """Whether a process is writing a checkpoint, or was killed while it did."""
    return (run / f".checkpoint.safetensors.{process.pid}").exists()


def torture(script: str, num_kills: int, seed: int, folder: Path) -> tuple[Kills, int, list[str]]:
    """Where the kills fell, how often a run was resumed, and what differs in the end."""
    chance = random.Random(seed)
    epochs = 2 + 24 // STEPS_AN_EPOCH[script]
    undisturbed = folder / "undisturbed"
    began = time.monotonic()
    process = start(command(script, epochs), undisturbed)
    while process.poll() is None and not (undisturbed / "runs" / "run").exists():
        time.sleep(0.01)
    start_s = time.monotonic() - began
    assert process.wait() == 0, (undisturbed / "output.txt").read_text()
    kills, resumed, runs, found = Kills(), 0, 0, []
    while kills.total() < num_kills:
        killed, runs = folder / f"killed{runs}", runs + 1
        run, alive = killed / "runs" / "run", True
        while alive:
            resumed += run.exists()
            first = command(script, epochs, "--checkpoint-minutes=0")
            process = start([*first[:2], "--resume=runs/run"] if run.exists() else first, killed)
            alive = kills.total() < num_kills and kill_some_time(process, run, start_s, chance)
            kills.before_the_folder += alive and not run.exists()
            kills.inside_a_write += alive and aside(run, process)
            kills.elsewhere += alive and run.exists() and not aside(run, process)
        assert process.wait() == 0, (killed / "output.txt").read_text()
        found += differences(script, undisturbed, killed)
    return kills, resumed, found


def differences(script: str, first: Path, second: Path) -> list[str]:
    """What is not the same, bit for bit, in two runs."""
    found = []
    files = ["checkpoint.safetensors", "checkpoint.previous.safetensors"]
    for name in files + ["weights.safetensors"] * (script == "train_final"):
        one, other = (load_file(folder / "runs" / "run" / name) for folder in (first, second))
        if name != "checkpoint.previous.safetensors":  # with a checkpoint a step it is another step's
            found += [f"{name}: {tensor}" for tensor in one.keys() | other.keys() if not same(one, other, tensor)]
    genotypes = [Genotype.load(folder / "runs" / "run" / "genotype.json") for folder in (first, second)]
    if script == "search":
        genotypes += [Genotype.load(folder / "genotypes" / "run.json") for folder in (first, second)]
    if len(set(genotypes)) != 1:
        found.append("genotype")
    if metrics(first / "runs" / "run") != metrics(second / "runs" / "run"):
        found.append("metrics.jsonl")
    if events(first) != events(second):
        found.append("TensorBoard's events")
    leftovers = [str(path) for path in (second / "runs").rglob(".*")]
    return found + leftovers


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], name: str) -> bool:
    return name in one and name in other and torch.equal(one[name], other[name])


def metrics(run: Path) -> list[dict[str, Any]]:
    """All records, without times."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if not timed(name)} for line in lines]


def timed(name: str) -> bool:
    return re.search(r"^time_s$|^speed/", name) is not None


def events(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """All scalars and pictures of TensorBoard, without times."""
    accumulator = EventAccumulator(str(folder / "runs" / "run" / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    tags = accumulator.Tags()
    scalars = {
        name: [(e.step, e.value) for e in accumulator.Scalars(name)] for name in tags["scalars"] if not timed(name)
    }
    images = {name: [(e.step, e.encoded_image_string) for e in accumulator.Images(name)] for name in tags["images"]}
    return scalars | images


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill a run again and again, and compare it with one left alone.")
    parser.add_argument("--script", choices=COMMANDS, default="search")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        kills, resumed, different = torture(a.script, a.kills, a.seed, Path(scratch))
    print(f"{a.script}: {kills}, resumed {resumed} times; different in the end: {different or 'nothing'}")
    sys.exit(bool(different))
