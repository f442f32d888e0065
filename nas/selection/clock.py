"""The time that a run with --time-budget has used, and what each of its stages does with what is left."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

from nas.config.flags import SearchConfig
from nas.runs.progress_bar import duration
from nas.selection.budget import RESERVE, TITLES, Plan, given_flags, planned, replan, table
from nas.selection.jobs import Job, num_epochs
from nas.selection.progress import seconds_of_epochs

SAVE_EVERY_S = 10.0
# The final training begins with some of the planned epochs. When it has had its first share of the time, its pace says
# how many there will be: a dry run of a few steps only guesses it.
FIRST_SHARE = 0.15
FEWEST_TO_SETTLE = 3  # epochs; of fewer there is no pace


class Settled(Exception):  # noqa: N818, as it is no mistake of anybody's
    """The number of epochs of the final training is settled."""


class Clock:
    """Clock counts the time that a run works, over all its processes, and says what each stage does in its share.

    Without --time-budget it does nothing.

    Args:
        config: of the run, as it was asked for.
        folder: the run folder, which holds the plan.

    Raises:
        InputError: the plan cannot be read.
    """

    def __init__(self, config: SearchConfig, folder: Path):
        self._config, self._folder = config, folder
        self._plan = None if config.selection.time_budget is None else Plan.load(folder, config)
        self._last = self._saved = time.monotonic()

    def tick(self, save: bool = False) -> None:
        """Count the time since the last call; it is written now and then, or if `save` says so."""
        now = time.monotonic()
        if self._plan is not None:
            self._plan.used_s += now - self._last
            if save or now - self._saved >= SAVE_EVERY_S:
                self._saved = now
                self._plan.save(self._folder)
        self._last = now

    def begin(self, stage: str, log: Callable[[str], None]) -> SearchConfig:
        """Begin a stage or go on with it, and return the config of it; if it is planned anew, that is logged."""
        if self._plan is None:
            return self._config
        self.tick()
        for line in begin(self._config, self._plan, stage):
            log(line)
        self.tick(save=True)
        return planned(self._config, self._plan)

    def final_epochs(self, config: SearchConfig) -> tuple[int, bool]:
        """Return the number of epochs of the final training, and whether it is settled.

        Args:
            config: of the stage, as planned.
        """
        planned_epochs = config.selection.final_epochs
        is_given = "final_epochs" in given_flags(self._config)
        if self._plan is None or is_given or planned_epochs < FEWEST_TO_SETTLE:
            return planned_epochs, True
        first_epochs = max(FEWEST_TO_SETTLE, planned_epochs // 2)
        return self._plan.final_epochs or first_epochs, self._plan.final_epochs is not None

    def settle(self, job: Job) -> None:
        """Settle the number of epochs of the final training, which is at work, if its pace is known.

        Raises:
            Settled: it is known, and kept.
        """
        assert self._plan is not None
        stage, done = self._plan.stages["final"], num_epochs(job)
        is_early = self._plan.used_s - (stage.began_at_s or 0.0) < FIRST_SHARE * stage.planned_s
        if done < 2 or (is_early and done < job.epochs - 1) or len(last_s := seconds_of_epochs(job.path)) < 2:
            return
        epoch_s = statistics.median(last_s[:-1])  # the first one is slower
        start_s = self._plan.speeds["final"][0].start_s  # once more, to go on with another number of epochs
        # The searches and the choice have had their part of the reserve.
        left_s = self._plan.budget_s * (1 - RESERVE / 2) - self._plan.used_s - start_s
        most = self._config.selection.final_epochs
        self._plan.final_epochs = max(job.epochs, min(most, done + int(left_s / epoch_s)))
        self.tick(save=True)
        raise Settled

    def end(self, log: Callable[[str], None]) -> None:
        """Say how much of the budget was used."""
        if self._plan is not None:
            self.tick(save=True)
            log(f"used {duration(self._plan.used_s)} of the {duration(self._plan.budget_s)} of --time-budget")


def begin(config: SearchConfig, plan: Plan, stage: str) -> list[str]:
    """Mark a stage as begun, and return lines that say what is planned.

    If the stage before it took another time than planned, what is left is planned anew.
    """
    if plan.stages[stage].began_at_s is not None:
        return []
    lines = []
    before = [(name, found) for name, found in plan.stages.items() if found.began_at_s is not None]
    if before:
        name, last = before[-1]
        took_s = plan.used_s - (last.began_at_s or 0.0)
        # A stage that was quick gives its time to the next ones, but does not promise that these will be quick.
        replan(config, plan, max(1.0, took_s / last.planned_s))
        lines.append(f"the {TITLES[name]} took {duration(took_s)}; planned: {duration(last.planned_s)}. What is left:")
    lines += table(config, plan)
    plan.stages[stage].began_at_s = plan.used_s
    return lines
