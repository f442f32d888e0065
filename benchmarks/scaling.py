"""A step of the search on one process and on two, one thread each: efficiency, and what is exchanged.

    python -m benchmarks.scaling

The whole batch stays the same, so that twice the processes should take half the time (strong scaling). Results are in
docs/speed.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from benchmarks.search_step import take_step
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.distributed import connect


def measure(flags: list[str], batch_size: int, num_steps: int) -> None:
    """In one of the processes: take steps; the first process prints what it found as JSON."""
    torch.set_num_threads(1)
    exchanged: list[int] = []

    def counted(name: str) -> None:
        collective = getattr(torch.distributed, name)

        def call(*tensors: Any, **options: Any) -> Any:
            sent = next(tensor for tensor in tensors if isinstance(tensor, torch.Tensor))
            exchanged.append(sent.numel() * sent.element_size())
            return collective(*tensors, **options)

        setattr(torch.distributed, name, call)

    for name in ("all_reduce", "all_gather"):
        counted(name)
    with connect() as world:
        config = parse(SearchConfig, flags)
        bilevel = build(config, 3, 10, torch.device("cpu"), world)
        rows = world.rows(batch_size)
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(2, batch_size, 3, 32, 32, generator=generator)[:, rows]
        classes = torch.randint(10, (2, batch_size), generator=generator)[:, rows]
        weight, whole = world.weight(batch_size), torch.arange(batch_size)
        train, validate = (Batch(images[level], classes[level], whole, rows, weight) for level in range(2))
        seconds = []
        for _ in range(num_steps + 1):
            exchanged.clear()
            began = time.perf_counter()
            take_step(bilevel, train, validate)
            world.any(False, False)
            seconds.append(time.perf_counter() - began)
        if world.is_main:
            found = {"step_s": statistics.median(seconds[1:]), "calls": len(exchanged), "bytes": sum(exchanged)}
            print(json.dumps(found))


def compare(flags: list[str], batch_size: int, num_steps: int) -> None:
    """Print seconds a step of one process and of two, and efficiency."""
    alone_s = 0.0
    for count in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", __file__, "--worker"]
        command += [f"--batch-size={batch_size}", f"--steps={num_steps}", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        found = json.loads(output.splitlines()[-1])
        alone_s = alone_s or found["step_s"]
        print(
            f"{count} process{'es' if count > 1 else ''}: {found['step_s']:.2f} s a step, efficiency "
            f"{alone_s / (count * found['step_s']):.2f}; {found['calls']} calls, {found['bytes']:,} bytes a step",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Efficiency of a step on two processes, one thread each.")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=16, help="images of the whole batch")
    parser.add_argument("--steps", type=int, default=5, help="steps that are timed, after one that is not")
    arguments, flags = parser.parse_known_args()
    (measure if arguments.worker else compare)(flags, arguments.batch_size, arguments.steps)
