"""What the loops of the two scripts share: device, learning rate, augmented batches, accuracy."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.config.flags import Stem
from nas.data import datasets
from nas.data.augment import augment, channel_statistics, normalise
from nas.distributed import ALONE, Processes
from nas.errors import InputError, count, printable
from nas.models.batch_norm import estimate_anew
from nas.training.accuracy import Measured, count_answers

SMALLEST_FOR_IMAGENET = 32  # 4 × 4 in the first cell, and a single pixel behind both reduction cells
LARGE_FOR_CIFAR = 96


def pick_device(name: str, processes: Processes = ALONE) -> torch.device:
    """The device of --device; auto takes cuda, else mps, else cpu. Each process of a machine takes a GPU of its own.

    Raises:
        InputError: there is no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if processes.count > 1:  # nothing in torch averages tensors of this kind
        available["mps"] = False
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        where = "for several processes" if name == "mps" and processes.count > 1 else "here"
        raise InputError(f"--device {name}: torch has no such device {where}; use --device cpu.")
    rank = processes.local_rank
    if name == "cuda" and rank >= torch.cuda.device_count():
        raise InputError(
            f"torchrun: process {rank} of this machine has no GPU of its own; start fewer, or use --device cpu."
        )
    return torch.device(name, rank) if name == "cuda" else torch.device(name)


def cosine(epoch: int, epochs: int, start: float, end: float) -> float:
    """Learning rate of an epoch, counted from 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


class Target(NamedTuple):
    """What the images of a batch are.

    Attributes:
        classes: (images,), int64.
        weight: of their mean loss, so that its mean over the processes is that over the whole batch; 1 on one process.
        batch_size: images of the whole batch.
    """

    classes: Tensor
    weight: float
    batch_size: int


def cross_entropy(logits: Tensor, target: Target) -> Tensor:
    """This process's share of the mean cross entropy of a batch."""
    return target.weight * F.cross_entropy(logits, target.classes)


class Images(NamedTuple):
    """Images on their device, and how they are turned into batches.

    Attributes:
        split: the images.
        mean, std: (channels,), of the training images' pixels in [0, 1]; on the device.
        flip: whether a mirrored image is of the same class.
        cutout: side of the square that is cut out, in pixels; 0 for none.
        balanced: whether each class is drawn as often as any other.
        processes: that share each batch.
        crop_padding: pixels by which a crop is shifted at most; None for an eighth of the size.
    """

    split: datasets.Split
    mean: Tensor
    std: Tensor
    flip: bool
    cutout: int = 0
    balanced: bool = False
    processes: Processes = ALONE
    crop_padding: int | None = None

    def indices(self, batch_size: int, seed: int, purpose: str, step: int) -> Tensor:
        """Which images of the split the whole batch consists of, on the CPU."""
        if self.balanced:
            return datasets.balanced_batch(self.split.targets, batch_size, seed, purpose, step)
        return datasets.batch(len(self.split.targets), batch_size, seed, purpose, step)

    def batch(self, batch_size: int, seed: int, purpose: str, step: int) -> tuple[Tensor, Target]:
        """This process's part of a batch of augmented images, float32: a function of the arguments alone."""
        device = self.mean.device
        whole = self.indices(batch_size, seed, purpose, step)
        rows = self.processes.rows(len(whole))
        chosen = whole[rows]
        randomness = datasets.generator("augment", purpose, seed, step, device=str(device))
        images = self.split.images[chosen.to(device)]
        images = augment(
            images, self.mean, self.std, randomness, self.flip, self.cutout, len(whole), rows, self.crop_padding
        )
        return images, Target(self.split.targets[chosen].to(device), self.processes.weight(len(whole)), len(whole))


def prepare(
    train: datasets.Split,
    dataset: str,
    device: torch.device,
    cutout: int = 0,
    balanced: bool = False,
    processes: Processes = ALONE,
    no_flip: bool = False,
    crop_padding: int | None = None,
) -> Images:
    """Training images on a device, with their own statistics.

    Raises:
        InputError: the crops would be shifted by more than half of the images.
    """
    if crop_padding is not None and 2 * crop_padding > (size := train.images.shape[-1]):
        raise InputError(
            f"--crop-padding {crop_padding}: more than half of the images, which have {size} pixels a side."
        )
    mean, std = channel_statistics(train.images)
    flip = train.mirror and dataset not in datasets.MIRRORED_IS_ANOTHER and not no_flip
    return Images(train.to(device), mean.to(device), std.to(device), flip, cutout, balanced, processes, crop_padding)


