"""Writes a run as one HTML page that needs no server and no network."""

import base64
import hashlib
import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nas import files
from nas.errors import InputError
from nas.report.run_data import read_run
from nas.search_space.genotype_file import SPACES
from nas.search_space.space import SearchSpace

ASSETS = Path(__file__).parent / "assets"
# The page runs them in this order.
SCRIPTS = (
    *("parts.js", "charts.js", "cells.js", "answers.js"),
    *("search_page.js", "compare_page.js", "overview_page.js", "report.js"),
)
QUANTILES = {"best cell": 1.0, "95 % of all cells": 0.95, "median": 0.5, "5 % of all cells": 0.05}
MARKER = "<!-- nas.report -->\n"  # only files that begin with it are replaced


def write(folders: Sequence[Path], output: Path) -> None:
    """Write a page about one run, or a page that compares several runs.

    Args:
        output: file to write, replaced in one step; a file that is not a report is refused.

    Raises:
        InputError: a folder holds nothing to report (see `run_data.read_run`), or `output` is not a report.
        OSError: `output` cannot be written.
    """
    refuse_others(output)
    runs = [read_run(folder) for folder in folders]
    if len({run["kind"] for run in runs}) > 1:
        raise InputError("The runs come from search.py and from train_final.py; compare runs of one script only.")
    if len({run["space"] for run in runs}) > 1:
        raise InputError("The runs are of different search spaces; compare runs of one space only.")
    if len(runs) > 1:  # a comparison does not show them
        runs = [{name: value for name, value in run.items() if name != "edge_weights"} for run in runs]
    save(output, render(runs))


def save(output: Path, text: str) -> None:
    """Write a page, or another file for people, in one step."""
    files.replace(output, lambda aside: aside.write_text(text, encoding="utf-8", newline="\n"))


def refuse_others(output: Path, marker: str = MARKER, what: str = "report") -> None:
    """Raise InputError if `output` exists and does not begin with a marker, so that it is none of our own."""
    if not (output.exists() or output.is_symlink()):
        return
    if output.is_file() and not output.is_symlink():
        with output.open("rb") as file:
            if file.read(len(marker)) == marker.encode():
                return
    raise InputError(f"{output}: exists and is not a {what} of nas; move it, or choose another --output.")


def render(runs: Sequence[dict[str, Any]], overview: dict[str, Any] | None = None) -> str:
    """Return the page. It holds the runs as data, which its script shows as text only.

    Args:
        overview: what `nas.report.overview` shows around these runs, which are its searches.
    """
    styles = [_asset("uPlot.min.css"), _asset("report.css")]
    scripts = [_asset("uPlot.iife.min.js"), "".join(map(_asset, SCRIPTS))]
    space = SPACES[runs[0]["space"]]
    published = json.loads(_asset("published.json")).get(space.name, [])
    data = {"runs": runs, "space": describe(space), "published": published, "overview": overview}
    return string.Template(MARKER + _asset("report.html")).substitute(
        policy=f"default-src 'none'; img-src data:; base-uri 'none'; form-action 'none'; "
        f"style-src {' '.join(map(_hash, styles))}; script-src {' '.join(map(_hash, scripts))}",
        styles="".join(f"<style>{style}</style>\n" for style in styles),
        scripts="".join(f"<script>{script}</script>\n" for script in scripts),
        data=inert_json(data),
    )


def describe(space: SearchSpace) -> dict[str, Any]:
    """Return what a page needs to know of a search space."""
    quantiles = zip(QUANTILES, space.quantiles(tuple(QUANTILES.values())), strict=False)
    return {
        "name": space.name,
        "primitives": space.primitives,
        "num_inputs": space.num_inputs,
        "edges_kept": space.edges_kept,
        "cells": list(zip(space.cells, space.titles, strict=True)),
        "truth": space.truth_names,
        "final_network": space.final_network_in_words,
        "quantiles": [[name, round(accuracy, 5)] for name, accuracy in quantiles],
    }


def inert_json(data: Any) -> str:
    """Return JSON in ASCII in which nothing can end a script element or start another."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}'"
