"""Batches of augmented images: each is a function of the seed, the purpose and the step alone."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nas.config.flags import Data, FinalConfig, TrainedOn
from nas.data import datasets
from nas.data.augment import augment, channel_statistics
from nas.data.datasets import NO_FLIP, Split
from nas.data.sampler import balanced_batch, batch, generator, num_batches
from nas.distributed import SINGLE, World
from nas.errors import InputError, count, printable


class Batch(NamedTuple):
    """This process's part of a batch.

    Attributes:
        images: (rows, channels, size, size), float32, augmented, on the device.
        classes: (rows,), int64, on the device.
        indices: (batch size,), int64, on the CPU: the numbers in the training set of all images of the batch.
        rows: which rows of the whole batch these images are.
        weight: of the mean loss over these images, so that its mean over the processes is that over the whole batch; 1
            on one process.
        purpose, step: what the batch was drawn for.
    """

    images: Tensor
    classes: Tensor
    indices: Tensor
    rows: slice = slice(None)
    weight: float = 1.0
    purpose: str = ""
    step: int = 0

    @classmethod
    def whole(cls, images: Tensor, classes: Tensor) -> "Batch":
        """Return a batch of images that one process computes alone."""
        return cls(images, classes, torch.arange(len(images)))

    @property
    def size(self) -> int:
        """Number of images of the whole batch."""
        return len(self.indices)

    def describe(self) -> str:
        """Return a phrase with the number of images, and the numbers of the first five in the training set."""
        first, more = ", ".join(map(str, self.indices[:5].tolist())), ", …" if self.size > 5 else ""
        return f"{self.purpose} batch: {count(self.size, 'image')} ({first}{more})"


class Loader(NamedTuple):
    """Images on their device, and how they are turned into batches.

    Attributes:
        split: the images.
        numbers: (images,), int64, on the CPU: their numbers in the training set.
        mean, std: (channels,), of the training images' pixels in [0, 1]; on the device.
        batch_size: number of images of a batch, at most.
        seed: of all draws.
        purpose: tells apart the series of batches of one seed.
        flip: whether a mirrored image is of the same class.
        cutout: side of the square that is cut out, in pixels; 0 for none.
        balanced: whether each class is drawn as often as any other.
        world: the processes that share each batch.
        crop_padding: pixels by which a crop is shifted at most; None for an eighth of the size.
    """

    split: Split
    numbers: Tensor
    mean: Tensor
    std: Tensor
    batch_size: int
    seed: int = 0
    purpose: str = ""
    flip: bool = False
    cutout: int = 0
    balanced: bool = False
    world: World = SINGLE
    crop_padding: int | None = None

    @property
    def num_images(self) -> int:
        """Number of images of the split."""
        return len(self.split.targets)

    @property
    def num_batches(self) -> int:
        """Number of batches of an epoch."""
        return num_batches(self.num_images, self.batch_size)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels and side of an image, and number of classes."""
        _, in_channels, image_size, _ = self.split.images.shape
        return in_channels, image_size, len(self.split.classes)

    @property
    def device(self) -> torch.device:
        """The device of the images."""
        return self.mean.device

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of a step, which is counted over all epochs."""
        if self.balanced:
            whole = balanced_batch(self.split.targets, self.batch_size, self.seed, self.purpose, step)
        else:
            whole = batch(self.num_images, self.batch_size, self.seed, self.purpose, step)
        rows = self.world.rows(len(whole))
        chosen = whole[rows]
        draws = generator("augment", self.purpose, self.seed, step, device=str(self.device))
        images = augment(
            self.split.images[chosen.to(self.device)],
            self.mean,
            self.std,
            draws,
            self.flip,
            self.cutout,
            len(whole),
            rows,
            self.crop_padding,
        )
        classes = self.split.targets[chosen].to(self.device)
        weight = self.world.weight(len(whole))
        return Batch(images, classes, self.numbers[whole], rows, weight, self.purpose, step)

    def part(self, indices: Tensor, purpose: str) -> "Loader":
        """Return a loader of some of the images, given their places in this one, with batches of its own."""
        return self._replace(split=self.split.select(indices), numbers=self.numbers[indices], purpose=purpose)

    def imbalance(self) -> list[str]:
        """Return a line on the smallest and the largest class, where this has more than 1.5 times as many images."""
        counts = self.split.targets.bincount(minlength=len(self.split.classes)).tolist()
        smallest, largest = counts.index(min(counts)), counts.index(max(counts))
        if counts[largest] <= 1.5 * counts[smallest]:
            return []
        few, many = (
            f"{counts[target]:,} of '{printable(self.split.classes[target], 60)}'" for target in (smallest, largest)
        )
        drawn = "each class is drawn as often" if self.balanced else "--balanced draws each class as often"
        return [f"classes differ in size: {few}, {many}; {drawn}"]


def load_training_split(data: Data, seed: int) -> Split:
    """Read the training images of a run; the test images are not read.

    Raises:
        InputError: as `datasets.load`.
    """
    return datasets.load(
        data.dataset,
        Path(data.data_dir),
        "train",
        data.image_size,
        data.train_limit,
        seed,
        data.skip_bad_images,
        resize=data.resize,
        test_fraction=data.test_fraction,
    )


def load_test_split(
    data: Data, classes: tuple[str, ...], shape: tuple[int, ...], resize: str | None = None, bits: int | None = None
) -> Split:
    """Read the test images of a run.

    Args:
        classes, shape, bits: of the training images; the shape is (channels, rows, columns).
        resize: how the training images became squares; as `data` says by default.

    Raises:
        InputError: the images cannot be read, or are of another kind than the training images.
    """
    test = datasets.load(
        data.dataset,
        Path(data.data_dir),
        "test",
        data.image_size,
        skip_bad=data.skip_bad_images,
        classes=classes,
        resize=resize or data.resize,
        test_fraction=data.test_fraction,
        bits=bits,
    )
    if test.classes != classes:
        other = sorted(set(test.classes) ^ set(classes)) or ["their order"]
        raise InputError(
            f"--data-dir {data.data_dir}: training and test images differ in their classes "
            f"({printable(', '.join(other[:5]), 300)}); give both the same ones, or train_final.py --skip-test "
            "--holdout-fraction 0.1."
        )
    if test.images.shape[1:] != shape:
        raise InputError(
            f"--data-dir {data.data_dir}: test images are {' × '.join(map(str, test.images.shape[1:]))} (channels, "
            f"rows, columns), training images {' × '.join(map(str, shape))}; bring them to one shape."
        )
    return test


def load_test_images(config: FinalConfig, trained_on: TrainedOn, device: torch.device, world: World = SINGLE) -> Loader:
    """Load the test set, normalised as the training images were.

    Raises:
        InputError: the images cannot be read, or are of another kind than the training images.
    """
    shape = trained_on.in_channels, trained_on.image_size, trained_on.image_size
    test = load_test_split(config.data, trained_on.classes, shape, trained_on.resize, trained_on.bits)
    mean, std = (torch.tensor(values, device=device) for values in (trained_on.mean, trained_on.std))
    return Loader(test.to(device), torch.arange(len(test.targets)), mean, std, config.training.batch_size, world=world)


def training_loader(
    train: Split,
    data: Data,
    device: torch.device,
    batch_size: int,
    seed: int,
    cutout: int = 0,
    world: World = SINGLE,
) -> Loader:
    """Return a loader of training images, normalised by their own statistics.

    Raises:
        InputError: the crops would be shifted by more than half of the images.
    """
    if data.crop_padding is not None and 2 * data.crop_padding > (size := train.images.shape[-1]):
        raise InputError(
            f"--crop-padding {data.crop_padding}: more than half of the images, which have {size} pixels a side."
        )
    mean, std = channel_statistics(train.images)
    return Loader(
        train.to(device),
        torch.arange(len(train.targets)),
        mean.to(device),
        std.to(device),
        batch_size,
        seed,
        flip=train.mirror and data.dataset not in NO_FLIP and not data.no_flip,
        cutout=cutout,
        balanced=data.balanced,
        world=world,
        crop_padding=data.crop_padding,
    )


def require_images(needed: int, num_images: int, batch_size: int, world: World) -> None:
    """Check the smallest batch of a pass over this many images.

    Raises:
        InputError: it has fewer than `needed` images, in all processes together.
    """
    smallest = num_images // num_batches(num_images, batch_size)
    if smallest < needed:
        shared = f", shared by {world.size} processes: start fewer, or" if world.size > 1 else ";"
        raise InputError(
            f"--batch-size {batch_size}: {count(num_images, 'image')} make batches of {smallest}, but {needed} at "
            f"least are needed{shared} take larger batches."
        )
