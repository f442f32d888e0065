"""A run as one page of HTML that needs neither server nor network: python -m nas.report RUN_DIR..."""

import base64
import hashlib
import json
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from nas import files
from nas.config.cli import run_tyro
from nas.entry import exit_code
from nas.errors import InputError
from nas.report.run_data import read_run
from nas.search_space.darts import DARTS

ASSETS = Path(__file__).parent / "assets"
# In this order.
SCRIPTS = ("parts.js", "charts.js", "cells.js", "answers.js", "search_page.js", "compare_page.js", "report.js")
MARKER = "<!-- nas.report -->\n"  # only a file that begins with it is replaced


def write(folders: Sequence[Path], output: Path) -> None:
    """Write the page on one run, or one that compares several.

    Args:
        output: replaced in one step; a file that is no report is refused.

    Raises:
        InputError: a folder holds nothing to report, or `output` is no report; see `report_data.read_run`.
        OSError: it cannot be written.
    """
    refuse_others(output)
    runs = [read_run(folder) for folder in folders]
    if len({run["kind"] for run in runs}) > 1:
        raise InputError("runs of search.py and of train_final.py: compare either the ones or the others.")
    if len(runs) > 1:  # what a comparison does not show
        runs = [{name: value for name, value in run.items() if name != "edge_weights"} for run in runs]
    page = render(runs)
    files.replace(output, lambda aside: aside.write_text(page, encoding="utf-8", newline="\n"))


def refuse_others(output: Path) -> None:
    """Raise InputError where `output` is there and no report."""
    if not (output.exists() or output.is_symlink()):
        return
    if output.is_file() and not output.is_symlink():
        with output.open("rb") as file:
            if file.read(len(MARKER)) == MARKER.encode():
                return
    raise InputError(f"{output}: exists and is no report of nas; move it away, or choose another --output.")


def render(runs: Sequence[dict[str, Any]]) -> str:
    """The page; what the runs hold stands in it as data alone, and the script makes text of it."""
    styles = [_asset("uPlot.min.css"), _asset("report.css")]
    scripts = [_asset("uPlot.iife.min.js"), "".join(map(_asset, SCRIPTS))]
    data = {"runs": runs, "primitives": DARTS.primitives, "published": json.loads(_asset("published.json"))}
    return string.Template(MARKER + _asset("report.html")).substitute(
        policy=f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {' '.join(map(_hash, styles))}; script-src {' '.join(map(_hash, scripts))}",
        styles="".join(f"<style>{style}</style>\n" for style in styles),
        scripts="".join(f"<script>{script}</script>\n" for script in scripts),
        data=inert_json(data),
    )


def inert_json(data: Any) -> str:
    """ASCII in which nothing can end a script element or begin another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"


@dataclass(frozen=True)
class Arguments:
    """Write one page of HTML on a run, or one that compares several.

    The page is one file, which needs no server and loads nothing.

    For example:
      python -m nas.report runs/mine
    """

    run_dirs: Annotated[
        tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR...", help_behavior_hint="")
    ]
    """Run folders, one at least: all of search.py, or all of train_final.py. (required)"""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """File to write; another report is replaced. (default: report.html in RUN_DIR, or here where there are several)"""


def main(arguments: Sequence[str]) -> int:
    """Write a report as the command line says. Returns the exit code."""

    def run() -> int:
        given = run_tyro(Arguments, arguments, prog="python -m nas.report")
        folders = [Path(folder) for folder in given.run_dirs]
        if not folders:
            raise InputError("RUN_DIR: missing; name one run folder at least.")
        output = Path(given.output or (folders[0] if len(folders) == 1 else Path()) / "report.html")
        try:
            write(folders, output)
        except OSError as error:
            raise InputError(f"{output}: cannot be written ({error.strerror}).") from None
        print(f"written: {output}")
        return 0

    return exit_code(run)
