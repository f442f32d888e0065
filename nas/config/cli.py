"""From command-line arguments to a validated config."""

import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from nas.config import foreign_flags
from nas.config.file import MAY_CHANGE, flag_of, read_config, validate
from nas.config.flags import Data, FinalConfig, Network, SearchConfig, SearchRun, SupernetSize, is_several
from nas.config.presets import PRESETS
from nas.config.values import Stem
from nas.errors import InputError, printable
from nas.search_space.genotype_file import SPACES
from nas.search_space.space import SearchSpace

RunConfig = TypeVar("RunConfig", SearchConfig, FinalConfig)

# What says how a run begins, and is no part of what it computes.
OF_THE_CALL = {"name", "run_dir", "resume", "config", "preset", "dry_run", "evaluate"}


def parse(kind: type[RunConfig], arguments: Sequence[str]) -> RunConfig:
    """Return the validated config of a command line.

    Flags that are not given come from --config, --preset, or the run of --resume or --evaluate.

    Raises:
        InputError: a flag belongs to another program, has a value out of range, or does not fit the run to be resumed;
            the flag is named.
        SystemExit: as `run_tyro`.
    """
    if advice := foreign_flags.advice(kind, arguments):
        raise InputError(advice)
    given = {argument[2:].partition("=")[0].replace("-", "_") for argument in arguments if argument.startswith("--")}
    config = run_tyro(kind, arguments, **_published(kind, arguments, given))
    if isinstance(config, FinalConfig) and config.network.evaluate is not None:
        return validate(kind, _config_to_evaluate(config, given))
    if config.run.resume is not None and (others := sorted(given & {"preset", "dry_run"})):
        raise InputError(f"{flag_of(others[0])}: cannot be combined with --resume, which keeps the flags of the run.")
    if config.run.config is not None:
        if "preset" in given:
            raise InputError("--preset: cannot be combined with --config; both set the flags that are not given.")
        config = run_tyro(kind, arguments, default=_config_of_file(kind, Path(config.run.config)))
        given = _fields(config) - OF_THE_CALL | {"resume"}
    if config.run.resume is not None:
        config = _resumed(config, given, Path(config.run.resume))
    return validate(kind, config)


def _published(kind: type[RunConfig], arguments: Sequence[str], given: set[str]) -> dict[str, SearchConfig]:
    """Return as the option `default` of `run_tyro` what --preset and --space say of the flags that are not given."""
    if kind is not SearchConfig or not given & {"preset", "space", "time_budget"} or given & {"config", "resume"}:
        return {}
    values: dict[str, str] = {
        "--preset": "robust" if "time_budget" in given else SearchRun.preset,
        "--space": SupernetSize.space,
    }
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = argument.partition("=")
        if flag in values:
            values[flag] = value if equals else following
    if values["--preset"] not in PRESETS or values["--space"] not in SPACES:
        return {}  # tyro says so
    default = with_sizes_of(PRESETS[values["--preset"]], values["--space"])
    return {"default": dataclasses.replace(default, run=SearchRun(preset=values["--preset"]))}


def with_sizes_of(config: SearchConfig, space: str) -> SearchConfig:
    """Return a preset for a search space: what it leaves at the defaults of DARTS becomes the default of the space."""
    published = SPACES[space]
    names = ("space", "init_channels", "num_cells", "num_nodes", "selection_channels", "selection_cells")
    values = (space, *published.supernet, published.num_nodes, *published.final_network, *published.final_network)
    sizes = dict(zip((*names, "final_channels", "final_cells"), values, strict=True))

    def sized(group: Any) -> Any:
        unset = {field.name for field in dataclasses.fields(group) if getattr(group, field.name) == field.default}
        return dataclasses.replace(group, **{name: size for name, size in sizes.items() if name in unset})

    return dataclasses.replace(config, supernet=sized(config.supernet), selection=sized(config.selection))


def with_size_of(config: FinalConfig, space: SearchSpace) -> FinalConfig:
    """Return a config whose network has the size that was published for the space, where no flag says another one.

    Raises:
        InputError: a flag is for an auxiliary head, which networks of this space do not have.
    """
    channels, num_cells = space.final_network
    network = config.network
    if not space.auxiliary_head and network.auxiliary_weight not in (0, Network.auxiliary_weight):
        raise InputError("--auxiliary-weight: networks of this cell's space have no auxiliary head; leave it out.")
    size = {"init_channels": network.init_channels or channels, "num_cells": network.num_cells or num_cells}
    return dataclasses.replace(config, network=dataclasses.replace(network, **size))


