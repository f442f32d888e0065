"""What the loops of the two scripts share: device, learning rate, augmented batches, accuracy."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nas import datasets
from nas.augment import augment, channel_statistics, normalise
from nas.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device of --device; auto takes cuda, else mps, else cpu.

    Raises:
        InputError: there is no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise InputError(f"--device {name}: torch sees no such device here; use --device cpu.")
    return torch.device(name)


def cosine(epoch: int, epochs: int, start: float, end: float) -> float:
    """Learning rate of an epoch, counted from 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Images(NamedTuple):
    """Images on their device, and how they are turned into batches.

    Attributes:
        split: the images.
        mean, std: (channels,), of the training images' pixels in [0, 1]; on the device.
        flip: whether a mirrored image is of the same class.
        cutout: side of the square that is cut out, in pixels; 0 for none.
    """

    split: datasets.Split
    mean: Tensor
    std: Tensor
    flip: bool
    cutout: int = 0

    def batch(self, batch_size: int, seed: int, purpose: str, step: int) -> tuple[Tensor, Tensor]:
        """A batch of augmented images, float32, and their targets: a function of the arguments alone."""
        device = self.mean.device
        chosen = datasets.batch(len(self.split.targets), batch_size, seed, purpose, step).to(device)
        randomness = datasets.generator("augment", purpose, seed, step, device=str(device))
        images = augment(self.split.images[chosen], self.mean, self.std, randomness, self.flip, self.cutout)
        return images, self.split.targets[chosen]


def prepare(train: datasets.Split, dataset: str, device: torch.device, cutout: int = 0) -> Images:
    """Training images on a device, with their own statistics."""
    mean, std = channel_statistics(train.images)
    flip = dataset not in datasets.MIRRORED_IS_ANOTHER
    return Images(train.to(device), mean.to(device), std.to(device), flip, cutout)


@torch.no_grad()
def evaluate(predict: Callable[[Tensor], Tensor], images: Images, batch_size: int) -> tuple[float, float]:
    """Mean cross entropy and accuracy (a fraction) on images as they are, without augmentation.

    Args:
        predict: from images to logits.
    """
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    for batch, target in datasets.in_order(images.split, batch_size):
        logits = predict(normalise(batch, images.mean, images.std))
        loss = F.cross_entropy(logits, target, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(1) == target).sum()]).cpu()
    loss, accuracy = (sums / len(images.split.targets)).tolist()
    return loss, accuracy
