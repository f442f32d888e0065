"""A run folder in Python: the config, cells, curves, accuracy and network of a finished or running run."""

import html
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from nas.config.file import read_config, search_epochs, validate
from nas.config.flags import FinalConfig, SearchConfig, TrainedOn, is_several
from nas.errors import InputError, count, printable
from nas.models.final_network import FinalNetwork
from nas.report import cells
from nas.report.metrics_file import curves
from nas.report.run_data import refuse_links
from nas.runs import checkpoint
from nas.runs.table import Table
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Candidate
from nas.selection import budget, protocol, ranking
from nas.selection.cells import search_name, seeds
from nas.training.accuracy import FILE, AccuracyFile


@dataclass(frozen=True, eq=False, repr=False)
class OpenedRun:
    """OpenedRun is what a run folder held when `open_run` read it; a notebook shows a summary and the cells.

    Attributes:
        num_done: finished epochs, or finished ones of several searches; `num_planned` of the whole run.
        genotype: the cells, of a running search those of its last epoch; None as long as there are none.
        curves: name -> (step, value) of each record with that name; `epoch` and `time_s` are names too.
        table: the cells of several searches that are finished, the best one first.
        answers: those of a trained network to the images of `answers.measured_on`; None as long as it trains.
    """

    path: Path
    kind: Literal["search", "several searches", "final training"]
    config: SearchConfig | FinalConfig
    num_done: int
    num_planned: int
    is_finished: bool
    genotype: Genotype | None
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    table: list[Candidate] = field(default_factory=list)
    answers: AccuracyFile | None = None

    @property
    def accuracy(self) -> float | None:
        """The fraction of right answers; None as long as the network trains."""
        return None if self.answers is None else self.answers.measured.accuracy

    def network(self) -> FinalNetwork:
        """Return the network of a finished final training (see `FinalNetwork.from_run`), or raise InputError."""
        if self.kind == "final training" and not (self.is_finished or self.answers):
            raise InputError(f"{self.path}: not finished ({self._progress}); open it again when it is.")
        return FinalNetwork.from_run(self.path)

    @property
    def _progress(self) -> str:
        return f"{self.num_done} of {count(self.num_planned, 'search' if self.kind == 'several searches' else 'epoch')}"

    def __repr__(self) -> str:
        facts = [self.kind, self._progress, "finished" if self.is_finished else "not finished"]
        if self.answers is not None:
            facts.append(f"{self.answers.measured_on} accuracy {self.accuracy:.1%}")
        elif supernet := self.curves.get("upper/accuracy"):
            facts.append(f"supernet accuracy {supernet[-1][1]:.1%}")
        return f"{printable(self.path, 400)}: {', '.join(facts)}"

    def _repr_html_(self) -> str:
        table = cells.preformatted(ranking.table(self.table)) if self.table else ""
        drawn = cells.as_html(self.genotype) if self.genotype is not None else ""
        return f"<p>{html.escape(repr(self))}</p>{table}{drawn}"


def open_run(folder: str | os.PathLike) -> OpenedRun:
    """Read the folder of a run of search.py or train_final.py, finished or running.

    Raises:
        InputError: it is no run folder, or a file in it is damaged, too large or a link; the file is named.
    """
    path = Path(folder)
    try:
        if not path.is_dir():
            raise InputError(f"{path}: not a run folder.")
        return _read(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def _read(path: Path) -> OpenedRun:
    refuse_links(path)
    file, where = read_config(path), path / "config.json"
    own, measured = path / "genotype.json", path / FILE
    found = Genotype.load(own) if own.exists() else None, curves(path / "metrics.jsonl")
    if file.trained_on is not None:
        config, images = validate(FinalConfig, file.config, where), validate(TrainedOn, file.trained_on, where)
        epochs = config.training.epochs
        answers = AccuracyFile.load(measured, len(images.classes)) if measured.exists() else None
        last = answers if answers and answers.epoch == epochs else None  # not of before it was resumed with more epochs
        return OpenedRun(path, "final training", config, *_epochs(path, epochs), *found, answers=last)
    config = validate(SearchConfig, file.config, where)
    if is_several(config):
        return _several(path, config)
    return OpenedRun(path, "search", config, *_epochs(path, search_epochs(config)), *found)


def _several(path: Path, config: SearchConfig) -> OpenedRun:
    if config.selection.time_budget is not None:
        config = budget.planned(config, budget.Plan.load(path, config))
    searches = [path / search_name(config, seed) for seed in seeds(config)]
    done = [_epochs(folder, search_epochs(config))[2] for folder in searches]
    finished = all(done) and (path / "table.json").exists()
    table = list(Table.load(path / "table.json").cells) if finished else []
    best = next((row for row in table if protocol.is_searched(row) or not config.selection.export_searched), None)
    genotype = Genotype.from_text(best.genotype) if best else None
    return OpenedRun(path, "several searches", config, sum(done), len(done), finished, genotype, table=table)


def _epochs(path: Path, planned: int) -> tuple[int, int, bool]:
    """Return the finished epochs of a run, the planned ones, and whether nothing is left to do."""
    found = checkpoint.newest(path)
    return (min(found.progress.epochs, planned), planned, found.is_done(planned)) if found else (0, planned, False)
