"""What a trained network sees in images: python -m nas.predict RUN_DIR IMAGE... (see --help)."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nas.config.cli import run_tyro
from nas.entry import exit_code
from nas.errors import InputError

MOST_CLASSES = 3  # named for each image
BATCH_SIZE = 64


@dataclass(frozen=True)
class Predict:
    """Say which classes a trained network sees in images, and how probable they are.

    For example:
      python -m nas.predict runs/mine-final photo.jpg
    """

    run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Run folder of train_final.py."""
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]", help_behavior_hint="(required)"),
    ]
    """Image files. Each becomes a square in the way that the training images did."""


def predict(run_dir: str | os.PathLike, images: Sequence[str]) -> list[dict[str, float]]:
    """Return the probability of each class for each image, the most probable first.

    Raises:
        InputError: there is no such run, or an image cannot be read; it is named.
    """
    import torch

    from nas.data.augment import normalise
    from nas.data.image_folder import read_images
    from nas.models.final_network import FinalNetwork

    network = FinalNetwork.from_run(run_dir)
    about = network.trained_on
    assert about is not None
    mean, std = torch.tensor(about.mean), torch.tensor(about.std)
    found = []
    for first in range(0, len(images), BATCH_SIZE):
        paths = [Path(image) for image in images[first : first + BATCH_SIZE]]
        squares = read_images(paths, about.image_size, about.resize, about.bits)
        if about.in_channels == 1:  # as Pillow makes an image grey (ITU-R 601-2)
            weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
            squares = (squares * weights).sum(1, keepdim=True).round().to(torch.uint8)
        with torch.no_grad():
            probabilities = network(normalise(squares, mean, std))[0].softmax(-1)
        for row in probabilities.tolist():
            ranked = sorted(zip(about.classes, row, strict=True), key=lambda pair: -pair[1])
            found.append(dict(ranked))
    return found


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""

    def run() -> int:
        options = run_tyro(Predict, arguments, prog="python -m nas.predict")
        if not options.images:
            raise InputError("IMAGE: missing; give one image file or more.")
        for image, probabilities in zip(options.images, predict(options.run_dir, options.images), strict=True):
            likely = list(probabilities.items())[:MOST_CLASSES]
            print(f"{image}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in likely))
        return 0

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
