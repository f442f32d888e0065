"""Several processes that take every step together, as torchrun starts them: plain `torch.distributed`.

Each computes a part of every batch. What is averaged is the same on all of them, so that they hold the same weights,
bit for bit; the first one alone writes files.
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
class Processes:
    """This process among those that compute together; alone, if nothing else is said.

    Every method is called by all of them, in the same order. Each raises `ConnectionError` where another process is
    gone; alone none of them does anything.

    Attributes:
        rank: of this process, from 0.
        count: of all processes.
        local_rank, local_count: the same among those on this machine.
        patient: the group in which they wait while data are loaded; None for the usual one.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1
    patient: torch.distributed.ProcessGroup | None = None

    def __deepcopy__(self, memo: dict) -> Self:
        """Itself: a network whose batch norms gather from all processes may be copied, and a group may not."""
        return self

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def rows(self, num_images: int) -> slice:
        """Which rows of a batch this process computes; parts differ in size by one at the most."""
        few, more = divmod(num_images, self.count)
        begin = self.rank * few + min(self.rank, more)
        return slice(begin, begin + few + (self.rank < more))

    def weight(self, num_images: int) -> float:
        """Of the mean over this process's rows of a batch, so that the mean over processes is that over the batch."""
        rows = self.rows(num_images)
        return (rows.stop - rows.start) * self.count / num_images

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over the processes, of tensors of one dtype and device, in one call; they are left as they are."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        with _lost():
            torch.distributed.all_reduce(flat)
        flat /= self.count
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over the processes."""
        if self.count > 1:
            with torch.no_grad():
                torch._foreach_copy_(list(tensors), self.mean(tensors))

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, stacked; gradients flow back to each of them."""
        gathered = tensor[None] if self.count == 1 else _Gather.apply(tensor, self.rank, self.count)
        assert isinstance(gathered, Tensor)
        return gathered

    def any(self, *flags: bool) -> list[bool]:
        """Of each flag, whether it is set in any process."""
        if self.count == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32)
        with _lost():
            torch.distributed.all_reduce(numbers)
        return [number > 0 for number in numbers.tolist()]

    def text_of_first(self, text: str) -> str:
        """The text of the first process; those of the others are not looked at."""
        return text if self.count == 1 else self._texts(text if self.first else "")[0]

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the values that they have in the first process."""
        if self.count > 1:
            for tensor in tensors:
                same = tensor.detach().contiguous()
                with _lost():
                    torch.distributed.broadcast(same, 0)
                with torch.no_grad():
                    tensor.copy_(same)

    def in_turn(self, load: Callable[[], Result]) -> Result:
        """What `load` returns, called in one process of each machine, and only then in the others: it may fill caches.

        Raises:
            As `agreed`.
        """
        results: list[Result] = []
        for turn in (True, False):
            with self.agreed(self.patient):
                if (self.local_rank == 0) == turn:
                    results.append(load())
        return results[0]

    @contextlib.contextmanager
    def agreed(self, group: torch.distributed.ProcessGroup | None = None) -> Iterator[None]:
        """What one process refuses all of them refuse; it is said once.

        Args:
            group: in which they wait for one another.

        Raises:
            InputError, Stopped: as raised inside, by the first of the processes in which it was.
            SystemExit: it was in another process; with the exit code of that.
        """
        if self.count == 1:
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

    def check_identical(self, tensors: Mapping[str, Tensor]) -> None:
        """Compare tensors with those of the first process, by a digest of their bits.

        Raises:
            Stopped: in every process, where they differ in any; the first one is named.
        """
        if self.count == 1:
            return
        digest = hashlib.blake2b(digest_size=16)
        for tensor in tensors.values():
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        digests = self._texts(digest.hexdigest())
        differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
        if differing:
            raise Stopped(
                f"process {differing[0]} of {self.count} holds other weights or alphas than process 0; machines that "
                "compute together must be of one kind. The last checkpoint is from before."
            )

    def _texts(self, text: str, group: torch.distributed.ProcessGroup | None = None) -> list[str]:
        """The texts of all processes."""
        content = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.count)]
        with _lost():
            torch.distributed.all_gather(sizes, torch.tensor([len(content)]), group)
        longest = int(max(sizes))
        contents = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes]
        with _lost():
            torch.distributed.all_gather(contents, torch.nn.functional.pad(content, (0, longest - len(content))), group)
        pairs = zip(contents, sizes, strict=True)
        return [bytes(part[: int(size)].tolist()).decode().rstrip("\0") for part, size in pairs]


ALONE = Processes()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor: Tensor, rank: int, count: int) -> Tensor:  # pyrefly: ignore
        ctx.rank = rank
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(count)]
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
def together() -> Iterator[Processes]:
    """The processes that torchrun has started, connected; one alone, where it was not torchrun.

    Raises:
        InputError: they find one another no more.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    try:
        store, rank, _ = next(torch.distributed.rendezvous("env://", timeout=LONGEST_WAIT))
        # torchrun keeps the store when it starts its processes again, and with it the addresses of those that are gone.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = torch.distributed.PrefixStore(f"attempt {attempt}", store)
        torch.distributed.init_process_group(store=store, rank=rank, world_size=count, timeout=LONGEST_WAIT)
        patient = torch.distributed.new_group(timeout=LOADING_WAIT, backend="gloo")
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"torchrun: the {count} processes cannot be connected ({reason}).") from None
    assert isinstance(patient, torch.distributed.ProcessGroup)
    local_rank, local_count = (int(os.environ.get(name, default)) for name, default in LOCAL.items())
    try:
        yield Processes(rank, count, local_rank, local_count, patient)
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