def imbalance(images: Images) -> list[str]:
    """A line on the smallest and the largest class, where this one has more than 1.5 times as many images; or none."""
    counts = images.split.targets.bincount(minlength=len(images.split.classes)).tolist()
    smallest, largest = counts.index(min(counts)), counts.index(max(counts))
    if counts[largest] <= 1.5 * counts[smallest]:
        return []
    few, many = (
        f"{counts[target]:,} of '{printable(images.split.classes[target], 60)}'" for target in (smallest, largest)
    )
    drawn = "each class is drawn as often" if images.balanced else "--balanced draws each class as often"
    return [f"classes differ in size: {few}, {many}; {drawn}"]


def about_stem(stem: Stem, image_size: int) -> list[str]:
    """A line on the other stem, where the images are large for that of CIFAR; or none.

    Raises:
        InputError: the images are too small for the stem of ImageNet.
    """
    if stem == "imagenet" and image_size < SMALLEST_FOR_IMAGENET:
        raise InputError(
            f"--stem imagenet: divides the sides of the images by eight, and needs {SMALLEST_FOR_IMAGENET} pixels per "
            f"side at least; these images have {image_size}. Use --stem cifar."
        )
    if stem == "cifar" and image_size >= LARGE_FOR_CIFAR:
        side = math.ceil(image_size / 8)
        return [f"--stem imagenet takes such images to {side} × {side} before the first cell, and far less time"]
    return []


def require_images(needed: int, num_images: int, batch_size: int, processes: Processes) -> None:
    """Raise InputError where a batch of a pass over so many images has fewer than `needed`, in all processes."""
    smallest = num_images // datasets.num_batches(num_images, batch_size)
    if smallest < needed:
        shared = f", shared by {processes.count} processes: start fewer, or" if processes.count > 1 else ";"
        raise InputError(
            f"--batch-size {batch_size}: {count(num_images, 'image')} make batches of {smallest}, but {needed} at "
            f"least are needed{shared} take larger batches."
        )


def average_step(
    processes: Processes, network: nn.Module, loss: Tensor, logits: Tensor, target: Target
) -> tuple[Tensor, Tensor]:
    """Average over the processes what a backward pass leaves behind, in one call: gradients and running statistics.

    Returns:
        Loss of the whole batch, and how many of its answers are correct.
    """
    loss, num_correct = loss.detach().clone(), (logits.argmax(1) == target.classes).sum().to(loss.dtype)
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    processes.average([loss, num_correct, *gradients, *statistics])
    return loss, (num_correct * processes.count).round()


