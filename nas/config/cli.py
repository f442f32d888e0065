"""From command-line arguments to a config, and from whatever ends a script to one sentence and an exit code."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tyro

from nas.config import foreign_flags
from nas.config.file import MAY_CHANGE, Config, flag_of, read_config, validate
from nas.config.flags import PRESETS, Data, FinalConfig, SearchConfig, Stem, SupernetSize, TrainedOn, is_several
from nas.errors import InputError


def parse(kind: type[Config], arguments: Sequence[str]) -> Config:
    """The config that command-line arguments stand for.

    What they leave alone comes from --config, --preset or the run of --resume or --evaluate.

    Raises:
        InputError: a flag of another program, a value out of range, or one that the run to be resumed does not go with;
            it names the flag.
        SystemExit: as `understand`.
    """
    if kind is not TrainedOn and (advice := foreign_flags.advice(kind, arguments)):
        raise InputError(advice)
    config = understand(kind, arguments)
    if isinstance(config, TrainedOn):
        return validate(kind, dataclasses.asdict(config))
    given = {argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    if isinstance(config, FinalConfig) and config.network.evaluate is not None:
        return validate(kind, dataclasses.asdict(_evaluated(config, given, Path(config.network.evaluate))))
    if config.run.resume is not None:
        alone = sorted(given & {"config", "preset", "dry_run"})
        if alone:
            raise InputError(f"{flag_of(alone[0])}: goes without --resume, with which the flags of the run hold.")
        return _resumed(kind, config, given, Path(config.run.resume))
    if config.run.config is not None:
        if "preset" in given:
            raise InputError("--preset: goes without --config; both say what the flags are that are not given.")
        config = understand(kind, arguments, default=_flags_of_run(kind, Path(config.run.config)))
    elif "preset" in given:
        config = understand(kind, arguments, default=PRESETS[config.run.preset])
    return validate(kind, dataclasses.asdict(config))


def understand(kind: Any, arguments: Sequence[str], **options: Any) -> Any:
    """The instance of a dataclass, or of one of a union of them (a subcommand each), that arguments stand for.

    Args:
        options: of `tyro.cli`, such as `prog` and `default`.

    Raises:
        SystemExit: with code 0, after --help was printed; with code 2, after tyro has printed which flag is wrong: an
            unknown flag or subcommand, a missing one, or a value of the wrong type.
    """
    omit = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(kind, args=list(arguments), config=omit, **options)


def _flags_of_run(kind: type[Config], path: Path) -> Any:
    """The flags of a run, without those that make it that run."""
    file = read_config(path)
    if (file.trained_on is None) != (kind is SearchConfig):
        raise InputError(f"--config {path}: of a run of the other script, {file.script}.")
    config: Any = validate(kind, file.config, path)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=None))


def _evaluated(config: FinalConfig, given: set[str], folder: Path) -> FinalConfig:
    """The config of a trained network, to be measured again where its images lie now."""
    validate(FinalConfig, dataclasses.asdict(config))
    others = sorted(given - {"evaluate", "data_dir", "device", "threads"})
    if others:
        raise InputError(f"{flag_of(others[0])}: goes without --evaluate, which measures what was trained.")
    file = read_config(folder)
    if file.trained_on is None:
        raise InputError(f"--evaluate {folder}: a run of search.py; give that of a trained network.")
    trained = validate(FinalConfig, file.config, folder / "config.json")
    data_dir = config.data.data_dir if "data_dir" in given else trained.data.data_dir
    return dataclasses.replace(
        trained,
        data=dataclasses.replace(trained.data, data_dir=data_dir),
        network=dataclasses.replace(trained.network, genotype=None, evaluate=str(folder)),
        training=dataclasses.replace(trained.training, skip_test=False),
        run=dataclasses.replace(trained.run, device=config.run.device, threads=config.run.threads),
    )


def _resumed(kind: type[Config], config: Any, given: set[str], folder: Path) -> Any:
    """The config of a run folder, with those of the given flags that may change."""
    file = read_config(folder)
    if (file.trained_on is None) != (kind is SearchConfig):
        raise InputError(
            f"--resume {folder}: a run of another script: python {file.script} --resume {shlex.quote(str(folder))}"
        )
    begun: Any = validate(kind, file.config, folder / "config.json")
    content = dataclasses.asdict(begun)
    if isinstance(begun, SearchConfig) and "ray" not in given and ":" in (begun.several.ray or ""):
        raise InputError(
            f"--ray: missing; the run was spread over {begun.several.ray}. Name that cluster again, as what it answers "
            "is trusted, or give --ray alone for this machine."
        )
    # Cells of more epochs would be others than those that were trained for the choice.
    may_change = {*MAY_CHANGE} - ({"epochs"} if kind is SearchConfig and is_several(begun) else set())
    for group, flags in dataclasses.asdict(config).items():
        for name in given & flags.keys():
            before, now = content[group][name], flags[name]
            if name == "epochs" and name in may_change and now < before:
                raise InputError(f"--epochs {now}: the run has {before} already; it may get more, not fewer.")
            if name not in may_change and now != before:
                raise InputError(
                    f"{flag_of(name)} {now}: the run in {folder} has {before}; another value would make another run; "
                    "leave the flag out, or begin a new run."
                )
            content[group][name] = now
    return validate(kind, content)


def begun_before(config: Any, folder: Path) -> Any:
    """The config with which the run in a folder goes on that was begun with this one.

    Raises:
        InputError: it was begun with another one; the first flag that differs is named.
    """
    of_the_call = {"name", "run_dir", "resume", "config", "preset", "dry_run", "evaluate"}
    given = {name for flags in dataclasses.asdict(config).values() for name in flags} - of_the_call
    return _resumed(type(config), config, given, folder)


def flags(config: SearchConfig | FinalConfig) -> tuple[str, ...]:
    """The flags that give a config to a script; what has its default is left out."""
    groups = (getattr(config, group.name) for group in dataclasses.fields(config))
    return tuple(flag for group in groups for flag in _given(group))


def data_flags(data: Data, seed: int = 0, stem: Stem = "cifar") -> str:
    """The flags with which a run has the same images again, and the same stem; each has a space before it.

    Args:
        seed: of the run; the draw of --train-limit follows from it.
    """
    given = [flag.partition("=") for flag in (*_given(data), *_given(SupernetSize(stem=stem)))]
    if data.train_limit is not None and seed != 0:
        given.append(("--seed", "=", str(seed)))
    return "".join(f" {flag} {shlex.quote(value)}" if equals else f" {flag}" for flag, equals, value in given)


def _given(group: Any) -> list[str]:
    """The flags of a group that are not left at their defaults."""
    values = ((field, getattr(group, field.name)) for field in dataclasses.fields(group))
    return [
        flag_of(field.name) if value is True else f"{flag_of(field.name)}={value}"
        for field, value in values
        if value != field.default
    ]
