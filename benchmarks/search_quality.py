r"""How good the cells are that searches find in a space whose truth is known.

    python -m benchmarks.search_quality images --presets robust --hypergradient=first-order --epochs=4 \
        --init-channels=8 --num-cells=3
    python -m benchmarks.search_quality images --presets darts drnas sdarts-rs beta-darts \
        --hypergradient=first-order --epochs=3 --alpha-lr=0.001
    python -m benchmarks.search_quality images --presets gaea --hypergradient=first-order --epochs=3 \
        --device=cuda --processes 13

`images` is a folder of CIFAR-10 as image files, train/CLASS/*.jpg. Further flags are those of search.py. Each search
has 25,000 images of 16 × 16 for each level, one cell per stage where no flag says more, and one thread. What stands in
`runs/` goes on where it stopped, and benchmarks/search_quality.json keeps the truth about the cell of each epoch: its
rank among the 15,625 cells of NAS-Bench-201, and its test accuracy on CIFAR-10 after a full training. At the end the
table of all searches is printed, and docs/search-quality-light.svg and -dark.svg are drawn of it.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nas.config.presets import PRESETS

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_suffix(".json")
FLAGS = ["--space=nas-bench-201", "--dataset=folder", "--image-size=16", "--num-cells=1", "--threads=1"]
MEAN_OF_RANDOM_CELLS = 0.8706
DEEPER = "--num-cells=3"
TITLES = {False: "16 channels, one cell per stage", True: "8 channels, three cells per stage"}
LEVELS = {313: "best 2 % of all cells", 7813: "their median"}
COLOURS = {False: "#3f7fbf", True: "#c0504d"}
COLUMNS = 4

# The ranks of each epoch, by method (preset and further flags) and by seed.
Results = dict[str, dict[str, list[dict[str, Any]]]]


def run_name(preset: str, seed: int, more: list[str]) -> str:
    """Return the name of a run: preset, flags with their words cut to a letter each, and seed."""
    flags = (flag.strip("-").partition("=") for flag in more)
    short = ("".join(word[0] for word in name.split("-")) + value for name, _, value in flags)
    return "-".join([preset, *short, f"seed{seed}"])


def search(images: str, preset: str, seed: int, more: list[str]) -> None:
    """Run a search to its end, or go on with it, and keep what it found."""
    name = run_name(preset, seed, more)
    begin = [f"--preset={preset}", *FLAGS, f"--data-dir={images}", f"--seed={seed}", f"--name={name}", *more]
    arguments = [f"--resume=runs/{name}"] if Path("runs", name).exists() else begin
    with Path("runs", f"{name}.out").open("a", encoding="utf-8") as output:
        done = subprocess.run([sys.executable, str(ROOT / "search.py"), *arguments], stdout=output, stderr=output)
    if done.returncode:
        sys.exit(f"{name} ended with exit code {done.returncode}; see runs/{name}.out")


def epochs_of(name: str) -> list[dict[str, Any]]:
    """Return rank, accuracy and minutes of each epoch of a run."""
    lines = map(json.loads, Path("runs", name, "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [
        {
            "rank": round(line["truth/rank"]),
            "accuracy": line["truth/cifar-10_test_accuracy"],
            "minutes": round(line["speed/epoch_s"] / 60, 2),
        }
        for line in lines
        if "truth/rank" in line
    ]


def table(results: Results) -> str:
    """Return one line for each method: ranks of its seeds, mean accuracy, how many are worse than a random cell."""
    lines = []
    for method, runs in results.items():
        last = [epochs[-1] for epochs in runs.values()]
        accuracies = [100 * epoch["accuracy"] for epoch in last]
        spread = f" ± {statistics.stdev(accuracies):.2f}" if len(runs) > 1 else ""
        worse = sum(epoch["accuracy"] < MEAN_OF_RANDOM_CELLS for epoch in last)
        minutes = statistics.mean(sum(epoch["minutes"] for epoch in epochs) for epochs in runs.values())
        lines.append(
            f"{method}: {statistics.mean(accuracies):.2f}{spread} %; {worse} of {len(runs)} below the mean of random "
            f"cells; {minutes:.0f} minutes per search"
        )
        for seed, epochs in runs.items():
            lines.append(f"    seed {seed}, rank by epoch: " + " ".join(str(epoch["rank"]) for epoch in epochs))
    return "\n".join(lines)


def in_words(method: str) -> str:
    """Return a method as its curves name it, such as "robust, 4 epochs, alpha lr 0.003"; first order goes unsaid."""
    preset, *flags = re.sub(
        r" --(hypergradient=first-order|init-channels|num-cells|batch|lower|device|alpha-warmup)\S*", "", method
    ).split()
    words = [flag.strip("-").replace("-", " ").replace("=", " ") for flag in flags]
    words = ["second order" if word == "hypergradient onestage" else word for word in words]
    return ", ".join([preset, *(re.sub(r"^epochs (\d+)$", r"\1 epochs", word) for word in words)])


def figure(results: Results, path: Path, ink: str) -> None:
    """Draw rank against epoch: a panel for each method, a line for each search.

    Args:
        ink: colour of the letters.
    """
    # Letters stay text, and the file is the same for the same results.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "nas", "font.family": "sans-serif"})
    matplotlib.rcParams.update(dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), ink))
    panels: dict[tuple[bool, str], list[list[int]]] = {}
    for method, runs in results.items():  # the same method may have run on several devices
        ranks = [[epoch["rank"] for epoch in epochs] for epochs in runs.values()]
        panels.setdefault((DEEPER in method, in_words(method)), []).extend(ranks)
    sheet = Figure(figsize=(8, 1.5 * math.ceil(len(panels) / COLUMNS) + 0.6), layout="constrained")
    places = sheet.subplots(math.ceil(len(panels) / COLUMNS), COLUMNS, sharey=True).flat
    for ((is_deeper, words), searches), place in zip(sorted(panels.items()), places, strict=False):
        for ranks in searches:
            place.plot(range(1, 1 + len(ranks)), ranks, "o-", color=COLOURS[is_deeper], markersize=2.5, linewidth=1.1)
        for rank in LEVELS:
            place.axhline(rank, color=ink, linewidth=0.6, linestyle=":")
        place.set_title(words.replace(", ", "\n", 1), fontsize=7.5, color=ink)
        place.set(yscale="log", ylim=(20_000, 0.8))
        place.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True, min_n_ticks=1))
        place.yaxis.set_major_formatter("{x:,.0f}")
        place.tick_params(labelsize=7)
        place.spines[["top", "right"]].set_visible(False)
        place.spines[["left", "bottom"]].set_color(ink)
    for place in places:  # those that are left
        place.set_axis_off()
    sheet.supxlabel("epoch", fontsize=9)
    sheet.supylabel("true rank of the derived cell, of 15,625", fontsize=9)
    lines = [Line2D([], [], color=COLOURS[is_deeper], label=title) for is_deeper, title in TITLES.items()]
    lines.append(Line2D([], [], color=ink, linewidth=0.6, linestyle=":", label=" and ".join(LEVELS.values())))
    sheet.legend(handles=lines, loc="outside upper center", ncols=3, fontsize=8, frameon=False)
    sheet.savefig(path, metadata={"Date": None}, transparent=True)


def stored() -> Results:
    """Return what was found so far."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], epilog="Other flags are those of search.py.")
    parser.add_argument("images", nargs="?", help="folder of images; without it the table of what was kept is printed")
    parser.add_argument("--presets", nargs="+", default=["darts", "robust"], choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--processes", type=int, default=2, help="searches side by side")
    arguments, more = parser.parse_known_args()
    if arguments.images:
        Path("runs").mkdir(exist_ok=True)
        pairs = [(preset, seed) for seed in arguments.seeds for preset in arguments.presets]
        with ThreadPoolExecutor(arguments.processes) as pool:
            searches = [(*pair, pool.submit(search, arguments.images, *pair, more)) for pair in pairs]
            for preset, seed, running in searches:
                running.result()
                results = stored()  # read again: another process may have written
                results.setdefault(" ".join([preset, *more]), {})[str(seed)] = epochs_of(run_name(preset, seed, more))
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(table(stored()))
    for ink, theme in {"#24292f": "light", "#d0d7de": "dark"}.items():
        figure(stored(), ROOT / "docs" / f"search-quality-{theme}.svg", ink)