def start_states(optimizer: torch.optim.SGD | torch.optim.Adam) -> None:
    """Give an optimizer the state that its first step would make, so that it has one set of tensors from then on."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.Adam):
                moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.tensor(0.0)} | moments
            elif group["momentum"] > 0:
                # The same as none: 0 times the momentum, plus the gradient.
                optimizer.state[parameter] = {"momentum_buffer": torch.zeros_like(parameter.detach())}


@contextlib.contextmanager
def rollback_if_not_finite(state: Mapping[str, Tensor]) -> Iterator[None]:
    """Restore the tensors of `state`, bit for bit, if the body raises a FloatingPointError, and raise it again."""
    before = [tensor.clone() for tensor in state.values()]
    try:
        yield
    except FloatingPointError:
        for tensor, value in zip(state.values(), before, strict=True):
            tensor.copy_(value)
        raise


def scalars_to_host(scalars: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, float]:
    """Read the scalars of a step from their device, and check what the step has computed. It waits for the device once.

    Args:
        scalars: by name, each of shape (), all on one device.
        state: the tensors that the step has moved. Only those on the same device are checked: Adam counts its steps on
            the CPU.

    Raises:
        FloatingPointError: a scalar or a tensor is not finite, such as a running variance, which need not show in any
            loss; the message names it.
    """
    device = next(iter(scalars.values())).device
    floats = {name: part for name, part in state.items() if part.is_floating_point() and part.device == device}
    largest = torch.stack(torch._foreach_norm(list(floats.values()), torch.inf))
    *values, largest_of_all = torch.stack([*scalars.values(), largest.max()]).tolist()
    on_host = dict(zip(scalars, values, strict=True))
    for name, value in on_host.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}.")
    if not math.isfinite(largest_of_all):
        name = list(floats)[largest.isfinite().tolist().index(False)]
        raise FloatingPointError(f"{name} is not finite.")
    return on_host


def seconds_of_step(
    take_step: Callable[[], object], state: Mapping[str, Tensor], cause: Callable[[FloatingPointError], str]
) -> float:
    """How long a step takes; the first one is not timed, as it is slower than the others.

    Args:
        take_step: to its end, so that no device is still at work.
        state: that a step moves.
        cause: the flag that is likely to have led to a step that is not finite.

    Raises:
        InputError: a step is not finite; the flag is named.
    """
    began = 0.0
    try:
        for _ in range(2):
            began = time.monotonic()
            with rollback_if_not_finite(state):
                take_step()
    except FloatingPointError as error:
        raise InputError(f"{cause(error)}: too large for the first steps; {error}") from None
    return time.monotonic() - began


def too_many_bad_steps(num_steps: int, error: FloatingPointError, flag: str) -> str:
    """Why a run stops whose last `num_steps` steps were not finite."""
    several = f"{num_steps} steps in a row were not finite, the last one"
    which = "the last step was not finite," if num_steps == 1 else several
    return (
        f"{which} because {error} A new run with a smaller {flag} is "
        "the likely cure; the checkpoint of this one holds the last good state."
    )


def images_of_batch(part: Tensor, images: Images, batch_size: int, seed: int, purpose: str, step: int) -> str:
    """How many images a batch consists of, and the numbers of the first five in the training set.

    Args:
        part: (images,), int64, on the CPU: the numbers in the training set of `images.split`.
    """
    chosen = part[images.indices(batch_size, seed, purpose, step)].tolist()
    more = ", …" if len(chosen) > 5 else ""
    return f"{count(len(chosen), 'image')} ({', '.join(map(str, chosen[:5]))}{more})"


def estimate_statistics(
    network: nn.Module,
    of: nn.Module,
    images: Images,
    batch_size: int,
    seed: int,
    step: int,
    share: float,
    before_batch: Callable[[], None],
    *more: object,
) -> None:
    """Make a network ready to be evaluated in the place of another one, with statistics of the weights as they are.

    A pass over a batch takes 0.05 to 0.11 of a step of the search and 0.28 to 0.37 of one of the final network, which
    times `share` is the part of an epoch that this takes.

    Args:
        network, of: as in `batch_norm.estimate_anew`; `of`, which learns, is left as it is.
        images: of the training, drawn and augmented as there.
        step: of the run; together with the seed it says which batches.
        share: of the images of an epoch. 16 images per process are taken at least, and otherwise 2,048 at most.
        before_batch: called before each batch; to stop, it raises.
        more: what the network takes beside images.
    """
    few = 16 * images.processes.count
    wanted = max(few, min(2048, int(share * len(images.split.targets))))
    batch_size = min(batch_size, wanted)

    def inputs() -> Iterator[tuple[object, ...]]:
        for number in range(wanted // batch_size):
            before_batch()
            batch, _ = images.batch(batch_size, seed, "statistics", step + number)
            yield batch, *more

    estimate_anew(network, of, inputs(), images.processes.average)


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    images: Images,
    batch_size: int,
    before_batch: Callable[[], None] = lambda: None,
) -> Measured:
    """Mean cross entropy and answers on images as they are, without augmentation; the device is read at the end alone.

    Args:
        predict: from images to logits.
        before_batch: called before each batch; to stop, it raises.
    """
    split, processes = images.split, images.processes
    losses = [torch.zeros((), device=images.mean.device)]
    answers = [torch.zeros(0, dtype=torch.int64, device=images.mean.device)]
    targets = [split.targets[:0]]
    for batch, target in datasets.in_order(split, batch_size):
        before_batch()
        rows = processes.rows(len(target))
        if rows.start == rows.stop:  # fewer images than processes
            continue
        logits = predict(normalise(batch[rows], images.mean, images.std))
        classes = target[rows].to(logits.device)
        losses.append(F.cross_entropy(logits, classes, reduction="sum"))
        answers.append(logits.argmax(1))
        targets.append(target[rows])
    own_loss = torch.stack(losses).cpu().double().sum()
    own_counts = count_answers(torch.cat(targets), torch.cat(answers).cpu(), len(split.classes))
    means = processes.mean([own_loss, *(counts.double() for counts in own_counts)])
    loss, *counts = (processes.count * mean for mean in means)
    return Measured(float(loss) / len(split.targets), *(total.round().long() for total in counts))
