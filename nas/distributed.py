"""Processes that take every step together, as torchrun starts them: plain `torch.distributed`.

Each computes a part of every batch. What is averaged is the same on all of them, so that they hold the same weights,
bit for bit. The main process alone writes files.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeVar

import torch
import torch.distributed
from torch import Tensor

from nas.errors import InputError, Stopped, printable

LOCAL = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
Result = TypeVar("Result")
LONGEST_WAIT = timedelta(minutes=10)  # of one process for another: a machine that lost its power says nothing
LOADING_WAIT = timedelta(minutes=60)  # while it downloads a data set, or decodes a folder of images


@dataclass(frozen=True)
class World:
    """This process among those that compute together; a single one by default.

    All processes call each method, in the same order. A method raises `ConnectionError` where another process is gone.
    In a single process none of them does anything.

    Attributes:
        rank: of this process, from 0.
        size: number of all processes.
        local_rank, local_size: the same among those on this machine.
        loading_group: the group in which they wait while images are loaded; None for the usual one.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    loading_group: torch.distributed.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict) -> Self:
        """Return itself: a network whose batch norms gather from all processes may be copied, and a group may not."""
        return self

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def rows(self, num_images: int) -> slice:
        """Return which rows of a batch this process computes; parts differ in size by one at most."""
        few, more = divmod(num_images, self.size)
        begin = self.rank * few + min(self.rank, more)
        return slice(begin, begin + few + (self.rank < more))

    def weight(self, num_images: int) -> float:
        """Return the weight of the mean over this process's rows; with it the mean over processes is the batch's."""
        rows = self.rows(num_images)
        return (rows.stop - rows.start) * self.size / num_images

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the means over the processes, of tensors of one dtype and device, in one call."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _lost():
            torch.distributed.all_reduce(flat)
        flat /= self.size
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.size > 1:
            with torch.no_grad():
                torch._foreach_copy_(list(tensors), self.mean(tensors))

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, stacked; gradients flow back to each of them."""
        gathered = tensor[None] if self.size == 1 else _Gather.apply(tensor, self.rank, self.size)
        assert isinstance(gathered, Tensor)
        return gathered

    def print(self, *lines: str) -> None:
        """Print lines, in the main process alone."""
        if self.is_main:
            print(*lines, sep="\n")

    def any(self, *flags: bool) -> list[bool]:
        """Return for each flag whether it is set in any process."""
        if self.size == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32)
        with _lost():
            torch.distributed.all_reduce(numbers)
        return [number > 0 for number in numbers.tolist()]

    def from_main(self, make: Callable[[], str]) -> str:
        """Return the text that `make` returns in the main process, which alone calls it.

        Raises:
            As `raise_on_all`.
        """
        text = ""
        with self.raise_on_all():
            if self.is_main:
                text = make()
        return text if self.size == 1 else self._texts(text)[0]

    def copy_from_main(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have in the main process."""
        if self.size > 1:
            for tensor in tensors:
                same = tensor.detach().contiguous()
                with _lost():
                    torch.distributed.broadcast(same, 0)
                with torch.no_grad():
                    tensor.copy_(same)

    def local_first(self, load: Callable[[], Result]) -> Result:
        """Return what `load` returns; one process of each machine calls it before the others, as it may fill caches.

        Raises:
            As `raise_on_all`.
        """
        results: list[Result] = []
        for turn in (True, False):
            with self.raise_on_all(self.loading_group):
                if (self.local_rank == 0) == turn:
                    results.append(load())
        return results[0]

    @contextlib.contextmanager
    def raise_on_all(self, group: torch.distributed.ProcessGroup | None = None) -> Iterator[None]:
        """End the body in all processes where it ends early in one of them; one sentence says why.

        Args:
            group: in which they wait for one another.

        Raises:
            InputError, Stopped: as raised in the body, in the first of the processes in which it was.
            SystemExit: in the others, with the same exit code.
        """
        if self.size == 1:
            yield
            return
        end: InputError | Stopped | SystemExit | None = None
        try:
            yield
        except (InputError, Stopped, SystemExit) as error:
            end = error
        code = "" if end is None else str(2 if isinstance(end, InputError) else end.code)
        codes = self._texts(code, group)
        ended = [rank for rank, code in enumerate(codes) if code]
        if ended and end is not None and ended[0] == self.rank:
            raise end
        if ended:
            raise SystemExit(int(codes[ended[0]]) if codes[ended[0]].isdigit() else 1)

    def check_same_images(self, fingerprint: str) -> None:
        """Compare the fingerprint of the images with that of the main process.

        Raises:
            InputError: in every process, where one has read other images.
        """
        of_main = self.from_main(lambda: fingerprint)
        with self.raise_on_all():
            if fingerprint != of_main:
                raise InputError(f"--data-dir: process {self.rank} has read other images than process 0.")

    def check_identical(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare tensors with those of the main process, by a digest of their bits.

        Raises:
            Stopped: in every process, where they differ in any; the first one is named.
        """
        if self.size == 1:
            return
        digest = hashlib.blake2b(digest_size=16)
        for tensor in tensors.values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digests = self._texts(digest.hexdigest())
        differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differing:
            raise Stopped(
                f"process {differing[0]} of {self.size} holds other weights or alphas than process 0; machines that "
                "compute together must be of one kind. The last checkpoint was written before they differed."
            )

    def _texts(self, text: str, group: torch.distributed.ProcessGroup | None = None) -> list[str]:
        """Return the texts of all processes."""
        content = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _lost():
            torch.distributed.all_gather(sizes, torch.tensor([len(content)]), group)
        longest = int(max(sizes))
        contents = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        with _lost():
            torch.distributed.all_gather(contents, torch.nn.functional.pad(content, (0, longest - len(content))), group)
        pairs = zip(contents, sizes, strict=True)
        return [bytes(part[: int(size)].tolist()).decode().rstrip("\0") for part, size in pairs]


SINGLE = World()


class _Gather(torch.autograd.Function):
    # torch.distributed.nn.functional.all_gather does the same, but is deprecated in favour of a private function.
    @staticmethod
    def forward(ctx, tensor: Tensor, rank: int, size: int) -> Tensor:  # pyrefly: ignore
        ctx.rank = rank
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(size)]
        with _lost():
            torch.distributed.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # pyrefly: ignore
        total = gradient.contiguous().clone()
        with _lost():
            torch.distributed.all_reduce(total)
        return total[ctx.rank], None, None


@contextlib.contextmanager
def connect() -> Iterator[World]:
    """Connect the processes that torchrun has started; without torchrun there is a single one.

    Raises:
        InputError: they do not find one another.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE
        return
    try:
        store, rank, _ = next(torch.distributed.rendezvous("env://", timeout=LONGEST_WAIT))
        # torchrun keeps the store when it starts its processes again, and with it the addresses of those that are gone.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = torch.distributed.PrefixStore(f"attempt {attempt}", store)
        torch.distributed.init_process_group(store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
        loading_group = torch.distributed.new_group(timeout=LOADING_WAIT, backend="gloo")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"torchrun: the {size} processes cannot be connected ({reason}).") from None
    assert isinstance(loading_group, torch.distributed.ProcessGroup)
    local_rank, local_size = (int(os.environ.get(name, default)) for name, default in LOCAL.items())
    try:
        yield World(rank, size, local_rank, local_size, loading_group)
    finally:
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # The first sentence, without the line of gloo's code that raised it.
        reason = re.split(r"\. |\n", re.sub(r"^\[\S+:\d+\] ", "", str(error).strip()))[0].rstrip(".")
        sentence = f"a process that computed with this one is gone ({printable(reason, 200)})"
        raise ConnectionError(None, sentence) from None
