"""What the steps of both scripts share: device, learning rate, loss, guard, accuracy."""

import contextlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.config.values import Stem
from nas.data.augment import normalise
from nas.data.loader import Batch, Loader
from nas.distributed import SINGLE, World
from nas.errors import InputError
from nas.models.batch_norm import estimate_anew
from nas.training.accuracy import Measured, count_answers

SMALLEST_FOR_IMAGENET = 32  # 4 × 4 in the first cell, and a single pixel behind both reduction cells
LARGE_FOR_CIFAR = 96
NUM_REHEARSED = 4  # steps of a dry run


def pick_device(name: str, world: World = SINGLE) -> torch.device:
    """Return the device of --device; auto takes cuda, else mps, else cpu. Each process takes a GPU of its own.

    Raises:
        InputError: there is no such device here.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if world.size > 1:  # nothing in torch averages tensors of this kind
        available["mps"] = False
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        where = "for several processes" if name == "mps" and world.size > 1 else "here"
        raise InputError(f"--device {name}: torch has no such device {where}; use --device cpu.")
    rank = world.local_rank
    if name == "cuda" and rank >= torch.cuda.device_count():
        raise InputError(
            f"torchrun: process {rank} of this machine has no GPU of its own; start fewer, or use --device cpu."
        )
    return torch.device(name, rank) if name == "cuda" else torch.device(name)


def cosine(epoch: int, epochs: int, start: float, end: float) -> float:
    """Return the learning rate of an epoch, counted from 0 (Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5)."""
    return end + (start - end) * (1 + math.cos(math.pi * epoch / epochs)) / 2


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Return this process's share of the mean cross entropy of a batch."""
    return batch.weight * F.cross_entropy(logits, batch.classes)


def about_stem(stem: Stem, image_size: int) -> list[str]:
    """Return a line on the other stem, where the images are large for that of CIFAR.

    Raises:
        InputError: the images are too small for the stem of ImageNet.
    """
    if stem == "imagenet" and image_size < SMALLEST_FOR_IMAGENET:
        raise InputError(
            "--stem imagenet: it divides the sides of the images by eight, so it needs at least "
            f"{SMALLEST_FOR_IMAGENET} pixels per side; these images have {image_size}. Use --stem cifar."
        )
    if stem == "cifar" and image_size >= LARGE_FOR_CIFAR:
        side = math.ceil(image_size / 8)
        return [f"--stem imagenet takes such images to {side} × {side} before the first cell, and far less time"]
    return []


def average_step(world: World, network: nn.Module, loss: Tensor, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Average gradients and running statistics over the processes, in one call after the backward pass.

    Returns:
        Loss of the whole batch, and how many of its answers are correct.
    """
    loss, num_correct = loss.detach().clone(), (logits.argmax(1) == batch.classes).sum().to(loss.dtype)
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    world.average([loss, num_correct, *gradients, *statistics])
    return loss, (num_correct * world.size).round()


def start_states(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the state that its first step would make, so that it has one set of tensors from then on."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(optimizer, torch.optim.Adam):
                moments = {name: torch.zeros_like(parameter.detach()) for name in ("exp_avg", "exp_avg_sq")}
                optimizer.state[parameter] = {"step": torch.tensor(0.0)} | moments
            elif group.get("momentum", 0) > 0:
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
    """Return the median seconds of three steps; one before them is not timed, as it is slower.

    Args:
        take_step: to its end, so that no device is still at work.
        state: that a step moves.
        cause: the flag that is likely to have led to a step that is not finite.

    Raises:
        InputError: a step is not finite; the flag is named.
    """
    times = [time.monotonic()]
    try:
        for _ in range(NUM_REHEARSED):  # in all processes alike, as they wait for one another in each step
            with rollback_if_not_finite(state):
                take_step()
            times.append(time.monotonic())
    except FloatingPointError as error:
        raise InputError(f"{cause(error)}: too large for the first steps: {error}") from None
    return statistics.median(end - begin for begin, end in itertools.pairwise(times[1:]))


def estimate_statistics(
    network: nn.Module,
    of: nn.Module,
    loader: Loader,
    step: int,
    share: float,
    before_batch: Callable[[], None],
    *more: object,
) -> None:
    """Prepare a network for evaluation in the place of another one, with statistics of the weights as they are.

    A pass over a batch takes 0.05 to 0.11 of a step of the search and 0.28 to 0.37 of one of the final network, which
    times `share` is the part of an epoch that this takes.

    Args:
        network, of: as in `batch_norm.estimate_anew`; `of`, which learns, is left as it is.
        loader: of the training images; batches are drawn and augmented as there.
        step: of the run; together with the seed it says which batches.
        share: of the images of an epoch. 16 images per process are taken at least, and otherwise 2,048 at most.
        before_batch: called before each batch; to stop, it raises.
        more: what the network takes beside images.
    """
    few = 16 * loader.world.size
    wanted = max(few, min(2048, int(share * loader.num_images)))
    drawn = loader._replace(batch_size=min(loader.batch_size, wanted), purpose="statistics")

    def inputs() -> Iterator[tuple[object, ...]]:
        for number in range(wanted // drawn.batch_size):
            before_batch()
            yield drawn.batch(step + number).images, *more

    estimate_anew(network, of, inputs(), loader.world.average)


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor], loader: Loader, before_batch: Callable[[], None] = lambda: None
) -> Measured:
    """Return mean cross entropy and answers on images as they are, without augmentation, in batches of twice the size.

    The device is read at the end alone.

    Args:
        predict: from images to logits.
        before_batch: called before each batch; to stop, it raises.
    """
    split, world = loader.split, loader.world
    losses = [torch.zeros((), device=loader.device)]
    answers = [torch.zeros(0, dtype=torch.int64, device=loader.device)]
    targets = [split.targets[:0]]
    size = 2 * loader.batch_size
    for images, target in zip(split.images.split(size), split.targets.split(size), strict=True):
        before_batch()
        rows = world.rows(len(target))
        if rows.start == rows.stop:  # fewer images than processes
            continue
        logits = predict(normalise(images[rows], loader.mean, loader.std))
        classes = target[rows].to(logits.device)
        losses.append(F.cross_entropy(logits, classes, reduction="sum"))
        answers.append(logits.argmax(1))
        targets.append(target[rows])
    own_loss = torch.stack(losses).cpu().double().sum()
    own_counts = count_answers(torch.cat(targets), torch.cat(answers).cpu(), len(split.classes))
    means = world.mean([own_loss, *(counts.double() for counts in own_counts)])
    loss, *counts = (world.size * mean for mean in means)
    return Measured(float(loss) / len(split.targets), *(total.round().long() for total in counts))
