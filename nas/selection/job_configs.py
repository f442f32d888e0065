"""The jobs of several searches: one config file for each search, each brief training, and the final training."""

import dataclasses
from pathlib import Path
from typing import Any

from nas import files
from nas.config.file import CONFIG_VERSION, ConfigFile, search_epochs
from nas.config.flags import (
    Data,
    FinalConfig,
    Network,
    Run,
    SearchConfig,
    SearchRun,
    Selection,
    Training,
    data_seed,
    selection_fraction,
)
from nas.machine.environment import environment
from nas.report.overview import FINAL
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import SPACES
from nas.selection.cells import Cell, search_name
from nas.selection.jobs import Job

FEWEST_WITH_CUTOUT = 100  # epochs


def search_job(config: SearchConfig, scripts: Path, path: Path, seed: int) -> Job:
    """Return the job that searches with one seed; it leaves out the images on which the cells will be compared."""
    own = run_options(config, path, search_name(config, seed)) | {"seed": seed}
    fraction = selection_fraction(config)
    alone = dataclasses.replace(
        config,
        data=_same_images(config) if fraction else config.data,
        selection=Selection(selection_fraction=fraction or None),
        run=SearchRun(**own),
    )
    return _job(scripts / "search.py", alone, search_epochs(config))


def training_names(config: SearchConfig, cell: Cell) -> list[str]:
    """Return the names of the run folders of a cell's brief trainings, one for each seed."""
    further = (f"-{number}" for number in range(1, config.selection.selection_seeds))
    return [f"retrained-{cell.name}{end}" for end in ("", *further)]


def training_jobs(config: SearchConfig, scripts: Path, path: Path, cell: Cell, epochs: int) -> list[Job]:
    """Return the jobs that train a cell briefly: as published, but for its size, its epochs and the held-out images."""
    selection = config.selection
    network = Network(
        genotype=str(cell.file),
        init_channels=selection.selection_channels,
        num_cells=selection.selection_cells,
        stem=config.supernet.stem,
    )
    held_out = selection_fraction(config) or config.upper.upper_fraction
    training = Training(epochs=epochs, holdout_fraction=held_out, skip_test=True)
    network, training = _suited(config, network, training, selection.selection_epochs)
    jobs = []
    for number, name in enumerate(training_names(config, cell)):
        options = run_options(config, path, name) | {"seed": config.run.seed + number}
        own = FinalConfig(data=_same_images(config), network=network, training=training, run=Run(**options))
        jobs.append(_job(scripts / "train_final.py", own, epochs))
    return jobs


def final_job(config: SearchConfig, scripts: Path, path: Path, genotype: Path, epochs: int | None = None) -> Job:
    """Return the job that trains the network of the exported cell in full, and measures it on the test set.

    Args:
        epochs: how many there are; None for --final-epochs.
    """
    selection = config.selection
    network = Network(
        genotype=str(genotype),
        init_channels=selection.final_channels,
        num_cells=selection.final_cells,
        stem=config.supernet.stem,
    )
    options = Run(**run_options(config, path, FINAL))
    training = Training(epochs=epochs or selection.final_epochs)
    network, training = _suited(config, network, training, selection.final_epochs)
    return _job(scripts / "train_final.py", FinalConfig(config.data, network, training, options), training.epochs)


def _suited(config: SearchConfig, network: Network, training: Training, epochs: int) -> tuple[Network, Training]:
    """Return how a network is trained: as published for 600 epochs; with --time-budget, as suits fewer of them.

    In few epochs cutout and drop path hide more than a network can learn (docs/results.md, A short training).
    """
    if config.selection.time_budget is None:
        return network, training
    drop_path = Network.drop_path * min(1.0, epochs / Training.epochs)
    cutout = 0 if epochs < FEWEST_WITH_CUTOUT else Training.cutout
    return (
        dataclasses.replace(network, drop_path=drop_path),
        dataclasses.replace(training, batch_size=min(training.batch_size, config.lower.batch_size), cutout=cutout),
    )


def dry_run_of(config: SearchConfig, scripts: Path, path: Path, stage: str, size: tuple[int, int]) -> Job:
    """Return the job that says how quick a stage of --time-budget is at a size, channels and cells.

    Args:
        path: an empty folder for its files.
        stage: search, choice or final.
    """
    channels, num_cells = size
    if stage == "search":
        supernet = dataclasses.replace(config.supernet, init_channels=channels, num_cells=num_cells)
        lower = dataclasses.replace(config.lower, epochs=config.upper.alpha_warmup + 1)
        config = dataclasses.replace(config, supernet=supernet, lower=lower)
        job = search_job(config, scripts, path, config.run.seed)
    else:
        file = path / "random.json"
        cell = Cell(Genotype.random(config.run.seed, config.supernet.num_nodes, SPACES[config.supernet.space]), file)
        cell.genotype.save(file)
        kind = {"choice": "selection", "final": "final"}[stage]
        own: dict[str, Any] = {
            f"{kind}_channels": channels,
            f"{kind}_cells": num_cells,
            "selection_seeds": 1,
            "final_epochs": 1,
        }
        config = dataclasses.replace(config, selection=dataclasses.replace(config.selection, **own))
        final = stage == "final"
        job = final_job(config, scripts, path, file) if final else training_jobs(config, scripts, path, cell, 1)[0]
    return dataclasses.replace(job, dry_run=True)


def run_options(config: SearchConfig, path: Path, name: str) -> dict:
    """Return the options of a job's run: those of all searches, and its own folder."""
    kept = ("seed", "device", "threads", "checkpoint_minutes", "max_bad_steps", "deterministic")
    return {option: getattr(config.run, option) for option in kept} | {"run_dir": str(path), "name": name}


def _same_images(config: SearchConfig) -> Data:
    """Return the data set of all jobs, which draw and hold out the same images whatever their seeds."""
    return dataclasses.replace(config.data, data_seed=data_seed(config))


def _job(script: Path, config: SearchConfig | FinalConfig, epochs: int) -> Job:
    """Write the config file of a job beside its run folder, and return the job."""
    assert config.run.name is not None
    folder = Path(config.run.run_dir, config.run.name)
    content = ConfigFile(
        format_version=CONFIG_VERSION, config=dataclasses.asdict(config), environment=environment()
    ).model_dump(exclude_defaults=True)
    path = folder.with_name(f"{folder.name}.config.json")
    files.write_json(path, content)
    return Job(script.resolve(), folder, path, epochs, Path.cwd())
