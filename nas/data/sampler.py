"""Random draws that are functions of the seed and of what they are for: halves of a data set, and batches."""

import functools
import hashlib

import torch
from torch import Tensor


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by what it is for, such as ("augment", seed, epoch, step)."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def halves(num_images: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return two disjoint index sets, shuffled by the seed, which make up all; `fraction` of them is in the second."""
    order = torch.randperm(num_images, generator=generator("halves", seed))
    num_first = num_images - round(fraction * num_images)
    return order[:num_first], order[num_first:]


def num_batches(num_images: int, batch_size: int) -> int:
    """Return the number of batches per epoch; none is larger than `batch_size`."""
    return -(-num_images // batch_size)


def batch(num_images: int, batch_size: int, seed: int, purpose: str, step: int) -> Tensor:
    """Return the indices of one batch of an endless series: pass after pass over all images, each pass shuffled anew.

    Each image occurs once a pass. The batches of a pass differ in size by one at the most, so that the last one is not
    too small for a batch norm.

    Args:
        step: counted from the start of the series, over all passes.
        purpose: tells apart the series of one seed.
    """
    passes, index = divmod(step, num_batches(num_images, batch_size))
    order = torch.randperm(num_images, generator=generator("batch", purpose, seed, passes))
    return order.tensor_split(num_batches(num_images, batch_size))[index]


def balanced_batch(targets: Tensor, batch_size: int, seed: int, purpose: str, step: int) -> Tensor:
    """Return the indices of one batch of an endless series in which each class occurs as often as any other.

    The series is made of rounds, in each of which every class that there is gives one image, the classes shuffled anew.
    The images of a class follow one another pass after pass over them, each pass shuffled anew. Batches are as many and
    as large as those of `batch`, so that a round may go on in the next batch; the images of a class that has more than
    its share last for more than one pass over all.

    Args:
        targets: (num_images,), int64, of all images, on the CPU.
        step, purpose: as in `batch`.
    """
    passes, index = divmod(step, num_batches(len(targets), batch_size))
    parts = torch.arange(len(targets)).tensor_split(num_batches(len(targets), batch_size))
    members = [images for images in targets.argsort(stable=True).split(targets.bincount().tolist()) if len(images)]

    @functools.cache
    def shuffled(num: int, *key: int | str) -> Tensor:
        return torch.randperm(num, generator=generator("balanced", purpose, seed, *key))

    chosen = []
    for draw in (passes * len(targets) + parts[index]).tolist():
        turn, place = divmod(draw, len(members))
        group = int(shuffled(len(members), "round", turn)[place])
        pass_of_class, place = divmod(turn, len(members[group]))
        chosen.append(members[group][shuffled(len(members[group]), "class", group, pass_of_class)[place]])
    return torch.stack(chosen)
