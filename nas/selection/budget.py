"""What fits into --time-budget: the sizes, epochs and numbers of a run, planned from the speed of its steps.

A run has three stages: searches, brief trainings (the choice), and the final training. Each has a share of the budget.
Where a stage took longer than planned, the next one is planned anew for what is left.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas import files
from nas.config.cli import with_sizes_of
from nas.config.file import validate
from nas.config.flags import LowerLevel, SearchConfig
from nas.config.presets import PRESETS
from nas.config.values import BatchSize, Epochs, seconds_of
from nas.errors import InputError, count, first_problem
from nas.runs.progress_bar import duration
from nas.search_space.genotype_file import SPACES, GenotypeFile

PLAN_VERSION = 1
FILE = "plan.json"
SHARES = {"search": 0.25, "choice": 0.2, "final": 0.55}
LEAST_FINAL_EPOCHS, MOST_OF_FINAL = 60, 0.8
RESERVE = 0.06  # of the budget: for exports, reports, and what no step shows
# An epoch takes longer than its steps, as it ends with a measurement.
EPOCH_OVER_STEPS = {"search": 1.25, "choice": 1.1, "final": 1.05}
# A larger size is taken where so many epochs of it fit: of all searches together, of half of the cells, of the network.
WANTED_EPOCHS = {"search": 40, "choice": 8, "final": 40}
EPOCHS_OF_SEARCH = 10  # fewer are not worth a further search
MOST_SEARCHES = 4
PUBLISHED = ("DARTS_V2", "PC_DARTS_cifar")
# Accuracies after fewer steps say nothing of a cell (benchmarks/rank_signals.py): then no half of the cells is dropped.
FEWEST_STEPS = 400
HALVING = (0.25, 0.25, 0.5)  # of the epochs, in each rung; the cells halve from rung to rung

_Seconds = Annotated[float, Field(ge=0, le=1e9)]
_Some = Annotated[float, Field(ge=1e-9, le=1e9)]  # by which may be divided
_Size = Annotated[int, Field(ge=1)]


class Speed(NamedTuple):
    """The speed of a stage at one size: seconds and steps per epoch of a run, and seconds that a run takes to start."""

    channels: _Size
    num_cells: _Size
    epoch_s: _Some
    start_s: _Seconds
    num_steps: _Size


class Stage(BaseModel):
    """What a stage does: its flags, the seconds that it should take, and when it began, in seconds of the budget."""

    model_config = ConfigDict(extra="forbid", strict=True)

    flags: dict[Literal["supernet", "lower", "selection"], dict[str, Any]]
    planned_s: _Some
    began_at_s: _Seconds | None = None


class Plan(BaseModel):
    """The content of a plan.json: the budget, what was used of it, the speeds, and the stages."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: Annotated[int, Field(ge=1, le=PLAN_VERSION)] = PLAN_VERSION
    budget_s: _Seconds
    used_s: _Seconds = 0.0
    slots: Annotated[int, Field(ge=1, le=10**6)] = 1
    batch_size: BatchSize = LowerLevel.batch_size
    speeds: dict[str, Annotated[list[Speed], Field(min_length=1)]]
    stages: dict[str, Stage] = {}
    final_epochs: Epochs | None = None  # as the pace of the first ones has settled

    @classmethod
    def load(cls, folder: Path, config: SearchConfig | None = None) -> "Plan":
        """Read the plan of a run folder.

        Args:
            config: with which the run began; None if nothing will be run by the plan.

        Raises:
            InputError: the file cannot be read, is damaged, or plans another run; it is named.
        """
        path = folder / FILE
        data = files.read_json(path, "plan", PLAN_VERSION)
        try:
            plan = cls.model_validate_json(data)
            if config is not None:
                plan._check(config)
        except ValidationError as error:
            raise InputError(f"plan {path}: {first_problem(error)}") from None
        except InputError as error:
            raise InputError(f"plan {path}: {error}") from None
        return plan

    def _check(self, config: SearchConfig) -> None:
        if not list(self.stages) == list(self.speeds) == stages_of(config):
            raise InputError(f"its stages must be {', '.join(stages_of(config))}.")
        other = Plan(budget_s=self.budget_s, speeds=self.speeds)
        replan(config, other)
        if any(_names(stage) != _names(other.stages[name]) for name, stage in self.stages.items()):
            raise InputError("its flags are not those that a plan holds.")
        planned(config, self)

    def save(self, folder: Path) -> None:
        """Write the plan in one step."""
        files.write_json(folder / FILE, self.model_dump())


