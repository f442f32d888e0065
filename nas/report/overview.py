"""Gathers one page on several searches and what came of them: the cells, the final network, and what it sees."""

import shlex
import statistics
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from nas.config.file import ConfigFile, read_config, validate
from nas.config.flags import SearchConfig
from nas.errors import InputError
from nas.report import examples, page
from nas.report.run_data import environment_of, read_run
from nas.runs.table import Table, sources
from nas.search_space.genotype_file import Candidate
from nas.training.accuracy import wilson_interval

FILE = "overview.html"
FINAL = "final"  # name of the run folder of the final training


class Part(NamedTuple):
    """A part of the time that everything took; `number` counts its runs, 0 where it is none of a run."""

    what: str
    number: int
    time_s: float


class Whole(NamedTuple):
    """What the run folder of several searches with a finished final training holds.

    Attributes:
        config, date, command: of all of them; when the first one began, and the command that began it.
        searches, final: each as `run_data.read_run` returns it.
        table: the cells that were compared.
        exported: the row of the cell that was trained in full; None if it is not in the table.
        interval: the ends of the 95 % interval of the test accuracy.
        times: what the time went into.
    """

    config: SearchConfig
    date: str
    command: list[str]
    searches: list[dict[str, Any]]
    final: dict[str, Any]
    table: Table
    exported: Candidate | None
    interval: tuple[float, float]
    times: list[Part]


def has_final_training(folder: Path) -> bool:
    """Return whether a folder holds several searches, and a final training that has at least begun."""
    return (folder / "table.json").is_file() and (folder / FINAL / "config.json").is_file()


def write(folder: Path, output: Path) -> None:
    """Write the page on a run folder for which `has_final_training` holds.

    Args:
        output: file to write, replaced in one step; a file that is not a report is refused.

    Raises:
        InputError: something in the folder is missing or damaged, or `output` is not a report.
        OSError: `output` cannot be written.
    """
    page.refuse_others(output)
    whole = read(folder)
    searches = [{name: value for name, value in run.items() if name != "edge_weights"} for run in whole.searches]
    about = {
        "name": folder.resolve().name,
        "date": whole.date,
        "final": whole.final | {"commands": _commands(folder, whole)},
        "interval": whole.interval,
        "conclusion": whole.table.conclusion,
        "cells": [_row(row, row is whole.exported) for row in whole.table.cells],
        "balanced": whole.config.data.balanced,
        "times": whole.times,
    }
    page.save(
        output, page.render(searches, about | examples.read(folder / FINAL, whole.final["size"]["multiply_adds"]))
    )


def read(folder: Path) -> Whole:
    """Read and check all that is shown of a run folder, but for the images.

    Raises:
        InputError: a file is missing, damaged or a link, or the final training is not finished; it is named.
    """
    for path in (folder / "config.json", folder / "table.json"):
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link; put the file itself there.")
    file = read_config(folder)
    config = validate(SearchConfig, file.config, folder / "config.json")
    final = _read(folder / FINAL, "final")
    answers = final["answers"]
    if not final["finished"] or answers is None or answers["measured_on"] != "test":
        raise InputError(f"{folder / FINAL}: has no test accuracy yet; finish the run, then write the page.")
    found = [
        path.parent for path in folder.glob(f"{config.run.name}-seed*/config.json")
    ]  # --time-budget chose how many
    searches = [_read(path, "search") for path in sorted(found, key=lambda path: (len(path.name), path.name))]
    if not searches:
        raise InputError(f"{folder}: holds none of its searches.")
    if {run["space"] for run in searches} != {final["space"]}:
        raise InputError(f"{folder}: its runs are of different search spaces.")
    table = Table.load(folder / "table.json")
    exported = next((row for row in table.cells if row.genotype == final["genotype"]), None)
    interval = wilson_interval(sum(answers["num_correct"]), sum(answers["num_images"]))
    begun, times = environment_of(file, folder / "config.json"), _times(folder, file, searches, final)
    return Whole(config, begun.date, begun.command, searches, final, table, exported, interval, times)


def _read(folder: Path, kind: str) -> dict[str, Any]:
    run = read_run(folder)
    if run["kind"] != kind:
        raise InputError(f"{folder}: was not written by {'search.py' if kind == 'search' else 'train_final.py'}.")
    return run


def _commands(folder: Path, whole: Whole) -> list[list[str]]:
    """Return [label, command] of what a person may do next, and of how it all began."""
    found = [["classify images", f"python -m nas.predict {shlex.quote(str(folder / FINAL))} IMAGE"]]
    found += [command for command in whole.final["commands"] if command[0] == "measure the test accuracy again"]
    if whole.command[:1] == ["search.py"]:  # any other command was put into the file by somebody
        found.append(["how all of it was started", "python " + shlex.join(whole.command)])
    return found


def _row(row: Candidate, is_exported: bool) -> dict[str, Any]:
    return {
        "source": sources(row),
        "score": row.score,
        "spread": statistics.stdev(row.scores) if len(row.scores) > 1 else None,
        "epochs": row.epochs or None,
        "weights": row.weights,
        "multiply_adds": row.multiply_adds,
        "exported": is_exported,
    }


def _times(folder: Path, file: ConfigFile, searches: list[dict[str, Any]], final: dict[str, Any]) -> list[Part]:
    brief = [_read(path, "final") for path in sorted(folder.glob("retrained-*/"))]
    kinds = {"searches": searches, "brief trainings": brief, "final training": [final]}
    parts = [Part(what, len(runs), sum(run["time_s"] for run in runs)) for what, runs in kinds.items()]
    rest = _elapsed_s(file, final) - sum(part.time_s for part in parts)
    return [*parts, Part("the rest", 0, rest)] if rest > 0 else parts


def _elapsed_s(file: ConfigFile, final: dict[str, Any]) -> float:
    """Return the seconds from the start to the end of the final training; 0 where it was stopped on the way."""
    try:
        begun = datetime.fromisoformat(file.environment["date"])
        ended = datetime.fromisoformat(final["date"]) + timedelta(seconds=final["time_s"])
        if any(datetime.fromisoformat(again["date"]) < ended for again in file.resumed):
            return 0.0
        return (ended - begun).total_seconds()
    except (KeyError, TypeError, ValueError, OverflowError):  # dates that somebody wrote
        return 0.0
