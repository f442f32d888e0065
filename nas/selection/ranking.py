"""The choice among cells that were trained briefly: their table, and whether the search was worth it."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas import files
from nas.errors import InputError, first_problem, printable
from nas.report.run_data import read_run
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Candidate

TABLE_VERSION = 1


@dataclass
class Cell:
    """A cell to be trained briefly.

    Attributes:
        genotype: the cell, as the first search or draw gave it.
        file: the genotype file of that search or draw.
        seeds: seeds of the searches that found it.
        random_seeds: seeds of the random draws that gave it.
        names: how --candidates gave it.
        supernet_accuracies: accuracies of the supernets of these searches.
    """

    genotype: Genotype
    file: Path
    seeds: list[int] = field(default_factory=list)
    random_seeds: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    supernet_accuracies: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the cell after its first search or its file, such as seed3, random0 or candidate1."""
        return f"seed{self.seeds[0]}" if self.seeds else self.file.stem


def key(genotype: Genotype) -> object:
    """Return what is equal for cells that differ only in the order of a node's edges, which means nothing."""
    space = genotype.space
    cells = [tuple(tuple(sorted(edges)) for _, edges in space.by_node(genotype.edges(kind))) for kind in space.cells]
    return (space.name, *cells, *map(genotype.concat, space.cells))


def candidates(trained: Sequence[tuple[Cell, Path]], balanced: bool = False) -> list[Candidate]:
    """Return the results of the brief trainings, the best cell first.

    Args:
        trained: each cell, and the run folder of its training.
        balanced: whether the balanced accuracy decides.

    Raises:
        InputError: a folder holds another cell, or no accuracy of the last epoch; the folder is named.
    """
    found = []
    for cell, folder in trained:
        run = read_run(folder)
        if Genotype.from_text(run["genotype"]) != cell.genotype:
            raise InputError(f"{folder}: trained another cell than {cell.file}; move the folder away, then resume.")
        balanced_accuracy = run["series"]["holdout/balanced_accuracy"][-1]
        if balanced and balanced_accuracy is None:
            raise InputError(f"{folder}: has no balanced accuracy; move the folder away, then resume.")
        try:
            candidate = Candidate(
                seeds=tuple(cell.seeds),
                random_seeds=tuple(cell.random_seeds),
                names=tuple(cell.names),
                genotype=cell.genotype.to_text(),
                **run["size"],
                supernet_accuracies=tuple(cell.supernet_accuracies),
                holdout_accuracy=run["series"]["holdout/accuracy"][-1],
                holdout_loss=run["series"]["holdout/loss"][-1],
                holdout_balanced_accuracy=balanced_accuracy if balanced else None,
            )
        except ValidationError as error:
            raise InputError(f"{folder}: {first_problem(error)}") from None
        found.append(candidate)
    return sorted(found, key=lambda candidate: (-candidate.score, candidate.holdout_loss))


class _TableFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Annotated[int, Field(ge=1, le=TABLE_VERSION)]
    cells: Annotated[list[Candidate], Field(min_length=1)]


def read_table(path: Path) -> list[Candidate]:
    """Read the table.json of several searches, the best cell first.

    Raises:
        InputError: it cannot be read or is damaged; the file and the field are named.
    """
    try:
        return _TableFile.model_validate_json(files.read_json(path, "table", TABLE_VERSION)).cells
    except ValidationError as error:
        raise InputError(f"table {path}: {first_problem(error)}") from None


def sources(row: Candidate) -> str:
    """Return where a cell comes from, such as "seed 0, 2; random 1; DARTS_V2"."""
    drawn = {"seed": row.seeds, "random": row.random_seeds}
    found = [f"{what} {', '.join(map(str, them))}" for what, them in drawn.items() if them]
    return "; ".join([*found, *(printable(name, 40) for name in row.names)])


def table(rows: Sequence[Candidate]) -> list[str]:
    """Return the lines of the table, one line per cell."""
    lines = [("cell", "balanced" if _balanced(rows) else "held out", "loss", "supernet", "weights", "mult-adds")]
    for row in rows:
        lines.append(
            (
                sources(row),
                f"{row.score:.2%}",
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
    """Return lines with mean and spread of searches and random cells, and whether the searches were worth it.

    A cell that several searches found counts several times: the mean is what one more search can be expected to give.
    """
    searched = [row.score for row in rows for _ in row.seeds]
    drawn = [row.score for row in rows for _ in row.random_seeds]
    what = "balanced accuracy on held-out images" if _balanced(rows) else "accuracy on held-out images"
    lines = [f"searches: {_summary(searched, what)}"]
    if given := [row.score for row in rows if row.names]:
        lines.append(f"cells of --candidates: {_summary(given, what)}")
    if not drawn:
        return lines
    difference = statistics.mean(searched) - statistics.mean(drawn)
    chance = _chance([row.score for row in rows if row.seeds], [row.score for row in rows if row.random_seeds])
    return [
        *lines,
        f"random cells: {_summary(drawn, what)}",
        f"worth it? the searches' mean is {_points(difference)} the random cells' mean ({chance}); the best search is "
        f"{_points(max(searched) - statistics.mean(drawn))} it, and {_points(max(searched) - max(drawn))} the best "
        "random cell",
    ]


def _chance(searched: Sequence[float], drawn: Sequence[float]) -> str:
    """Return in words whether chance alone may give this difference; a cell counts once, however often it was found."""
    if min(len(searched), len(drawn)) < 2:
        return "too few trainings to rule out chance"
    error = math.sqrt(sum(statistics.variance(group) / len(group) for group in (searched, drawn)))
    if error == 0:
        return "no spread from which to rule out chance"
    import scipy.stats  # here, as it takes a while

    with warnings.catch_warnings(action="ignore"):  # of a small spread
        often = scipy.stats.ttest_ind(searched, drawn, equal_var=False).pvalue
    return f"standard error {100 * error:.2f}; Welch's t-test: p = {often:.2g}"


def _balanced(rows: Sequence[Candidate]) -> bool:
    return any(row.holdout_balanced_accuracy is not None for row in rows)


def _summary(accuracies: Sequence[float], what: str) -> str:
    spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    return (
        f"mean {100 * statistics.mean(accuracies):.2f}{spread} % {what} (of {len(accuracies)}), "
        f"best {100 * max(accuracies):.2f} %"
    )


def _points(difference: float) -> str:
    return f"{abs(100 * difference):.2f} points {'below' if difference < 0 else 'above'}"
