"""How a step of the search grows with channels, cells and batch: python -m benchmarks.growth

One of the three varies at a time. Prints a table, in Markdown, and writes docs/growth.svg. Wants a quiet machine, 12 GB
and half an hour. The last result is docs/speed.md.
"""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.search_step import compare

AXES = {"init_channels": (8, 16, 32), "num_cells": (5, 8, 14), "batch_size": (16, 32, 64, 128)}
BASE = {"init_channels": 8, "num_cells": 5, "batch_size": 32}
FORMS = {"textbook": "#b0413e", "product": "#2f6f9f"}
QUANTITIES = {"median_s": ("seconds a step", 1.0), "peak_bytes": ("GB at the peak of a step", 1e9)}
NUM_STEPS = 2


def along(axis: str, results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results in which only `axis` differs from the base, in rising order."""
    kept = [row for row in results if all(row[name] == BASE[name] for name in AXES if name != axis)]
    return sorted(kept, key=lambda row: row[axis])


def exponent(axis: str, form: str, quantity: str, results: list[dict[str, Any]]) -> float:
    """b of quantity = a · size^b, by least squares of the logarithms."""
    rows = along(axis, results)
    sizes, figures = [row[axis] for row in rows], [row["forms"][form][quantity] for row in rows]
    return float(np.polyfit(np.log(sizes), np.log(figures), 1)[0])


def table(results: list[dict[str, Any]]) -> str:
    lines = [
        "| channels | cells | batch | textbook, s | product, s | ratio | textbook, GB | product, GB | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        textbook, product = row["forms"]["textbook"], row["forms"]["product"]
        lines.append(
            f"| {row['init_channels']} | {row['num_cells']} | {row['batch_size']} "
            f"| {textbook['median_s']:.2f} | {product['median_s']:.2f} | {product['ratio']:.2f} "
            f"| {textbook['peak_bytes'] / 1e9:.2f} | {product['peak_bytes'] / 1e9:.2f} | {product['peak_ratio']:.2f} |"
        )
    lines += ["", "| exponent of | textbook, s | product, s | textbook, GB | product, GB |", "|---|---|---|---|---|"]
    for axis in AXES:
        figures = [exponent(axis, form, quantity, results) for quantity in QUANTITIES for form in FORMS]
        lines.append(f"| {axis.replace('_', ' ')} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |")
    return "\n".join(lines)


def figure(results: list[dict[str, Any]], path: Path) -> None:
    """Quantities against sizes, both logarithmic, so that an exponent is a slope."""
    # Letters stay text, and the file is the same for the same results.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nas", "font.family": "sans-serif"})
    sheet = Figure(figsize=(9, 5.2), layout="constrained")
    panels = sheet.subplots(len(QUANTITIES), len(AXES), sharex="col", sharey="row")
    for (quantity, (label, unit)), panel_row in zip(QUANTITIES.items(), panels, strict=True):
        for axis, panel in zip(AXES, panel_row, strict=True):
            rows = along(axis, results)
            for form, colour in FORMS.items():
                figures = [row["forms"][form][quantity] / unit for row in rows]
                slope = exponent(axis, form, quantity, results)
                panel.plot(AXES[axis], figures, "o-", color=colour, label=f"{form}, exponent {slope:.2f}")
            panel.set(xscale="log", yscale="log")
            panel.set_xticks(AXES[axis], [str(size) for size in AXES[axis]], minor=False)
            panel.set_xticks([], minor=True)
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter("{x:g}")
            panel.yaxis.set_minor_formatter("")
            panel.grid(which="both", color="#dddddd", linewidth=0.6)
            panel.legend(fontsize=8, frameon=False)
            panel.spines[["top", "right"]].set_visible(False)
        panel_row[0].set_ylabel(label)
    for axis, panel in zip(AXES, panels[-1], strict=True):
        fixed = ", ".join(f"{name.replace('_', ' ')} {size}" for name, size in BASE.items() if name != axis)
        panel.set_xlabel(f"{axis.replace('_', ' ')}\n({fixed})")
    sheet.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    sizes = [BASE | {axis: size} for axis, all_sizes in AXES.items() for size in all_sizes]
    results: list[dict[str, Any]] = []
    for size in dict.fromkeys(tuple(size.values()) for size in sizes):
        results.append(compare(size, NUM_STEPS, torch.device("cpu")))
        print(json.dumps(results[-1]), flush=True)
    print(f"\n{table(results)}")
    figure(results, Path("docs", "growth.svg"))
