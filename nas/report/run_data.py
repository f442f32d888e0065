"""Reads and checks what a report shows of one run: plain numbers and text, ready for JSON."""

import dataclasses
import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from nas.config.cli import data_flags, with_size_of, with_sizes_of
from nas.config.file import ConfigFile, flag_of, read_config, search_epochs, searched_space, validate
from nas.config.flags import FinalConfig, SearchConfig, TrainedOn, is_several
from nas.errors import InputError, count, first_problem
from nas.models.size import NetworkSize, network_size
from nas.report.metrics_file import records
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile
from nas.search_space.space import SearchSpace
from nas.training.accuracy import FILE as ACCURACY_FILE
from nas.training.accuracy import AccuracyFile

HOW_CALLED = ("resume", "evaluate", "config", "preset", "dry_run")  # flags that do not say what was computed
SERIES = {
    "search": (
        *(f"{level}/{what}" for what in ("loss", "accuracy") for level in ("lower", "upper")),
        "upper/balanced_accuracy",
    ),
    "final": ("train/loss", "train/accuracy", "holdout/loss", "holdout/accuracy", "holdout/balanced_accuracy"),
}

Cell = Sequence[tuple[str, int]]


class _Environment(BaseModel):
    """What `nas.machine.environment` writes into config.json."""

    model_config = ConfigDict(frozen=True, strict=True)

    date: str
    command: list[str] = []
    versions: dict[str, str] = {}
    platform: str = ""
    processor: str = ""
    num_threads: int | None = None
    gpus: list[str] = []


class _Metrics(NamedTuple):
    """Metrics of the finished epochs, in their order.

    Attributes:
        epochs: counted from 1; some are missing if lines of metrics.jsonl are.
        series: name -> one value per epoch, None where there is none.
        edge_weights: one dict per epoch of a search: cell -> (edges, primitives).
        test: loss and accuracy of a trained network on the test set.
        time_s: seconds that the run took so far.
    """

    epochs: list[int]
    series: dict[str, list[float | None]]
    edge_weights: list[dict[str, list[list[float]]]]
    test: dict[str, float]
    time_s: float


def read_run(folder: Path) -> dict[str, Any]:
    """Return all that a report shows of a run of search.py or train_final.py, finished or not.

    Raises:
        InputError: the folder holds no run or no finished epoch, or a file in it is damaged, too large or a link; it
            names the file, and the line or field.
    """
    refuse_links(folder)
    file = read_config(folder)
    path = folder / "config.json"
    environment = environment_of(file, path)
    config: SearchConfig | FinalConfig
    history: list[Genotype] = []
    if file.trained_on is None:
        config = validate(SearchConfig, file.config, path)
        if is_several(config):
            raise InputError(f"{folder}: holds several searches; give one of the run folders in it.")
        space, num_epochs, num_nodes = searched_space(config.supernet), search_epochs(config), config.supernet.num_nodes
    else:
        config = validate(FinalConfig, file.config, path)
        history = [Genotype(**GenotypeFile.load(folder / "genotype.json").cells())]
        space, num_epochs, num_nodes = history[0].space, config.training.epochs, 0
    kind = "search" if isinstance(config, SearchConfig) else "final"
    names = (*SERIES[kind], *_series_of(space)) if isinstance(config, SearchConfig) else SERIES[kind]
    metrics = _read_metrics(folder, names, num_epochs, num_nodes, space)
    untested = isinstance(config, FinalConfig) and not config.training.skip_test and not metrics.test
    finished = metrics.epochs[-1] == num_epochs and not untested
    if isinstance(config, SearchConfig):
        history, parts = _search_parts(metrics, space)
        default: SearchConfig | FinalConfig = with_sizes_of(SearchConfig(), space.name)
    else:
        parts = _training_parts(folder, history[0], config, validate(TrainedOn, file.trained_on, path), metrics)
        default = with_size_of(FinalConfig(), space)
    return {
        "kind": kind,
        "name": folder.resolve().name,
        "dataset": config.data.dataset,
        "seed": config.run.seed,
        "date": environment.date,
        "num_epochs": num_epochs,
        "epochs": metrics.epochs,
        "series": metrics.series,
        "time_s": metrics.time_s,
        "config": flags_of(config, default),
        "environment": _lines(environment, len(file.resumed)),
        "finished": finished,
        "space": space.name,
        "cells": {cell: [genotype.edges(cell) for genotype in history] for cell in space.cells},
        "concat": {cell: history[-1].concat(cell) for cell in space.cells},
        "genotype": history[-1].to_text(),
        "commands": _commands(folder, config, file.script, environment.command, finished, bool(metrics.test)),
    } | parts


