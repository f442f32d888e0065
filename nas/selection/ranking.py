"""Choosing among cells that were trained shortly: the table, and what it says of the search."""

import math
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from nas.errors import InputError
from nas.report.run_data import read_run
from nas.search_space.genotype import Candidate, Genotype, first_problem
from nas.search_space.space import EDGES_PER_NODE

TABLE_VERSION = 1


@dataclass
class Cell:
    """A cell to be trained shortly.

    Attributes:
        genotype: of its first source.
        file: the genotype file of that.
        seeds: of the searches that found it.
        random_seeds: of the draws that gave it.
        supernet_accuracies: of the searches.
    """

    genotype: Genotype
    file: Path
    seeds: list[int] = field(default_factory=list)
    random_seeds: list[int] = field(default_factory=list)
    supernet_accuracies: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of its first source, such as seed3 or random0."""
        return f"seed{self.seeds[0]}" if self.seeds else f"random{self.random_seeds[0]}"


def key(genotype: Genotype) -> object:
    """The same for cells that differ in the order of a node's edges alone, which means nothing."""
    cells = [
        [tuple(sorted(edges[index : index + EDGES_PER_NODE])) for index in range(0, len(edges), EDGES_PER_NODE)]
        for edges in (genotype.normal, genotype.reduce)
    ]
    return (*map(tuple, cells), genotype.normal_concat, genotype.reduce_concat)


def candidates(trained: Sequence[tuple[Cell, Path]], balanced: bool = False) -> list[Candidate]:
    """What the short trainings say of each cell, the best one first.

    Args:
        trained: each cell, and the run folder of its training.
        balanced: whether cells are chosen by their balanced accuracy.

    Raises:
        InputError: a folder holds another cell, or no accuracy of the last epoch; it is named.
    """
    found = []
    for cell, folder in trained:
        run = read_run(folder)
        if Genotype.from_text(run["genotype"]) != cell.genotype:
            raise InputError(f"{folder}: trained another cell than that of {cell.file}; move it away, and go on.")
        balanced_accuracy = run["series"]["holdout/balanced_accuracy"][-1]
        if balanced and balanced_accuracy is None:
            raise InputError(f"{folder}: holds no balanced accuracy, as before nas kept it; move it away, and go on.")
        try:
            candidate = Candidate(
                seeds=tuple(cell.seeds),
                random_seeds=tuple(cell.random_seeds),
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


def table(rows: Sequence[Candidate]) -> list[str]:
    """Lines, one a cell."""
    lines = [("cell", "balanced" if _balanced(rows) else "held out", "loss", "supernet", "weights", "mult-adds")]
    for row in rows:
        sources = {"seed": row.seeds, "random": row.random_seeds}
        lines.append(
            (
                "; ".join(f"{what} {', '.join(map(str, them))}" for what, them in sources.items() if them),
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
    """Lines: mean and spread of searches and of random cells, and whether the one was worth it beside the other.

    A cell that several searches found counts as often: the mean is what one more search may be expected to bring.
    """
    searched = [row.score for row in rows for _ in row.seeds]
    drawn = [row.score for row in rows for _ in row.random_seeds]
    what = "balanced accuracy held out" if _balanced(rows) else "held out"
    lines = [f"searches: {_summary(searched, what)}"]
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
    """What the trainings say of chance, each cell's counted once, however often it was found."""
    if min(len(searched), len(drawn)) < 2:
        return "from too few trainings to tell it from chance"
    error = math.sqrt(sum(statistics.variance(group) / len(group) for group in (searched, drawn)))
    if error == 0:
        return "without a spread that would tell it from chance"
    import scipy.stats  # here, as it takes a while

    with warnings.catch_warnings(action="ignore"):  # of a small spread
        often = scipy.stats.ttest_ind(searched, drawn, equal_var=False).pvalue
    return f"standard error {100 * error:.2f}; chance alone does as much with p = {often:.2g}, Welch's t-test"


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
