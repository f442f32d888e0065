"""What a network answers on images that it did not learn from: per class, in words, and in a file of the run folder."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nas import files
from nas.errors import InputError, count, first_problem, printable

if TYPE_CHECKING:  # a report reads the file without torch
    from torch import Tensor

FILE, FILE_VERSION = "accuracy.json", 1
MAX_CONFUSION_CLASSES = 100  # a confusion matrix grows with their square
MAX_LINES, NUM_WORST = 20, 5


def count_answers(targets: "Tensor", answers: "Tensor", num_classes: int) -> "list[Tensor]":
    """What `Measured` holds beside the loss, of images' classes and answers, each (images,), int64, on the CPU."""
    num_images = targets.bincount(minlength=num_classes)
    num_correct = targets[answers == targets].bincount(minlength=num_classes)
    if num_classes > MAX_CONFUSION_CLASSES:
        return [num_images, num_correct]
    pairs = (targets * num_classes + answers).bincount(minlength=num_classes**2)
    return [num_images, num_correct, pairs.view(num_classes, num_classes)]


def in_words(loss: float) -> str:
    """A loss as it is printed."""
    return f"{loss:.3f}" if math.isfinite(loss) else "not finite"


def wilson_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """Return the ends of a 95 % interval of an accuracy that was measured on some images (Wilson, JASA 1927)."""
    z, share = 1.959964, num_correct / num_images
    middle, spread = share + z**2 / (2 * num_images), share * (1 - share) / num_images + z**2 / (4 * num_images**2)
    low, high = ((middle + sign * z * math.sqrt(spread)) / (1 + z**2 / num_images) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


class Measured(NamedTuple):
    """Loss and answers of a network on some images.

    Attributes:
        loss: mean cross entropy, nats.
        num_images: (classes,), int64, on the CPU: images of each class.
        num_correct: (classes,), int64: those that got the right answer.
        confusion: (classes, classes), int64: how often images of a row's class got a column's class as the answer; None
            for more than 100 classes.
    """

    loss: float
    num_images: "Tensor"
    num_correct: "Tensor"
    confusion: "Tensor | None" = None

    @property
    def accuracy(self) -> float:
        """Fraction of all images that got the right answer."""
        return int(self.num_correct.sum()) / int(self.num_images.sum())

    @property
    def recalls(self) -> "Tensor":
        """The accuracy of each class, (classes,), float64; not a number for a class without images."""
        return self.num_correct.double() / self.num_images

    @property
    def balanced_accuracy(self) -> float:
        """Mean of the accuracies of the classes that have images (Brodersen et al., ICPR 2010)."""
        return float(self.recalls.nanmean())

    @property
    def largest_class(self) -> int:
        """The class with the most images."""
        return int(self.num_images.argmax())

    @property
    def majority_accuracy(self) -> float:
        """The accuracy that always guessing the largest class would reach."""
        return int(self.num_images.max()) / int(self.num_images.sum())

    def scalars(self, name: str) -> dict[str, float]:
        """Loss and accuracies by the name that they are recorded by, such as test/accuracy."""
        accuracies = ("accuracy", "balanced_accuracy", "majority_accuracy")
        return {f"{name}/loss": self.loss} | {f"{name}/{what}": getattr(self, what) for what in accuracies}

    def lines(self, start: str, classes: tuple[str, ...]) -> list[str]:
        """All of it in words: the accuracy of each class, or of the five worst ones, and last a line of the whole.

        Args:
            start: begins the last line, such as "test accuracy after epoch 8:".
        """
        names = [f"'{printable(name, 60)}'" for name in classes]
        recalls = self.recalls.tolist()
        shown = [index for index in range(len(names)) if self.num_images[index]]
        title = "accuracy of each class:"
        if len(shown) > MAX_LINES:
            title = f"accuracy of the {NUM_WORST} worst of {len(shown)} classes:"
            shown = sorted(shown, key=recalls.__getitem__)[:NUM_WORST]
        width = max(len(names[index]) for index in shown)
        lines = [f"  {names[index]:<{width}} {recalls[index]:7.2%} of {self.num_images[index]:,}" for index in shown]
        largest = names[self.largest_class]
        if self.accuracy <= self.majority_accuracy < 1:
            lines.append(f"This network is no better than always guessing {largest}, the largest class.")
        return [
            title,
            *lines,
            f"{start} {self.accuracy:.2%} of {count(int(self.num_images.sum()), 'image')} (loss {in_words(self.loss)});"
            f" balanced accuracy {self.balanced_accuracy:.2%}; always guessing {largest}, the largest class, would "
            f"reach {self.majority_accuracy:.2%}",
        ]

    def save(self, folder: Path, measured_on: str, epoch: int) -> None:
        """Write `accuracy.json` into a run folder in one step."""
        content = {
            "format_version": FILE_VERSION,
            "measured_on": measured_on,
            "epoch": epoch,
            "num_images": self.num_images.tolist(),
            "num_correct": self.num_correct.tolist(),
            "confusion": None if self.confusion is None else self.confusion.tolist(),
        }
        files.write_json(folder / FILE, content)


_Counts = list[Annotated[int, Field(ge=0, lt=2**53)]]


class AccuracyFile(BaseModel):
    """What an `accuracy.json` holds: on which images a network was measured, after which epoch, and its answers."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format_version: Annotated[int, Field(ge=1, le=FILE_VERSION)]
    measured_on: Literal["test", "held-out"]
    epoch: Annotated[int, Field(ge=1, lt=2**53)]
    num_images: _Counts
    num_correct: _Counts
    confusion: list[_Counts] | None

    @classmethod
    def load(cls, path: Path, num_classes: int) -> "AccuracyFile":
        """Read the file of a network that tells `num_classes` classes apart.

        Raises:
            InputError: it cannot be read, is damaged, or its counts contradict each other; the file is named.
        """
        data = files.read_json(path, "accuracy", FILE_VERSION)
        try:
            file = cls.model_validate_json(data)
        except ValidationError as error:
            raise InputError(f"accuracy {path}: {first_problem(error)}") from None
        rows = file.confusion
        counts = list(zip(file.num_images, file.num_correct, strict=False))
        fits = len(file.num_images) == len(file.num_correct) == num_classes and sum(file.num_images) > 0
        fits = fits and all(correct <= images for images, correct in counts)
        if fits and rows is not None:
            fits = len(rows) == num_classes and all(len(row) == num_classes for row in rows)
            fits = fits and [(sum(row), row[index]) for index, row in enumerate(rows)] == counts
        if not fits:
            raise InputError(
                f"accuracy {path}: its counts contradict each other, or are not those of {num_classes} classes."
            )
        return file

    @property
    def measured(self) -> Measured:
        """The counts as tensors; their loss is among the records of the run, and not a number here."""
        import torch

        return Measured(math.nan, torch.tensor(self.num_images), torch.tensor(self.num_correct))