def refuse_links(folder: Path) -> None:
    """Raise InputError if a file that is read in a run folder is a symbolic link."""
    for name in ("config.json", "metrics.jsonl", "genotype.json", "table.json", ACCURACY_FILE):
        if (folder / name).is_symlink():
            raise InputError(f"{folder / name}: is a symbolic link; put the file itself there.")


def environment_of(file: ConfigFile, path: Path) -> _Environment:
    """Return when, how and where a run began, checked; `path` is that of its config.json."""
    try:
        return _Environment.model_validate(file.environment)
    except ValidationError as error:
        raise InputError(f"config {path}: environment.{first_problem(error)}") from None


def _series_of(space: SearchSpace) -> list[str]:
    """Return the names of the series that a search in a space has, besides those of every search."""
    names = [
        form.format(cell) for form in ("cells/entropy_{}_nats", "cells/skip_connections_{}") for cell in space.cells
    ]
    return [*names, *space.truth_names]


def _search_parts(metrics: _Metrics, space: SearchSpace) -> tuple[list[Genotype], dict[str, Any]]:
    """Return the genotype of each epoch of a search, and what its page alone shows."""
    history = [
        Genotype.from_edge_weights(*(weights[cell] for cell in space.cells), space=space)
        for weights in metrics.edge_weights
    ]
    rounded = {
        cell: [[[round(weight, 5) for weight in row] for row in weights[cell]] for weights in metrics.edge_weights]
        for cell in space.cells
    }
    return history, {
        "edge_weights": rounded,
        "changes": changes(history, metrics.epochs),
        "size": _size(network_size(history[-1])),
    }


def _training_parts(
    folder: Path, genotype: Genotype, config: FinalConfig, trained_on: TrainedOn, metrics: _Metrics
) -> dict[str, Any]:
    """Return what the page of a training alone shows."""
    shape = trained_on.image_size, trained_on.in_channels, config.network.init_channels, config.network.num_cells
    return {
        "test": metrics.test,
        "skips_test": config.training.skip_test,
        "answers": _answers(folder / ACCURACY_FILE, trained_on.classes, metrics.epochs[-1]),
        "size": _size(network_size(genotype, *shape, len(trained_on.classes), config.network.stem)),
    }


def _size(size: NetworkSize) -> dict[str, int]:
    return {"weights": size.weights, "multiply_adds": size.multiply_adds}


def _commands(
    folder: Path, config: SearchConfig | FinalConfig, script: str, started_by: list[str], finished: bool, tested: bool
) -> list[list[str]]:
    """Return [label, command] of what a person may do next."""
    found = []
    if isinstance(config, SearchConfig):
        images = data_flags(config.data, config.run.seed, config.supernet.stem)
        stored = shlex.quote(str(folder / "genotype.json"))
        found.append(["train the cell", f"python train_final.py --genotype {stored}{images}"])
    elif tested:
        command = f"python train_final.py --evaluate {shlex.quote(str(folder))}"
        found.append(["measure the test accuracy again", command])
    if not finished:
        found.append(["resume the run", f"python {script} --resume {shlex.quote(str(folder))}"])
    if started_by[:1] == [script]:  # any other command was put into the file by somebody
        found.append(["how the run was started", "python " + shlex.join(started_by)])
    return found


def _answers(path: Path, classes: tuple[str, ...], epoch: int) -> dict[str, Any] | None:
    """Return the content of accuracy.json and what follows from it; None unless it is of the last epoch."""
    if not path.exists():
        return None
    file = AccuracyFile.load(path, len(classes))
    if file.epoch != epoch:
        return None
    measured = file.measured
    figures = ("accuracy", "balanced_accuracy", "majority_accuracy", "largest_class")
    return {
        "measured_on": file.measured_on,
        "classes": classes,
        "num_images": file.num_images,
        "num_correct": file.num_correct,
        "confusion": file.confusion,
    } | {name: getattr(measured, name) for name in figures}


