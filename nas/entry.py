"""How a script starts and ends: its config on every process, one sentence for each end, its exit code."""

import dataclasses
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nas.config.cli import begun_before, parse
from nas.config.file import Config, validate
from nas.config.flags import FinalConfig
from nas.distributed import connect
from nas.errors import InputError, Stopped, printable
from nas.machine.threads import release_cores

SENTENCE = 4000  # characters at most, none of which gives a terminal orders: files from elsewhere are quoted in it


def run_script(run: Any, kind: type[Config]) -> int:
    """Parse the command line, run, and turn a mistake of the user's into one sentence. Returns the exit code."""

    def parse_and_run() -> int:
        with connect() as world:
            text = world.from_main(lambda: json.dumps(dataclasses.asdict(_found_again(parse(kind, sys.argv[1:])))))
            try:
                run(validate(kind, json.loads(text)), world)
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
