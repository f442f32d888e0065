"""The choice among cells that were trained briefly: their table, and whether the searches were worth it."""

import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from nas.errors import InputError, first_problem
from nas.report.run_data import read_run
from nas.runs import checkpoint
from nas.runs.table import Table, sources
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Candidate
from nas.selection.cells import Cell

FEWEST_CELLS = 4  # of each kind, for an interval; it is too narrow where there are few


def rows_of(path: Path, cells: Sequence[Cell]) -> list[Candidate]:
    """Read the table of these cells.

    Raises:
        InputError: the file cannot be read, is damaged, or is about other cells; it is named.
    """
    advice = "move it away, then resume."
    try:
        rows = Table.load(path).cells
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; {advice}") from None
    own = [(cell.genotype.to_text(), cell.seeds, cell.runner_up_seeds, cell.random_seeds, cell.names) for cell in cells]
    found = [(row.genotype, *map(list, (row.seeds, row.runner_up_seeds, row.random_seeds, row.names))) for row in rows]
    if sorted(own) != sorted(found):
        raise InputError(f"table {path}: its cells are not those that were trained; {advice}")
    return list(rows)


def require_same_images(folders: Sequence[Path]) -> None:
    """Raise InputError if the run in one of the folders did not learn from the same images as that in the first."""
    first, *others = ((folder, checkpoint.newest(folder)) for folder in folders)
    for folder, manifest in others:
        if first[1] and manifest and manifest.data != first[1].data:
            raise InputError(
                f"{folder}: it learned from other images than {first[0]}; restore the images of --data-dir, move that "
                "folder away, then resume; or start a new run."
            )


def candidates(
    trained: Sequence[tuple[Cell, Sequence[Path]]], balanced: bool = False, epochs: int | None = None
) -> list[Candidate]:
    """Return the results of the brief trainings, the best cell first.

    Args:
        trained: each cell, and the run folders of its trainings, one for each seed.
        balanced: whether the balanced accuracy decides.
        epochs: after how many of them; by default after the last one.

    Raises:
        InputError: a folder holds another cell, or no accuracy of that epoch; the folder is named.
    """
    found = [_candidate(cell, folders, balanced, epochs) for cell, folders in trained]
    return sorted(found, key=lambda candidate: (-candidate.score, candidate.holdout_loss))


def _candidate(cell: Cell, folders: Sequence[Path], balanced: bool, epochs: int | None) -> Candidate:
    runs = [read_run(folder) for folder in folders]
    epochs = epochs or runs[0]["epochs"][-1]
    for run, folder in zip(runs, folders, strict=True):
        if Genotype.from_text(run["genotype"]) != cell.genotype:
            raise InputError(f"{folder}: trained another cell than {cell.file}; move the folder away, then resume.")

    def after(name: str) -> tuple[float, ...]:
        return tuple(run["series"][f"holdout/{name}"][run["epochs"].index(epochs)] for run in runs)

    def mean(name: str) -> float:
        return statistics.mean(after(name))

    try:
        return Candidate(
            seeds=tuple(cell.seeds),
            runner_up_seeds=tuple(cell.runner_up_seeds),
            random_seeds=tuple(cell.random_seeds),
            names=tuple(cell.names),
            genotype=cell.genotype.to_text(),
            **runs[0]["size"],
            supernet_accuracies=tuple(cell.supernet_accuracies),
            holdout_accuracy=mean("accuracy"),
            holdout_loss=mean("loss"),
            holdout_balanced_accuracy=mean("balanced_accuracy") if balanced else None,
            epochs=epochs,
            scores=after("balanced_accuracy" if balanced else "accuracy"),
        )
    except ValidationError as error:
        raise InputError(f"{folders[0]}: {first_problem(error)}") from None
    except (TypeError, ValueError):  # None stands where a record is missing, if there is anything
        raise InputError(
            f"{folders[0]}: has no accuracy of epoch {epochs}; move the folder away, then resume."
        ) from None


