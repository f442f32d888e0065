"""From command-line arguments to a config, and from whatever ends a script to one sentence and an exit code."""

import dataclasses
import errno
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import tyro

from nas import foreign_flags
from nas.config import PRESETS, Data, FinalConfig, SearchConfig, Stem, SupernetSize, TrainedOn, is_several
from nas.config_file import MAY_CHANGE, Config, flag_of, read_config, validate
from nas.errors import InputError, Stopped, printable
from nas.processes import together
from nas.threads import release_cores

SENTENCE = 4000  # characters at most, none of which gives a terminal orders: files from elsewhere are quoted in it


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


def run_script(run: Any, kind: type[Config]) -> int:
    """Parse the command line, run, and turn a mistake of the user's into one sentence. Returns the exit code."""

    def parse_and_run() -> int:
        with together() as processes:
            config = None
            with processes.agreed():
                if processes.first:
                    config = _found_again(parse(kind, sys.argv[1:]))
            text = processes.text_of_first("" if config is None else json.dumps(dataclasses.asdict(config)))
            try:
                run(validate(kind, json.loads(text)), processes)
            finally:
                release_cores()
        return 0

    return exit_code(parse_and_run)


def _found_again(config: Any) -> Any:
    """The config, or that of the run which it has begun, where torchrun may have started its processes again.

    Raises:
        InputError: there is no name by which it could be found, or the run that has it was begun with another config.
    """
    evaluates = isinstance(config, FinalConfig) and config.network.evaluate is not None
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return config
    if config.run.resume is not None or config.run.dry_run or evaluates:
        return config
    if config.run.name is None:
        raise InputError("--name: missing; torchrun --max-restarts needs it, so that the run is found again.")
    folder = Path(config.run.run_dir, config.run.name)
    if not (folder / "config.json").is_file():
        return config
    begun = begun_before(config, folder)
    return dataclasses.replace(begun, run=dataclasses.replace(begun.run, resume=str(folder)))


def exit_code(run: Callable[[], int]) -> int:
    """The exit code that `run` returns, or that of what ends it early, after one sentence on that."""

    def terminate(*_: object) -> None:
        raise Stopped("by SIGTERM.", 143)

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without × is no reason to stop
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        try:
            return run()
        finally:
            _flush_output()
    except InputError as error:
        print(f"error: {printable(error, SENTENCE)}", file=sys.stderr)
        return 2
    except SystemExit as end:  # of --help, of tyro after it has said what is wrong, or of another process
        if not end.code:
            raise
        return int(end.code)
    except Stopped as stopped:
        print(f"stopped: {printable(stopped, SENTENCE)}", file=sys.stderr)
        return stopped.code
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        return 141  # what shells say of a command that SIGPIPE ended
    except ConnectionError as error:  # of processes that compute together, before there is a run
        print(f"stopped: {error.strerror or error}.", file=sys.stderr)
        return 1
    except OSError as error:
        # Every other file is named, or was said to have failed by whoever writes it.
        place = "standard output" if error.errno in (errno.ENOSPC, errno.EIO) else None
        where = "".join(f"{printable(name, 400)}: " for name in (error.filename or place,) if name)
        print(f"error: {where}{printable(error.strerror or error, 400)}.", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        print(f"stopped: out of memory ({printable(error, 200)}); take a smaller --batch-size.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: by Ctrl-C.", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _flush_output() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still flushes at its exit
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"standard output: {error.strerror}.") from None


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
