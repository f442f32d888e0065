"""Several searches: each cell found is trained briefly, next to random cells, and the best one is exported."""

import dataclasses
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from nas import files
from nas.config.cli import config_to_resume, data_flags
from nas.config.file import CONFIG_VERSION, ConfigFile, search_epochs
from nas.config.flags import FinalConfig, Network, Run, SearchConfig, SearchRun, Selection, Training
from nas.data import datasets
from nas.errors import InputError, Stopped, count, printable
from nas.machine.environment import environment
from nas.report import page as report
from nas.runs.folder import RunFolder, folder_of_run
from nas.runs.interrupts import Interrupts
from nas.search_space import reader
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import SPACES, GenotypeFile, Provenance
from nas.selection import ranking
from nas.selection.jobs import Job, RunAll, is_done, runner
from nas.selection.progress import jobs_view
from nas.selection.ranking import Cell


def run_searches(config: SearchConfig, scripts: Path) -> None:
    """Run or resume all searches and trainings, print the table, and export the best cell that a search found.

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
        run = create(path, config) if is_new else RunFolder.reopen(path, config)
        try:
            with run, Interrupts() as interrupts:
                search_and_choose(config, scripts, run, run_all, interrupts)
        except InputError:
            if is_new and not any(path.glob("*/config.json")):  # no job could be begun: as if nothing had been
                shutil.rmtree(path)
            raise


def create(path: Path, config: SearchConfig) -> RunFolder:
    """Return the folder of a new run, after reading its images.

    Raises:
        InputError: the name is taken, or the images or a cell of --candidates cannot be read.
    """
    for source in config.selection.candidates or ():
        read_candidate(source, config)
    data, options = config.data, config.run
    for name in (path.name, *(search_name(config, seed) for seed in seeds(config))):
        if (exported := Path("genotypes", f"{name}.json")).exists():
            raise InputError(f"--name {path.name}: {exported} exists already; choose another --name.")
    # Read once here, where that is possible: several at once would download the same files.
    images = datasets.load(
        data.dataset,
        Path(data.data_dir),
        "train",
        data.image_size,
        data.train_limit,
        options.seed,
        data.skip_bad_images,
        resize=data.resize,
        test_fraction=data.test_fraction,
    )
    run = RunFolder.create(path, config)
    candidate_files(config, path)  # now, as the searches may take days
    for note in images.notes:
        run.log(note)
    return run


def search_and_choose(
    config: SearchConfig, scripts: Path, run: RunFolder, run_all: RunAll, interrupts: Interrupts
) -> None:
    exported = Path("genotypes", f"{config.run.name}.json")
    if exported.exists() and GenotypeFile.load(exported).provenance.date != run.started:
        raise InputError(f"--resume {run.path}: {exported} belongs to another run; move it away.")
    run.write_config()
    for line in plan(config):
        run.log(line)
    run.log(f"{run.path}: tensorboard --logdir {shlex.quote(str(run.path))} shows all of them as they go")

    def run_jobs(jobs: Sequence[Job], what: str) -> None:
        try:
            with jobs_view(run.console, run.log, jobs) as look:

                def tick() -> None:
                    if interrupts.received is not None:
                        raise KeyboardInterrupt
                    look()

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

    run_jobs([search_job(config, scripts, run.path, seed) for seed in seeds(config)], "search")
    cells = distinct_cells(config, run.path)
    run_jobs([training_job(config, scripts, run.path, cell) for cell in cells], "training")

    candidates = ranking.candidates(
        [(cell, run.path / training_name(cell)) for cell in cells], balanced=config.data.balanced
    )
    for line in (*ranking.table(candidates), *ranking.verdict(candidates)):
        run.log(line)
    best = next(row for row in candidates if row.seeds or not config.selection.export_searched)
    found = GenotypeFile.load(next(cell.file for cell in cells if cell.genotype.to_text() == best.genotype))
    provenance = found.provenance.model_copy(update={"date": run.started, "candidates": tuple(candidates)})
    Genotype(**found.cells()).save(exported, provenance)
    rows = [candidate.model_dump() for candidate in candidates]
    files.write_json(run.path / "table.json", {"format_version": ranking.TABLE_VERSION, "cells": rows})
    names = ["table.json"]
    pages = {
        "report.html": [run.path / search_name(config, seed) for seed in seeds(config)],
        "retrained.html": [run.path / training_name(cell) for cell in cells],
    }
    for name, folders in pages.items():
        try:
            report.write(folders, run.path / name)
            names.append(name)
        except InputError as error:  # such as somebody else's page in that place: no reason not to finish
            run.log(f"no {name}: {error}")
    run.log(f"written: {exported} ({ranking.sources(best)}), and in {run.path}: {', '.join(names)}")
    how = f"--genotype {shlex.quote(str(exported))}{data_flags(config.data, config.run.seed, config.supernet.stem)}"
    run.log(f"train it in full: python train_final.py {how}")


def plan(config: SearchConfig) -> list[str]:
    """Return lines that say what will be done."""
    selection, (first, last) = config.selection, (seeds(config)[0], seeds(config)[-1])
    where = "one after another" if selection.ray is None else f"in parallel on Ray ({selection.ray})"
    which = f"seed {first}" if first == last else f"seeds {first} to {last}"
    drawn = f" and {count(selection.random_baseline, 'random cell')}" if selection.random_baseline else ""
    if selection.candidates:
        drawn += f" and {', '.join(printable(source, 40) for source in selection.candidates)}"
    return [
        f"{count(selection.searches, 'search')}, {which}, {where}",
        f"then each distinct cell{drawn} will be trained ({count(selection.selection_epochs, 'epoch')}, "
        f"{count(selection.selection_channels, 'channel')}, {count(selection.selection_cells, 'cell')}) on the images "
        f"from which the weights of seed {first} learn, and measured on those from which its alphas learn; the test "
        "set is not read",
    ]


def seeds(config: SearchConfig) -> range:
    """Return the seeds of the searches."""
    return range(config.run.seed, config.run.seed + config.selection.searches)


def search_name(config: SearchConfig, seed: int) -> str:
    """Return the name of a search's run folder, and of the genotype that it exports."""
    return f"{config.run.name}-seed{seed}"


