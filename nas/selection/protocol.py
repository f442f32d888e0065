"""Several searches: each cell found is trained briefly, next to random cells, and the best one is exported."""

import contextlib
import dataclasses
import functools
import os
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from nas import files
from nas.config.cli import config_to_resume, data_flags
from nas.config.flags import SearchConfig, data_seed, selection_fraction
from nas.config.selection import Selection
from nas.data.loader import load_test_split, load_training_split
from nas.data.sampler import halves
from nas.errors import InputError, Stopped, count, printable
from nas.export import SUFFIXES, export, require_packages
from nas.report import model_card, overview
from nas.report import page as report
from nas.report.run_data import read_run
from nas.runs.folder import RunFolder, folder_of_run, require_new
from nas.runs.interrupts import Interrupts
from nas.runs.table import Table, sources
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Candidate, GenotypeFile
from nas.selection import budget, ranking
from nas.selection.cells import Cell, candidate_files, distinct_cells, read_candidate, search_name, seeds
from nas.selection.clock import Clock, Settled
from nas.selection.job_configs import FEWEST_WITH_CUTOUT, FINAL, final_job, search_job, training_jobs, training_names
from nas.selection.jobs import Job, RunAll, is_done, num_epochs, runner
from nas.selection.measure import make_plan
from nas.selection.progress import jobs_view

RunJobs = Callable[..., None]  # run_to_their_end, from `jobs` on