def table(rows: Sequence[Candidate]) -> list[str]:
    """Return the lines of the table, one line per cell."""
    lines = [("cell", "balanced" if _balanced(rows) else "held out", "loss", "supernet", "weights", "mult-adds")]
    for row in rows:
        spread = f" ± {100 * statistics.stdev(row.scores):.2f}" if len(row.scores) > 1 else ""
        lines.append(
            (
                sources(row),
                f"{100 * row.score:.2f}{spread} %",
                f"{row.holdout_loss:.3f}",
                ", ".join(f"{accuracy:.1%}" for accuracy in row.supernet_accuracies) or "-",
                f"{row.weights / 1e6:.3f} M",
                f"{row.multiply_adds / 1e6:.1f} M",
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    return [
        f"{name:<{first}}" + "".join(f"  {text:>{width}}" for text, width in zip(rest, others, strict=True))
        for name, *rest in lines
    ]


def verdict(rows: Sequence[Candidate]) -> list[str]:
    """Return lines with mean and spread of each kind of cell, and at the end whether the searches were worth it.

    A cell that several searches found counts several times: the mean is what one more search can be expected to give.

    Args:
        rows: the cells, all trained for the same number of epochs.
    """
    kinds = {
        "searches": [row.score for row in rows for _ in row.seeds],
        "their runners-up": [row.score for row in rows if row.runner_up_seeds],
        "cells of --candidates": [row.score for row in rows if row.names],
        "random cells": [row.score for row in rows for _ in row.random_seeds],
    }
    what = "balanced accuracy on held-out images" if _balanced(rows) else "accuracy on held-out images"
    lines = [f"{kind}: {_summary(scores, what)}" for kind, scores in kinds.items() if scores]
    searched, drawn = kinds["searches"], kinds["random cells"]
    return [*lines, _conclusion(rows, searched, drawn)] if drawn else lines


def _conclusion(rows: Sequence[Candidate], searched: Sequence[float], drawn: Sequence[float]) -> str:
    """Return one sentence that says whether searched cells are better than random ones."""
    difference = 100 * (statistics.mean(searched) - statistics.mean(drawn))
    how = f"{abs(difference):.2f} points {'worse' if difference < 0 else 'better'} than"
    which = f"{how if abs(difference) >= 0.005 else 'as good as'} random ones on your images"
    distinct = min(sum(bool(row.seeds) for row in rows), sum(bool(row.random_seeds) for row in rows))
    if distinct < FEWEST_CELLS:
        return f"Searched cells are {which}; this may be chance, as there are fewer than {FEWEST_CELLS} of each kind."
    low, high = _interval(searched, drawn)
    interval = f"95 % interval {low:+.2f} to {high:+.2f} points"
    if low <= 0 <= high:
        return f"Searched cells are {which}, which may be chance: {interval}."
    return f"Searched cells are {which}; {interval}."


def _interval(searched: Sequence[float], drawn: Sequence[float]) -> tuple[float, float]:
    """Return the ends of a 95 % interval of the difference of the means, in points, by bootstrap over the cells."""
    import numpy as np  # here, as it takes a while
    import scipy.stats

    def difference(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        return 100 * (first.mean(axis) - second.mean(axis))

    with warnings.catch_warnings(action="ignore"):  # of groups without a spread, which have no BCa interval
        found = scipy.stats.bootstrap(
            (searched, drawn), difference, vectorized=True, method="percentile", rng=np.random.default_rng(0)
        ).confidence_interval
    return float(found.low), float(found.high)


def _balanced(rows: Sequence[Candidate]) -> bool:
    return any(row.holdout_balanced_accuracy is not None for row in rows)


def _summary(accuracies: Sequence[float], what: str) -> str:
    spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return (
        f"mean {100 * statistics.mean(accuracies):.2f}{spread} % {what} (of {len(accuracies)}), "
        f"best {100 * max(accuracies):.2f} %"
    )
