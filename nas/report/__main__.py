"""Writes a report of a run, or of several runs: python -m nas.report RUN_DIR..."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nas.config.cli import run_tyro
from nas.entry import exit_code
from nas.errors import InputError
from nas.report import overview, page


@dataclass(frozen=True)
class Arguments:
    """Write an HTML page about one run, or a page that compares several runs.

    The page is one file. It needs no server and loads nothing.

    For example:
      python -m nas.report runs/mine
    """

    run_dirs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR...", help_behavior_hint="")
    ]
    """Run folders, at least one: all from search.py, or all from train_final.py. Or the one folder of several searches
    with a final training, for a page on everything. (required)"""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """File to write; a report that is there is replaced. (default: report.html in RUN_DIR, or here for several runs;
    overview.html for several searches with a final training)"""


def main(arguments: Sequence[str]) -> int:
    """Write a report as the command line says and return the exit code."""

    def run() -> int:
        given = run_tyro(Arguments, arguments, prog="python -m nas.report")
        folders = [Path(folder) for folder in given.run_dirs]
        if not folders:
            raise InputError("RUN_DIR: missing; give at least one run folder.")
        is_whole = len(folders) == 1 and overview.has_final_training(folders[0])
        name = overview.FILE if is_whole else "report.html"
        output = Path(given.output or (folders[0] if len(folders) == 1 else Path()) / name)
        try:
            overview.write(folders[0], output) if is_whole else page.write(folders, output)
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror}).") from None
        print(f"written: {output}")
        return 0

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
