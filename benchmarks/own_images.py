"""From a folder of images to a network, in a given time: the whole path against cells that are trained for as long.

    python -m benchmarks.own_images --budget 10m --threads 1

Three sets of images are made from what the packages ship: the digits of scikit-learn, tiles of its two photographs,
and letters, 26 classes, drawn by Pillow with turns, shifts and noise. On each, `search.py --time-budget` goes the whole
way; then the networks of DARTS_V2 and of a random cell, of the size that the path chose, are trained in the same way,
for as many epochs as the path's network would have had in the whole of the time. Each line of
benchmarks/own_images.json is one set: test accuracies, and the minutes planned and used. What stands there is not
repeated, and a run that was stopped goes on.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from nas.report.run_data import read_run
from nas.search_space.genotype import Genotype
from nas.selection.budget import Plan
from nas.selection.progress import seconds_of_epochs

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).with_suffix(".json")
RANDOM = Path("runs", "random-1.json")
LETTERS, OF_EACH, SIDE = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", 100, 24


def make_tiles(folder: Path) -> None:
    """Cut the photographs of scikit-learn into tiles of 32 × 32, one class for each photograph."""
    from sklearn.datasets import load_sample_images

    for name, photograph in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for index in range(13 * 20):
            row, column = divmod(index, 20)
            tile = photograph[32 * row : 32 * row + 32, 32 * column : 32 * column + 32]
            save(Image.fromarray(tile), folder, index, name)


def make_letters(folder: Path) -> None:
    """Draw letters with random turns, shifts, sizes and colours, and noise over all of it."""
    draw, noise = random.Random(0), np.random.default_rng(0)
    for letter in LETTERS:
        for index in range(OF_EACH):
            background, ink = (tuple(draw.randrange(low, low + 128) for _ in "RGB") for low in draw.sample((0, 128), 2))
            image = Image.new("RGB", (2 * SIDE, 2 * SIDE), background)
            where = SIDE + draw.randrange(-6, 7), SIDE + draw.randrange(-6, 7)
            font = ImageFont.load_default(draw.randrange(18, 34))
            ImageDraw.Draw(image).text(where, letter, ink, font, anchor="mm")
            image = image.rotate(draw.uniform(-35, 35), Image.Resampling.BILINEAR, fillcolor=background)
            pixels = np.asarray(image.resize((SIDE, SIDE))) + noise.normal(0, 40, (SIDE, SIDE, 3))
            save(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)), folder, index, letter)


def save(image: Image.Image, folder: Path, index: int, name: str) -> None:
    """Write an image into the folder of its class; every fifth one is a test image."""
    place = folder / ("train" if index % 5 else "test") / name
    place.mkdir(parents=True, exist_ok=True)
    image.save(place / f"{index:03}.png")


SETS = {
    "digits": (["--dataset=digits"], None),
    "tiles": (["--dataset=folder", "--data-dir=tiles"], make_tiles),
    "letters": (["--dataset=folder", "--data-dir=letters", f"--image-size={SIDE}", "--no-flip"], make_letters),
}


def run(script: str, *flags: str) -> None:
    """Run a script to its end."""
    done = subprocess.run([sys.executable, str(ROOT / script), *flags], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{script} {' '.join(flags)}: {done.stderr}")


def begin_or_resume(script: str, name: str, *flags: str) -> Path:
    """Run a script with a run folder of this name, and return the folder."""
    folder = Path("runs", name)
    run(script, *([f"--resume={folder}"] if folder.exists() else [*flags, f"--name={name}"]))
    return folder


def measure(name: str, budget: str, threads: int) -> dict[str, float]:
    """Return the test accuracies of the path and of two cells that were trained for as long."""
    data, make = SETS[name]
    if make is not None and not Path(name).exists():
        make(Path(name))
    own = [*data, f"--threads={threads}"]
    path = begin_or_resume("search.py", f"{name}-{budget}", *own, f"--time-budget={budget}", "--train-final")
    final, plan = read_run(path / "final"), Plan.load(path)
    found = {
        "path": final["test"]["accuracy"],
        "images": sum(final["answers"]["num_images"]),
        "planned_minutes": round(plan.budget_s / 60, 2),
        "used_minutes": round(plan.used_s / 60, 2),
    }
    as_final = [f"--config={path / 'final' / 'config.json'}", "--run-dir=runs"]
    epochs = max(1, int(plan.budget_s / statistics.median(seconds_of_epochs(path / "final"))))
    for cell in ("DARTS_V2", "random-1"):
        flags = [*as_final, f"--genotype={cell if cell == 'DARTS_V2' else RANDOM}", f"--epochs={epochs}"]
        trained = read_run(begin_or_resume("train_final.py", f"{name}-{budget}-{cell}", *flags))
        found |= {cell: trained["test"]["accuracy"], f"minutes of {cell}": round(trained["time_s"] / 60, 2)}
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """Return one line for each set."""
    lines = ["set and budget | test images | the path | DARTS_V2 | a random cell | minutes planned, used"]
    for name, row in sorted(results.items()):
        accuracies = " | ".join(f"{row[kind]:.2%}" for kind in ("path", "DARTS_V2", "random-1"))
        lines.append(f"{name} | {row['images']} | {accuracies} | {row['planned_minutes']:g}, {row['used_minutes']:g}")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--budget", default="10m", help="as in --time-budget")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    Path("runs").mkdir(exist_ok=True)
    Genotype.random(1).save(RANDOM)
    for name in arguments.sets:
        results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        if (key := f"{name}, {arguments.budget}") not in results:
            found = measure(name, arguments.budget, arguments.threads)
            results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(results | {key: found}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(table(json.loads(RESULTS.read_text(encoding="utf-8"))))