def sizes(config: SearchConfig, stage: str) -> list[tuple[int, int]]:
    """Return the sizes of a stage, channels of the first cell and number of cells, from small to published.

    A size that a flag names is the only one.
    """
    space = SPACES[config.supernet.space]
    published = space.supernet if stage == "search" else space.final_network
    given, (channels, num_cells) = _size_of(config, stage), published
    if given != published:
        return [given]
    fewest = 1 + len(space.halving) if len(space.cells) > 1 else 1
    ladder = [(max(8, channels // part), max(fewest + 1, num_cells // part)) for part in (4, 2)]
    return [*(size for size in ladder if size < published), published]


def make(
    config: SearchConfig,
    measure: Callable[[str, tuple[int, int]], Speed | None],
    slots: int,
    log: Callable[[str], None],
) -> Plan:
    """Plan all stages.

    Args:
        measure: returns the speed of a stage at a size; None where that does not fit into memory.
        slots: jobs that run at a time.

    Raises:
        InputError: not even one epoch of everything fits into the budget.
    """
    assert config.selection.time_budget is not None
    began = time.monotonic()
    budget_s, batch_size = seconds_of(config.selection.time_budget), config.lower.batch_size
    plan = Plan(budget_s=budget_s, slots=slots, batch_size=batch_size, speeds={})
    for stage in stages_of(config):
        plan.speeds[stage] = found = []
        for size in sizes(config, stage):
            if (speed := measure(stage, size)) is None:
                break
            found.append(speed)
            log(f"measured for the {TITLES[stage]}: {_size_in_words(*size)}, {speed.epoch_s:.1f} s per epoch")
            # Twice the cells and the channels take four times as long, or more.
            if _epochs(stage, speed, share_of(config, plan, stage, plan.budget_s), slots) < 4 * WANTED_EPOCHS[stage]:
                break
    plan.used_s = time.monotonic() - began
    replan(config, plan)
    needed = sum(stage.planned_s for stage in plan.stages.values()) + plan.used_s
    if needed > plan.budget_s:
        raise InputError(
            f"--time-budget {config.selection.time_budget}: too short; the least that this run would do takes about "
            f"{duration(needed)}."
        )
    return plan


def _names(stage: Stage) -> set[tuple[str, str]]:
    return {(group, name) for group, flags in stage.flags.items() for name in flags}


def stages_of(config: SearchConfig) -> list[str]:
    """Return the names of the stages of a run, in order."""
    return ["search", "choice", *(["final"] if config.selection.train_final else [])]


def share_of(config: SearchConfig, plan: Plan, stage: str, left_s: float) -> float:
    """Return the seconds of a stage, of what is left for it and later ones; of a short time the final one has more."""
    stages, shares = stages_of(config), dict(SHARES)
    if "final" in stages and plan.speeds.get("final"):
        wanted_s = LEAST_FINAL_EPOCHS * plan.speeds["final"][0].epoch_s
        shares["final"] = min(MOST_OF_FINAL, max(SHARES["final"], wanted_s / plan.budget_s))
        shares |= {name: SHARES[name] * (1 - shares["final"]) / (1 - SHARES["final"]) for name in ("search", "choice")}
    return left_s * shares[stage] / sum(shares[name] for name in stages[stages.index(stage) :])


def replan(config: SearchConfig, plan: Plan, slowdown: float = 1.0) -> None:
    """Plan the stages that have not begun, for the time that is left.

    Args:
        slowdown: how much longer runs take than the speeds say.
    """
    left_s = plan.budget_s * (1 - RESERVE) - plan.used_s
    for stage in stages_of(config):
        if stage in plan.stages and plan.stages[stage].began_at_s is not None:
            continue
        seconds = share_of(config, plan, stage, max(0.0, left_s))
        speeds = [speed._replace(epoch_s=speed.epoch_s * slowdown) for speed in plan.speeds[stage]]
        fitting = [speed for speed in speeds if _epochs(stage, speed, seconds, plan.slots) >= WANTED_EPOCHS[stage]]
        speed = (fitting or speeds[:1])[-1]
        searches = plan.stages["search"].flags["selection"]["searches"] if stage != "search" else 1
        plan.stages[stage] = PLANNERS[stage](config, speed, seconds, plan.slots, searches)
        left_s -= plan.stages[stage].planned_s


def _epochs(stage: str, speed: Speed, seconds: float, slots: int) -> float:
    """Return how many epochs of a size fit, in the meaning of WANTED_EPOCHS."""
    return slots * seconds / (speed.epoch_s * {"search": 1, "choice": MOST_SEARCHES, "final": slots}[stage])


def _plan_searches(config: SearchConfig, speed: Speed, seconds: float, slots: int, _: int) -> Stage:
    given, most = given_flags(config), config.lower.epochs
    fit = int(slots * (seconds - speed.start_s) / (speed.epoch_s * min(EPOCHS_OF_SEARCH, most)))
    searches = config.selection.searches if "searches" in given else max(1, min(MOST_SEARCHES, fit))
    rounds = math.ceil(searches / slots)
    epochs = int((seconds / rounds - speed.start_s) / speed.epoch_s)
    epochs = most if "epochs" in given else max(1 + config.upper.alpha_warmup, min(most, epochs))
    return Stage(
        flags={
            "supernet": {"init_channels": speed.channels, "num_cells": speed.num_cells},
            "lower": {"epochs": epochs},
            "selection": {"searches": searches},
        },
        planned_s=rounds * (speed.start_s + epochs * speed.epoch_s),
    )


def _plan_choice(config: SearchConfig, speed: Speed, seconds: float, slots: int, searches: int) -> Stage:
    """Plan the brief trainings: with published cells and halving where there is time for that."""
    given, selection = given_flags(config), config.selection
    own = selection.candidates or ()
    published = own or _published(config)
    random = selection.random_baseline
    options = [(searches, published, True), (searches, own, True), (searches, own, False), (1, own, False)]
    best: Stage | None = None
    for drawn, candidates, halving in options:
        drawn = random if "random_baseline" in given else drawn
        halving = halving or selection.selection_halving
        cells = searches * selection.derive_top + drawn + len(candidates)
        numbers = [cells, -(-cells // 2), -(-cells // 4)] if halving else [cells]
        rounds = [math.ceil(number * selection.selection_seeds / slots) for number in numbers]
        shares = HALVING if halving else (1.0,)
        start_s = speed.start_s * sum(rounds)
        whole_s = speed.epoch_s * sum(part * times for part, times in zip(shares, rounds, strict=True))
        epochs = int((seconds - start_s) / whole_s)
        most = selection.selection_epochs
        epochs = most if "selection_epochs" in given else max(4 if halving else 1, min(most, epochs))
        choice = {"selection_channels": speed.channels, "selection_cells": speed.num_cells, "selection_epochs": epochs}
        numbers_of = {"random_baseline": drawn, "candidates": candidates or None, "selection_halving": halving}
        best = Stage(flags={"selection": choice | numbers_of}, planned_s=start_s + epochs * whole_s)
        enough = not halving or epochs // 4 * speed.num_steps >= FEWEST_STEPS
        if best.planned_s <= seconds and start_s <= seconds / 2 and enough:
            break
    assert best is not None
    return best


def _published(config: SearchConfig) -> tuple[str, ...]:
    """Return the names of published cells of the space."""
    return tuple(name for name in PUBLISHED if GenotypeFile.load(name).space == config.supernet.space)


def _plan_final(config: SearchConfig, speed: Speed, seconds: float, _: int, __: int) -> Stage:
    given, most = "final_epochs" in given_flags(config), config.selection.final_epochs
    epochs = most if given else max(1, min(most, int((seconds - speed.start_s) / speed.epoch_s)))
    size = {"final_channels": speed.channels, "final_cells": speed.num_cells, "final_epochs": epochs}
    return Stage(flags={"selection": size}, planned_s=speed.start_s + epochs * speed.epoch_s)


PLANNERS: Mapping[str, Callable[..., Stage]] = {"search": _plan_searches, "choice": _plan_choice, "final": _plan_final}
TITLES = {"search": "searches", "choice": "brief trainings", "final": "final training"}


def planned(config: SearchConfig, plan: Plan) -> SearchConfig:
    """Return the config with the flags of all stages as they are planned."""
    content = dataclasses.asdict(config)
    content["lower"]["batch_size"] = plan.batch_size
    for stage in plan.stages.values():
        for group, flags in stage.flags.items():
            content[group] |= flags
    return validate(SearchConfig, content)


def table(config: SearchConfig, plan: Plan) -> list[str]:
    """Return the plan of the stages that have not begun as lines: what, how many, of which size, epochs and time.

    Before the first stage a last line says what the plan leaves out.
    """
    own = planned(config, plan)
    selection = own.selection
    cells = selection.searches * selection.derive_top + selection.random_baseline + len(selection.candidates or ())
    halving = ", the better half to the end" if selection.selection_halving else ""
    rows = {
        "search": (count(selection.searches, "search"), own.lower.epochs),
        "choice": (f"{count(cells, 'cell')} at most{halving}", selection.selection_epochs),
        "final": ("1 network", selection.final_epochs),
    }
    lines = [("stage", "how many", "size", "epochs", "time")]
    left = {name: stage for name, stage in plan.stages.items() if stage.began_at_s is None}
    for name, stage in left.items():
        how_many, epochs = rows[name]
        size = _size_in_words(*_size_of(own, name))
        lines.append((TITLES[name], how_many, size, str(epochs), duration(stage.planned_s)))
    total, left_s = sum(stage.planned_s for stage in left.values()), max(0.0, plan.budget_s - plan.used_s)
    lines.append(("in all", "", "", "", f"{duration(total)} of the {duration(left_s)} that are left"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return [*text, *(_left_out(own, plan) if left == plan.stages else ())]


def _left_out(own: SearchConfig, plan: Plan) -> list[str]:
    published = SPACES[own.supernet.space]
    left_out = []
    for name in plan.stages:
        size = published.supernet if name == "search" else published.final_network
        if _size_of(own, name) < size:
            left_out.append(f"{TITLES[name]} of the published size ({_size_in_words(*size)})")
    if own.selection.searches < MOST_SEARCHES:
        left_out.append(f"more than {count(own.selection.searches, 'search')}")
    if not own.selection.candidates and _published(own):
        left_out.append("published cells")
    return [f"There is no time for: {'; '.join(left_out)}."] if left_out else []


def _size_of(config: SearchConfig, stage: str) -> tuple[int, int]:
    selection = config.selection
    return {
        "search": (config.supernet.init_channels, config.supernet.num_cells),
        "choice": (selection.selection_channels, selection.selection_cells),
        "final": (selection.final_channels, selection.final_cells),
    }[stage]


def _size_in_words(channels: int, num_cells: int) -> str:
    return f"{count(channels, 'channel')}, {count(num_cells, 'cell')}"


def given_flags(config: SearchConfig) -> set[str]:
    """Return the flags that differ from the preset: a plan leaves them as they are."""
    default = with_sizes_of(PRESETS[config.run.preset], config.supernet.space)
    return {
        field.name
        for group in ("lower", "selection")
        for field in dataclasses.fields(getattr(config, group))
        if getattr(getattr(config, group), field.name) != getattr(getattr(default, group), field.name)
    }