def run_tyro(kind: Any, arguments: Sequence[str], **options: Any) -> Any:
    """Return the instance of a dataclass, or of one of a union of them (one subcommand each), that arguments describe.

    Args:
        options: of `tyro.cli`, such as `prog` and `default`.

    Raises:
        InputError: an argument is not UTF-8, so that it could be neither printed nor kept in a file.
        SystemExit: with code 0, after --help was printed; with code 2, after tyro has printed which flag is wrong: an
            unknown flag or subcommand, a missing one, or a value of the wrong type.
    """
    for argument in arguments:
        if any("\ud800" <= letter <= "\udfff" for letter in argument):  # how Python holds bytes that are not UTF-8
            raise InputError(f"'{printable(argument, 100)}': not UTF-8; rename that file or folder.")
    omit = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)
    return tyro.cli(kind, args=list(arguments), config=omit, **options)


def config_to_resume(config: RunConfig, folder: Path) -> RunConfig:
    """Return the config with which to resume the run in a folder, given the config with which it began.

    Raises:
        InputError: the run began with another config; the first flag that differs is named.
    """
    return validate(type(config), _resumed(config, _fields(config) - OF_THE_CALL, folder))


def _fields(config: Any) -> set[str]:
    return {name for flags in dataclasses.asdict(config).values() for name in flags}


def _load(kind: type[RunConfig], flag: str, folder: Path) -> RunConfig:
    """Return the config in a config.json of the same script, which `flag` names."""
    file = read_config(folder)
    if (file.script == "search.py") != (kind is SearchConfig):
        path = shlex.quote(str(folder))
        advice = f"; use: python {file.script} --resume {path}" if flag == "--resume" else ", not to this script"
        raise InputError(f"{flag} {path}: belongs to {file.script}{advice}.")
    return validate(kind, file.config, folder if folder.is_file() else folder / "config.json")


def _config_of_file(kind: type[RunConfig], path: Path) -> Any:
    """Return the flags of another run, without its name."""
    config: Any = _load(kind, "--config", path)
    return dataclasses.replace(config, run=dataclasses.replace(config.run, name=None))


def _config_to_evaluate(config: FinalConfig, given: set[str]) -> FinalConfig:
    """Return the config of a trained network, to be measured again where its images lie now."""
    if others := sorted(given - {"evaluate", "data_dir", "test_fraction", "device", "threads"}):
        raise InputError(f"{flag_of(others[0])}: cannot be combined with --evaluate, which measures a trained network.")
    folder = str(config.network.evaluate)
    trained = _load(FinalConfig, "--evaluate", Path(folder))
    changed = {name: getattr(config.data, name) for name in ("data_dir", "test_fraction") if name in given}
    return dataclasses.replace(
        trained,
        data=dataclasses.replace(trained.data, **changed),
        network=dataclasses.replace(trained.network, genotype=None, evaluate=folder),
        training=dataclasses.replace(trained.training, skip_test=False),
        run=dataclasses.replace(trained.run, device=config.run.device, threads=config.run.threads),
    )


def _resumed(config: Any, given: set[str], folder: Path) -> Any:
    """Return the config of a run folder, with those of the given flags that may change."""
    began: Any = _load(type(config), "--resume", folder)
    if isinstance(began, SearchConfig) and "ray" not in given and ":" in (began.selection.ray or ""):
        raise InputError(
            f"--ray: missing; the run used the cluster {began.selection.ray}. Name that cluster again, because its "
            "answers are trusted; or give --ray alone for this machine."
        )
    # With more epochs the cells would no longer be those that were trained for the choice, or that were decided.
    fixed = isinstance(began, SearchConfig) and (is_several(began) or began.upper.derivation == "perturbation")
    may_change = {*MAY_CHANGE} - ({"epochs"} if fixed else set())
    groups = {}
    for group in dataclasses.fields(began):
        before, now = getattr(began, group.name), getattr(config, group.name)
        changed = {name: getattr(now, name) for name in given if hasattr(now, name)}
        for name, value in changed.items():
            old = getattr(before, name)
            if name == "epochs" and name in may_change and value < old:
                raise InputError(f"--epochs {value}: the run already has {old}; a resumed run cannot have fewer.")
            if name not in may_change and value != old:
                raise InputError(
                    f"{flag_of(name)} {value}: the run in {folder} has {old}, which cannot change; leave the flag out, "
                    "or start a new run."
                )
        groups[group.name] = dataclasses.replace(before, **changed)
    return dataclasses.replace(began, **groups)


def data_flags(data: Data, seed: int = 0, stem: Stem = "cifar") -> str:
    """Return the flags that give a run the same images and the same stem, each with a space before it.

    Args:
        seed: of the run; it determines the draw of --train-limit.
    """
    given = [flag.partition("=") for group in (data, SupernetSize(stem=stem)) for flag in _given(group)]
    if data.train_limit is not None and data.data_seed is None and seed != 0:
        given.append(("--seed", "=", str(seed)))
    return "".join(f" {flag} {shlex.quote(value)}" if equals else f" {flag}" for flag, equals, value in given)


def _given(group: Any) -> list[str]:
    """Return the flags of a group that differ from their defaults."""
    values = ((field, getattr(group, field.name)) for field in dataclasses.fields(group))
    return [
        flag_of(field.name) if value is True else f"{flag_of(field.name)}={value}"
        for field, value in values
        if value != field.default
    ]
