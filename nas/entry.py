"""How a script starts and ends: its config on every process, one sentence for each end, and its exit code."""

import dataclasses
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas.config.cli import RunConfig, config_to_resume, parse
from nas.config.file import from_json, to_json
from nas.config.flags import FinalConfig
from nas.errors import InputError, Stopped, printable

MAX_SENTENCE = 4000  # characters


def answer_early(kind: type[RunConfig]) -> None:
    """Answer --help, or a command line that is wrong, and exit; return if it is neither.

    A script calls it before it imports torch, which takes seconds. Of the processes of torchrun one answers --help, and
    `run_script` says what is wrong.
    """
    rank, asks_for_help = os.environ.get("RANK"), not {"--help", "-h"}.isdisjoint(sys.argv[1:])
    if asks_for_help and rank not in (None, "0"):
        sys.exit(0)
    if asks_for_help or rank is None:
        code = exit_code(lambda: 0 if parse(kind, sys.argv[1:]) else 1)
        if code:
            sys.exit(code)


def run_script(run: Any, kind: type[RunConfig]) -> int:
    """Parse the command line, call `run` with the config and the world, and return the exit code.

    The main process parses; the others take its config as it is.
    """

    def parse_and_run() -> int:
        from nas.distributed import connect
        from nas.machine.threads import release_cores

        with connect() as world:
            sent = world.from_main(lambda: to_json(adopt_existing_run(parse(kind, sys.argv[1:]))))
            try:
                run(from_json(kind, sent), world)
            finally:
                release_cores()
        return 0

    return exit_code(parse_and_run)


def adopt_existing_run(config: Any) -> Any:
    """Return the config; or, if torchrun has restarted its processes, that with which to resume their run.

    Raises:
        InputError: the config has no name by which to find the run, or the run of that name began with another config.
    """
    evaluates = isinstance(config, FinalConfig) and config.network.evaluate is not None
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) == 0:
        return config
    if config.run.resume is not None or config.run.dry_run or evaluates:
        return config
    if config.run.name is None:
        raise InputError("--name: missing; torchrun --max-restarts finds the run again by its name.")
    folder = Path(config.run.run_dir, config.run.name)
    if not (folder / "config.json").is_file():
        return config
    began = config_to_resume(config, folder)
    return dataclasses.replace(began, run=dataclasses.replace(began.run, resume=str(folder)))


def exit_code(run: Callable[[], int]) -> int:
    """Return the exit code of `run`, or of the exception that ends it early, after printing one sentence about it."""

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
        print(f"error: {printable(error, MAX_SENTENCE)}", file=sys.stderr)
        return 2
    except SystemExit as end:  # of --help, of tyro after it has said what is wrong, or of another process
        if not end.code:
            raise
        return int(end.code)
    except Stopped as stopped:
        print(f"stopped: {printable(stopped, MAX_SENTENCE)}", file=sys.stderr)
        return stopped.code
    except BrokenPipeError:  # whoever reads has seen enough, as `head` has
        return 141  # what shells report for a command that SIGPIPE ended
    except ConnectionError as error:  # of processes that compute together, before there is a run
        print(f"stopped: {error.strerror or error}.", file=sys.stderr)
        return 1
    except OSError as error:
        # Whoever writes another file names it.
        place = "standard output" if error.errno in (errno.ENOSPC, errno.EIO) else None
        where = "".join(f"{printable(name, 400)}: " for name in (error.filename or place,) if name)
        print(f"error: {where}{printable(error.strerror or error, 400)}.", file=sys.stderr)
        return 2
    except RuntimeError as error:
        torch: Any = sys.modules.get("torch")  # not imported here, as --help has no need of it
        if not ((torch and isinstance(error, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)):
            raise
        print(f"stopped: out of memory ({printable(error, 200)}); choose a smaller --batch-size.", file=sys.stderr)
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