def training_name(cell: Cell) -> str:
    """Return the name of the run folder of a cell's brief training."""
    return f"retrained-{cell.name}"


def search_job(config: SearchConfig, scripts: Path, path: Path, seed: int) -> Job:
    """Return the job that searches with one seed."""
    own = run_options(config, path, search_name(config, seed)) | {"seed": seed}
    alone = dataclasses.replace(config, selection=Selection(), run=SearchRun(**own))
    return job(scripts / "search.py", alone, search_epochs(config))


def training_job(config: SearchConfig, scripts: Path, path: Path, cell: Cell) -> Job:
    """Return the job that trains a cell briefly: as published, but for its size, its epochs and the held-out images."""
    selection = config.selection
    own = FinalConfig(
        data=config.data,
        network=Network(
            genotype=str(cell.file),
            init_channels=selection.selection_channels,
            num_cells=selection.selection_cells,
            stem=config.supernet.stem,
        ),
        training=Training(
            epochs=selection.selection_epochs, holdout_fraction=config.upper.upper_fraction, skip_test=True
        ),
        run=Run(**run_options(config, path, training_name(cell))),
    )
    return job(scripts / "train_final.py", own, selection.selection_epochs)


def run_options(config: SearchConfig, path: Path, name: str) -> dict:
    """Return the options of a job's run: those of all searches, and its own folder."""
    kept = ("seed", "device", "threads", "checkpoint_minutes", "max_bad_steps", "deterministic")
    return {option: getattr(config.run, option) for option in kept} | {"run_dir": str(path), "name": name}


def job(script: Path, config: SearchConfig | FinalConfig, epochs: int) -> Job:
    """Write the config file of a job beside its run folder, and return the job."""
    assert config.run.name is not None
    folder = Path(config.run.run_dir, config.run.name)
    content = ConfigFile(
        format_version=CONFIG_VERSION, config=dataclasses.asdict(config), environment=environment()
    ).model_dump(exclude_defaults=True)
    path = folder.with_name(f"{folder.name}.config.json")
    files.write_json(path, content)
    return Job(script.resolve(), folder, path, epochs, Path.cwd())


def read_candidate(source: str, config: SearchConfig) -> GenotypeFile:
    """Read a cell of --candidates.

    Raises:
        InputError: it cannot be read, or is of another search space.
    """
    try:
        file = reader.read(source).file
    except InputError as error:
        raise InputError(f"--candidates: {error}") from None
    space = Genotype(**file.cells()).space
    if space.name != config.supernet.space:
        raise InputError(
            f"--candidates {printable(source, 100)}: a cell of --space {space.name}, but this search is in "
            f"{config.supernet.space}."
        )
    return file


def candidate_files(config: SearchConfig, path: Path) -> dict[str, Path]:
    """Return the file of each cell of --candidates in the run folder, which is written where it is missing."""
    files_of = {}
    for number, source in enumerate(config.selection.candidates or ()):
        files_of[source] = file = path / f"candidate{number}.json"
        if not file.exists():
            given = read_candidate(source, config)
            Genotype(**given.cells()).save(file, given.provenance)
    return files_of


def distinct_cells(config: SearchConfig, path: Path) -> list[Cell]:
    """Return the cells of all searches, the random ones and the given ones, each once; write these two to files."""
    cells: dict[object, Cell] = {}
    for seed in seeds(config):
        file = path / search_name(config, seed) / "genotype.json"
        found = GenotypeFile.load(file)
        genotype = Genotype(**found.cells())
        cell = cells.setdefault(ranking.key(genotype), Cell(genotype, file))
        cell.seeds.append(seed)
        if found.provenance.supernet_accuracy is not None:
            cell.supernet_accuracies.append(found.provenance.supernet_accuracy)
    for seed in range(config.run.seed, config.run.seed + config.selection.random_baseline):
        file = path / f"random{seed}.json"
        genotype = Genotype.random(seed, config.supernet.num_nodes, SPACES[config.supernet.space])
        genotype.save(file, Provenance(method="random", seed=seed))
        cells.setdefault(ranking.key(genotype), Cell(genotype, file)).random_seeds.append(seed)
    for source, file in candidate_files(config, path).items():
        genotype = Genotype.load(file)
        cells.setdefault(ranking.key(genotype), Cell(genotype, file)).names.append(printable(source, 100))
    return list(cells.values())