def changes(history: Sequence[Genotype], epochs: Sequence[int]) -> list[dict[str, Any]]:
    """Return the edges in which the genotype of an epoch differs from the one before.

    Args:
        history: the genotype of each epoch.
        epochs: the number of each epoch.

    Returns:
        One dict per changed edge, ordered by epoch, cell and node: the (primitive, source) that was removed and the one
        that replaced it. An edge that changed only its primitive is paired with itself.
    """
    found = []
    for index, (before, after) in enumerate(itertools.pairwise(history), 1):
        for cell in after.space.cells:
            nodes = (after.space.by_node(genotype.edges(cell)) for genotype in (before, after))
            for (node, old), (_, new) in zip(*nodes, strict=True):
                gone, come = [edge for edge in old if edge not in new], [edge for edge in new if edge not in old]
                gone.sort(key=lambda edge: edge[1] not in {source for _, source in come})
                for edge in gone:
                    to = next((other for other in come if other[1] == edge[1]), come[0])
                    come.remove(to)
                    found.append({"epoch": epochs[index], "cell": cell, "node": node, "from": edge, "to": to})
    return found


def _read_metrics(folder: Path, names: Sequence[str], num_epochs: int, num_nodes: int, space: SearchSpace) -> _Metrics:
    path = folder / "metrics.jsonl"
    columns = {
        cell: [
            [f"edge_weights_{cell}/{source}-{node}_{primitive}" for primitive in space.primitives]
            for source, node in space.edges(num_nodes)
        ]
        for cell in space.cells
    }
    expected = {name for rows in columns.values() for row in rows for name in row}
    found = _Metrics(
        [], {name: [] for name in (*names, "speed/epoch_s", "speed/images_per_s", "speed/peak_memory_gb")}, [], {}, 0.0
    )
    rates: list[float] = []
    time_s = 0.0
    for number, record in records(path):
        where = f"{path}, line {number}"
        epoch = record.get("epoch", 0.0)
        if not (epoch.is_integer() and max([1, *found.epochs[-1:]]) <= epoch <= num_epochs):
            first = max([1, *found.epochs[-1:]])
            raise InputError(f"{where}: epoch is {epoch:g}, but must be from {first} to {num_epochs}.")
        if any(name.endswith("accuracy") and not 0 <= value <= 1 for name, value in record.items()):
            raise InputError(f"{where}: an accuracy is not between 0 and 1.")
        time_s = record.get("time_s", time_s)
        if "speed/images_per_s" in record:
            rates.append(record["speed/images_per_s"])
        if "test/accuracy" in record:
            found.test.update(
                {name: record[f"test/{name}"] for name in ("loss", "accuracy") if f"test/{name}" in record}
            )
        if "speed/epoch_s" not in record:  # only the last record of an epoch has it
            continue
        if found.epochs[-1:] == [int(epoch)]:
            raise InputError(f"{where}: epoch {epoch:g} appears twice.")
        if {name for name in record if name.startswith("edge_weights_")} != expected:
            raise InputError(f"{where}: the edge weights are not those of cells with {count(num_nodes, 'node')}.")
        weights = {cell: [[record[name] for name in row] for row in rows] for cell, rows in columns.items()}
        for row in (row for rows in weights.values() for row in rows):
            if min(row) < 0 or sum(row) > 1 + 1e-3:  # less where edges have weights of their own
                raise InputError(f"{where}: the weights of an edge do not add up to 1 or less.")
        if rates:
            record["speed/images_per_s"] = sum(rates) / len(rates)
        rates.clear()
        found.test.clear()  # an earlier epoch was tested
        found.epochs.append(int(epoch))
        found.edge_weights.append(weights)
        for name, values in found.series.items():
            values.append(record.get(name))
    if not found.epochs:
        raise InputError(f"{folder}: no epoch is finished yet, so there is nothing to report.")
    return found._replace(time_s=time_s)


def flags_of(config: SearchConfig | FinalConfig, default: SearchConfig | FinalConfig) -> list[list[Any]]:
    """Return [title, [[flag, value, default], …]] of each group of flags."""
    found = []
    for group in dataclasses.fields(default):
        if group.name == "several":  # each search is a run with its own page
            continue
        values, defaults = getattr(config, group.name), getattr(default, group.name)
        names = [field.name for field in dataclasses.fields(defaults) if field.name not in HOW_CALLED]
        rows = [[flag_of(name), _text(getattr(values, name)), _text(getattr(defaults, name))] for name in names]
        found.append([type(defaults).__doc__, rows])
    return found


def _text(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _lines(environment: _Environment, times_resumed: int) -> list[list[str]]:
    """Return [what, value] of each known property."""
    threads = "" if environment.num_threads is None else str(environment.num_threads)
    rows = [
        ["resumed", f"{times_resumed} ×" if times_resumed else ""],
        ["processor", environment.processor],
        ["threads", threads],
        ["GPUs", ", ".join(environment.gpus)],
        ["system", environment.platform],
        *([name, version] for name, version in environment.versions.items()),
    ]
    return [row for row in rows if row[1]]
