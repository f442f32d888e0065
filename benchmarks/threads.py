"""A step of the search beside other work, by its number of threads: python -m benchmarks.threads

Each of two sizes is timed on the machine as it is, and beside one process that keeps a core busy: with torch's own
number of threads, with the number that a run chooses, and with one thread. Each of the twelve measurements is a process
of its own, which takes a step that is not timed and then as many as begin within some seconds. A ratio says how many
times as quick as with torch's own number a step is. Wants a machine that does nothing else, and less than eight minutes
on two cores.

Two cores of a shared machine, torch 2.14.1, `--seconds 4` (one or two timed steps each, six and a half minutes):

                                            torch's own   automatic            one thread
    digits, --preset quick           quiet   2.47 s (2)    2.29 s (2)  1.08     2.75 s  0.90
                                     busy    9.69 s (2)    3.46 s (1)  2.80     2.82 s  3.44
    16 channels, 8 cells, batch 16   quiet  10.52 s (2)    8.96 s (2)  1.17    13.50 s  0.78
                                     busy   40.27 s (2)   15.55 s (1)  2.59    13.51 s  2.98
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.search_step import take_step
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import Run, SearchConfig
from nas.data.loader import Batch
from nas.distributed import SINGLE
from nas.machine.threads import allowed_cores, take_threads

# Channels, pixels a side and number of images of a batch, and the flags of the supernet.
SIZES = {
    "digits, --preset quick, batch 96": ((1, 8, 96), ["--preset=quick"]),
    "16 channels, 8 cells, batch 16": ((3, 32, 16), []),
}
CHOICES = {"torch's own": {}, "automatic": {}, "one": {"OMP_NUM_THREADS": "1"}}


def measure(size: str, choice: str, most_s: float) -> dict[str, float]:
    """Number of threads, median seconds of a step, and number of steps that were timed."""
    if choice != "torch's own":
        take_threads(Run(), Path(), SINGLE)
    (channels, side, batch_size), flags = SIZES[size]
    bilevel = build(parse(SearchConfig, flags), channels, 10, torch.device("cpu"))
    images = torch.randn(2, batch_size, channels, side, side)
    classes = torch.randint(10, (2, batch_size))
    train, validate = (Batch.whole(images[level], classes[level]) for level in range(2))
    take_step(bilevel, train, validate)
    seconds: list[float] = []
    while sum(seconds) < most_s:
        began = time.perf_counter()
        take_step(bilevel, train, validate)
        seconds.append(time.perf_counter() - began)
    return {"threads": torch.get_num_threads(), "step_s": statistics.median(seconds), "steps": len(seconds)}


def in_another_process(size: str, choice: str, most_s: float) -> dict[str, float]:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | CHOICES[choice]
    command = [sys.executable, "-m", "benchmarks.threads", "--measure", size, choice, f"--seconds={most_s}"]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def compare(size: str, most_s: float) -> None:
    """Print the figures of one size, quiet and busy."""
    for place in ("quiet", "busy"):
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if place == "busy" else None
        try:
            found = {choice: in_another_process(size, choice, most_s) for choice in CHOICES}
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()
        own_s = found["torch's own"]["step_s"]
        columns = [
            f"{choice} ({row['threads']}) {row['step_s']:.2f} s, ratio {own_s / row['step_s']:.2f}"
            for choice, row in found.items()
        ]
        print(f"{place:6}{'; '.join(columns)}", flush=True)
        print(json.dumps({"size": size, "place": place, **found}), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A step of the search beside other work, by its number of threads.")
    parser.add_argument("--measure", nargs=2, metavar=("SIZE", "CHOICE"), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=15.0, help="in which the timed steps of a measurement begin")
    arguments = parser.parse_args()
    if arguments.measure:
        size, choice = arguments.measure
        print(json.dumps(measure(size, choice, arguments.seconds)))
    else:
        print(f"torch {torch.__version__}, {len(allowed_cores())} cores", flush=True)
        for size in SIZES:
            print(
                f"\n{size}; in brackets the threads, behind the seconds of a step how many times as quick", flush=True
            )
            compare(size, arguments.seconds)