def run_searches(config: SearchConfig, scripts: Path) -> None:
    """Run or resume all searches and trainings, print the table, and export the best cell.

    Args:
        scripts: folder of search.py and train_final.py.

    Raises:
        InputError: the run cannot be started or resumed with these flags.
        Stopped: it was asked to stop, or some of its jobs cannot be finished.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("--searches: cannot be combined with torchrun; use --ray to run searches in parallel.")
    path = folder_of_run(config.run, lambda: f"searches-{config.data.dataset}")
    is_new = not (path / "config.json").exists()
    if config.run.resume is None and not is_new:
        config = config_to_resume(config, path)
    name = config.run.name or path.name
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, name=name))
    selection = config.selection
    with runner(selection.ray, selection.devices_per_search, config.run.device, config.run.threads) as run_all:
        if config.run.dry_run:
            _, num_images = check(config)
            print(*budget.table(config, make_plan(config, num_images, scripts, run_all, print)), sep="\n")
            return
        run = create(path, config, scripts, run_all) if is_new else RunFolder.reopen(path, config)
        try:
            with run, Interrupts() as interrupts:
                search_and_choose(config, scripts, run, run_all, interrupts)
        except InputError:
            if is_new and not any(path.glob("*/config.json")):  # no job could be begun: as if nothing had been
                shutil.rmtree(path)
            raise


def create(path: Path, config: SearchConfig, scripts: Path, run_all: RunAll) -> RunFolder:
    """Return the folder of a new run, after reading its images and, with --time-budget, planning it.

    Raises:
        InputError: the name is taken, the images or a cell of --candidates cannot be read, or the budget is too short.
    """
    require_new(path)
    require_new_exports(config)
    # Read once here, where that is possible: several at once would download the same files.
    notes, num_images = check(config)
    plan = None
    if config.selection.time_budget is not None:
        plan = make_plan(config, num_images, scripts, run_all, print)
    planned = config if plan is None else budget.planned(config, plan)
    require_new_exports(planned)  # as the plan may have more searches

    def fill(folder: Path) -> None:
        if plan is not None:
            plan.save(folder)
        candidate_files(planned, folder)  # now, as the searches may take days

    run = RunFolder.create(path, config, fill=fill)
    for note in notes:
        run.log(note)
    return run


def require_new_exports(config: SearchConfig) -> None:
    """Raise InputError if a genotype file that the run will write exists."""
    for name in (config.run.name, *(search_name(config, seed) for seed in seeds(config))):
        if (exported := Path("genotypes", f"{name}.json")).exists():
            raise InputError(f"--name {config.run.name}: {exported} exists already; choose another --name.")


def search_and_choose(
    config: SearchConfig, scripts: Path, run: RunFolder, run_all: RunAll, interrupts: Interrupts
) -> None:
    exported = Path("genotypes", f"{config.run.name}.json")
    if exported.exists() and GenotypeFile.load(exported).provenance.date != run.started:
        raise InputError(f"--resume {run.path}: {exported} belongs to another run; move it away.")
    run.write_config()
    clock = Clock(config, run.path)
    run_jobs = functools.partial(run_to_their_end, run, run_all, interrupts, clock)
    config = clock.begin("search", run.log)
    for name in (config.run.name, *(search_name(config, seed) for seed in seeds(config))):
        files.remove_asides(exported.parent, f"{name}.json")
    for line in plan(config):
        run.log(line)
    run.log(f"{run.path}: tensorboard --logdir {shlex.quote(str(run.path))} shows all of them as they go")
    run_jobs([search_job(config, scripts, run.path, seed) for seed in seeds(config)], "search")
    config = clock.begin("choice", run.log)
    cells = distinct_cells(config, run.path)
    table = compare(config, scripts, run, run_jobs, cells)
    table.save(run.path / "table.json")
    best = next(row for row in table.cells if is_searched(row) or not config.selection.export_searched)
    found = GenotypeFile.load(next(cell.file for cell in cells if cell.genotype.to_text() == best.genotype))
    provenance = found.provenance.model_copy(update={"date": run.started, "candidates": table.cells})
    Genotype(**found.cells()).save(exported, provenance)
    names = ["table.json", *write_pages(config, run, cells)]
    run.log(f"written: {exported} ({sources(best)}), and in {run.path}: {', '.join(names)}")
    if config.selection.train_final:
        config = clock.begin("final", run.log)
        train_in_full(config, scripts, run, run_jobs, clock, exported)
    else:
        flags = data_flags(config.data, config.run.seed, config.supernet.stem)
        run.log(f"train it in full: python train_final.py --genotype {shlex.quote(str(exported))}{flags}")
    clock.end(run.log)


def run_to_their_end(
    run: RunFolder,
    run_all: RunAll,
    interrupts: Interrupts,
    clock: Clock,
    jobs: Sequence[Job],
    what: str,
    watch: Callable[[], None] = lambda: None,
) -> None:
    """Run jobs that are not finished, and show their progress.

    Args:
        what: the word for one of them.
        watch: called again and again; what it raises stops the jobs.

    Raises:
        InputError: the input of a job is wrong.
        Stopped: a signal asked to stop, or a job cannot be finished.
    """
    try:
        with jobs_view(run.console, run.log, jobs) as look:

            def tick() -> None:
                if interrupts.received is not None:
                    raise KeyboardInterrupt
                clock.tick()
                look()
                watch()

            endings = run_all(jobs, tick)
    except KeyboardInterrupt:
        done = sum(map(is_done, jobs))
        sentence = f"finished {done} of {count(len(jobs), what)}; resume with: {run.go_on}"
        raise Stopped(sentence, interrupts.exit_code) from None
    for ending in endings:
        if ending.code == 2:
            raise InputError(ending.why)
    if endings:
        others = f" (and {len(endings) - 1} more)" if len(endings) > 1 else ""
        raise Stopped(f"{endings[0].why.rstrip('.')}{others}; then resume with: {run.go_on}")


def compare(config: SearchConfig, scripts: Path, run: RunFolder, run_jobs: RunJobs, cells: Sequence[Cell]) -> Table:
    """Train cells briefly, and return their table; with --selection-halving the worse half is dropped after each rung.

    Raises:
        InputError, Stopped: as `run_to_their_end`.
    """
    left, best, dropped, verdict = list(cells), [], [], []
    for epochs in rungs(config.selection):
        kept = run.path / f"table-{epochs}.json"  # later epochs would hide what a rung was decided by
        if kept.exists():
            rows = ranking.rows_of(kept, left)
        else:
            rows = train_briefly(config, scripts, run, run_jobs, left, epochs)
            Table(cells=tuple(rows)).save(kept)
        verdict = verdict or ranking.verdict(rows)  # all cells, after equally many epochs
        for line in (f"after {count(epochs, 'epoch')}:", *ranking.table(rows)):
            run.log(line)
        best = rows if epochs == config.selection.selection_epochs else rows[: -(-len(rows) // 2)]
        dropped = rows[len(best) :] + dropped
        left = [cell for row in best for cell in cells if cell.genotype.to_text() == row.genotype]
    for line in verdict:
        run.log(line)
    return Table(cells=(*best, *dropped), verdict=tuple(verdict))


def train_briefly(
    config: SearchConfig, scripts: Path, run: RunFolder, run_jobs: RunJobs, cells: Sequence[Cell], epochs: int
) -> list[Candidate]:
    """Train cells to an epoch, on from where they are, and return the results, the best cell first."""
    jobs = {cell.name: training_jobs(config, scripts, run.path, cell, epochs) for cell in cells}
    # Those that are further belong to a later rung, of which the table of this one was lost.
    left = [job for several in jobs.values() for job in several if num_epochs(job) <= epochs]
    run_jobs(left, "training")
    searched = [run.path / search_name(config, seed) for seed in seeds(config)] if selection_fraction(config) else []
    ranking.require_same_images([*searched, *(job.folder for several in jobs.values() for job in several)])
    folders = [(cell, [job.path for job in jobs[cell.name]]) for cell in cells]
    return ranking.candidates(folders, config.data.balanced, epochs)


def train_in_full(
    config: SearchConfig, scripts: Path, run: RunFolder, run_jobs: RunJobs, clock: Clock, exported: Path
) -> None:
    """Train the network of the exported cell, measure it on the test set, and write it for other programs."""
    epochs, is_settled = clock.final_epochs(config)
    if not is_settled:
        first = final_job(config, scripts, run.path, exported, epochs)
        with contextlib.suppress(Settled):
            run_jobs([first], "final training", lambda: clock.settle(first))
        epochs, _ = clock.final_epochs(config)
        run.log(f"the pace of the first epochs leaves time for {count(epochs, 'epoch')} in all")
    run_jobs([final_job(config, scripts, run.path, exported, epochs)], "final training")
    kind, folder = config.selection.export, run.path / FINAL
    if kind is not None and not (network := folder / f"network{SUFFIXES[kind]}").exists():
        _, difference = export(str(folder), kind)
        run.log(f"written: {network}; its logits differ by at most {difference:.1e} from those of the run")
    test = read_run(folder)["test"]
    run.log(f"the network of {exported} has a test accuracy of {test['accuracy']:.2%}; it is in {folder}")
    run.log(f"classify images: python -m nas.predict {shlex.quote(str(folder))} IMAGE")
    write_overview(run)


def write_overview(run: RunFolder) -> None:
    """Write the page on everything, and the model card; where one cannot be written a line says why."""
    written = []
    for write, name in ((overview.write, overview.FILE), (model_card.write, model_card.FILE)):
        try:
            write(run.path, run.path / name)
            written.append(f"{run.path / name}")
        except InputError as error:  # such as somebody else's file in that place: no reason not to finish
            run.log(f"no {name}: {error}")
    if written:
        run.log(f"written: {' and '.join(written)}")


def rungs(selection: Selection) -> list[int]:
    """Return the epochs after which cells are compared.

    The learning rate falls to 0 up to each rung, because networks that are still learning fast say little of what they
    will become; where a training goes on it begins at the rate of that epoch of the longer training.
    """
    last = selection.selection_epochs
    return sorted({max(1, last // 4), max(1, last // 2), last}) if selection.selection_halving else [last]


def is_searched(row: Candidate) -> bool:
    """Return whether a search led to the cell."""
    return bool(row.seeds or row.runner_up_seeds)


def write_pages(config: SearchConfig, run: RunFolder, cells: Sequence[Cell]) -> list[str]:
    """Write a page that compares the searches, and one that compares the trainings; return the names of the files."""
    names = []
    pages = {
        "report.html": [run.path / search_name(config, seed) for seed in seeds(config)],
        "retrained.html": [run.path / name for cell in cells for name in training_names(config, cell)],
    }
    for name, folders in pages.items():
        try:
            report.write(folders, run.path / name)
            names.append(name)
        except InputError as error:  # such as somebody else's page in that place: no reason not to finish
            run.log(f"no {name}: {error}")
    return names


def check(config: SearchConfig) -> tuple[tuple[str, ...], int]:
    """Check what all stages of a new run need; return what is to be said about the training images, and their number.

    Raises:
        InputError: a cell of --candidates cannot be read; a package that --export needs is missing; the images cannot
            be read, or are too few; or --train-final is given, and no test set fits them.
    """
    for source in config.selection.candidates or ():
        read_candidate(source, config)
    if config.selection.export is not None:
        require_packages(config.selection.export, "--export")
    train, fraction = load_training_split(config.data, data_seed(config)), selection_fraction(config)
    kept, held_out = halves(len(train.targets), fraction, data_seed(config))
    weights, alphas = map(len, halves(len(kept), config.upper.upper_fraction, config.run.seed))
    if fraction and (min(weights, alphas) < 2 or not len(held_out)):
        raise InputError(
            f"--selection-fraction {fraction:g}: {count(len(train.targets), 'image')} would give {len(held_out)} to "
            f"compare cells, {weights} for the weights and {alphas} for the alphas, but 1, 2 and 2 are needed at least."
        )
    if config.selection.train_final:
        try:
            load_test_split(config.data, train.classes, tuple(train.images.shape[1:]), bits=train.bits)
        except InputError as error:
            raise InputError(f"--train-final: {error}") from None
    return train.notes, len(train.targets)


def plan(config: SearchConfig) -> list[str]:
    """Return lines that say what will be done."""
    selection, (first, last) = config.selection, (seeds(config)[0], seeds(config)[-1])
    where = "one after another" if selection.ray is None else f"in parallel on Ray ({selection.ray})"
    which = f"seed {first}" if first == last else f"seeds {first} to {last}"
    top = selection.derive_top
    cells = ["each distinct cell" if top == 1 else f"the {top} likeliest cells of each search"]
    cells += [count(selection.random_baseline, "random cell")] if selection.random_baseline else []
    cells += [printable(source, 40) for source in selection.candidates or ()]
    *first_rungs, last_rung = rungs(selection)
    epochs = " or ".join([*map(str, first_rungs), count(last_rung, "epoch")])
    with_seeds = f", {selection.selection_seeds} seeds each" if selection.selection_seeds > 1 else ""
    fraction = selection_fraction(config)
    images = "the images from which the alphas of the first search learn"
    images = f"{fraction:.0%} of the training images, which no search sees" if fraction else images
    lines = [
        f"{count(selection.searches, 'search')}, {which}, {where}",
        f"then {', '.join(cells)} will be trained ({epochs}, {count(selection.selection_channels, 'channel')}, "
        f"{count(selection.selection_cells, 'cell')}{with_seeds}), and measured on {images}; the test set is not read",
    ]
    if selection.train_final:
        lines.append(
            f"then the network of the best cell will be trained ({count(selection.final_epochs, 'epoch')}, "
            f"{count(selection.final_channels, 'channel')}, {count(selection.final_cells, 'cell')}) on all training "
            "images, and measured on the test set"
        )
    if selection.time_budget is not None:
        lines.append(
            f"batches have at most {config.lower.batch_size} images; networks that train for fewer than "
            f"{FEWEST_WITH_CUTOUT} epochs have no cutout and less drop path than published"
        )
    return lines
