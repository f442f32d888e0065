"""How quick the stages of a run are, by dry runs: what --time-budget is planned by."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nas.config.flags import LowerLevel, SearchConfig
from nas.errors import InputError
from nas.runs.progress_bar import speed_in
from nas.selection import budget
from nas.selection.job_configs import dry_run_of
from nas.selection.jobs import RunAll, slots
from nas.training.steps import NUM_REHEARSED

SMALL_SET, SMALL_BATCH = 10_000, 32  # a short run over few images would otherwise have too few steps


def make_plan(
    config: SearchConfig, num_images: int, scripts: Path, run_all: RunAll, log: Callable[[str], None]
) -> budget.Plan:
    """Measure how quick the stages of a run are, and plan them for --time-budget.

    Args:
        num_images: of the training set; where there are few, so are those of a batch, in all stages.

    Raises:
        InputError: the budget is too short, or a stage cannot run.
    """
    options, selection = config.run, config.selection
    if num_images < SMALL_SET and config.lower.batch_size == LowerLevel.batch_size:
        config = dataclasses.replace(config, lower=dataclasses.replace(config.lower, batch_size=SMALL_BATCH))
    # Each node of a cluster has this folder; otherwise what a kill leaves is for the system to remove.
    place = None if selection.ray is None else "."
    with tempfile.TemporaryDirectory(dir=place, prefix=".plan-") as aside:

        def measure(stage: str, size: tuple[int, int]) -> budget.Speed | None:
            folder = Path(aside, f"{stage}-{size[0]}-{size[1]}")
            folder.mkdir()
            job = dry_run_of(config, scripts, folder, stage, size)
            began = time.monotonic()
            for ending in run_all([job], lambda: None):
                if ending.code == 2 and size != budget.sizes(config, stage)[0]:  # such as: it does not fit into memory
                    return None
                raise InputError(ending.why)
            step_s, num_steps = speed_in(job.output.read_text(encoding="utf-8")) or (0.0, 0)
            start_s = max(0.0, time.monotonic() - began - NUM_REHEARSED * step_s)
            num_steps //= job.epochs  # in an epoch
            return budget.Speed(*size, step_s * num_steps * budget.EPOCH_OVER_STEPS[stage], start_s, num_steps)

        at_a_time = 1
        if selection.ray is not None:
            at_a_time = slots(selection.devices_per_search, options.device, options.threads)
        return budget.make(config, measure, at_a_time, log)
