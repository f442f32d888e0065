"""What surviving costs a search of the default size: python -m benchmarks.checkpoint

Two cores of an AMD EPYC, torch 2.14.1, 16 channels, 8 cells, batch 64: a checkpoint of 15.9 MB takes 78 ms (309 at
most), 0.03 % of the five minutes between two of them; what finds and undoes a bad step takes 26 ms of 12.5 s.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.search_step import take_step
from nas.bilevel.step import build
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.runs.checkpoint import LoopState
from nas.runs.folder import RunFolder
from nas.search_space.genotype import Genotype
from nas.training.steps import rollback_if_not_finite, scalars_to_host

NUM_SAVES = 20


def main() -> None:
    config = SearchConfig()
    bilevel = build(config, 3, 10, torch.device("cpu"))
    state = bilevel.state()
    size = config.lower.batch_size
    train, validate = (Batch.whole(torch.randn(size, 3, 32, 32), torch.randint(10, (size,))) for _ in range(2))
    saves, guards, steps = [], [], []
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder, "run"), config) as run:
        run.restore(state, "0" * 32)
        for step in range(2):
            began = time.perf_counter()
            result = take_step(bilevel, train, validate)
            steps.append(time.perf_counter() - began)
            began = time.perf_counter()
            with rollback_if_not_finite(state):
                scalars_to_host(result, state)
            guards.append(time.perf_counter() - began)
            run.record(1, step + 1, {"lower/loss": 1.0})
        genotype = Genotype.derive(bilevel.alphas).to_text()
        for _ in range(NUM_SAVES):
            began = time.perf_counter()
            run.save(state, "0" * 32, genotype, LoopState())
            saves.append(time.perf_counter() - began)
        num_bytes = (run.path / "checkpoint.safetensors").stat().st_size
    save, guard, step = statistics.median(saves), min(guards), min(steps)
    print(
        f"a checkpoint: {num_bytes / 1e6:.1f} MB, {save * 1e3:.0f} ms (at most {max(saves) * 1e3:.0f}), "
        f"{save / 300:.3%} of 5 minutes; what undoes a bad step: {guard * 1e3:.1f} ms of a step of {step:.2f} s, "
        f"{guard / step:.2%}"
    )


if __name__ == "__main__":
    main()
