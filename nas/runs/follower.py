"""What the other processes of a run have in place of its folder, which the first one writes."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from rich.console import Console
from torch import Tensor

from nas.distributed import Processes
from nas.errors import InputError, Stopped
from nas.runs.checkpoint import Progress
from nas.runs.folder import RunFolder


class Follower:
    """Takes what a `RunFolder` takes, and writes nothing.

    As a context it ends silently where the first process says why, and in `Stopped` where another process is gone.
    """

    def __init__(self, path: Path, rank: int):
        self.path = path
        self.rank = rank
        self.started = ""
        self.go_on = ""
        self.saved_at = float("inf")
        self.console = Console(quiet=True)

    def restore(self, tensors: Mapping[str, Tensor], data: str, genotype: str | None = None) -> Progress:
        return Progress()

    def save(self, *_: object) -> None: ...

    def log(self, line: str) -> None: ...

    def record(self, epoch: int, step: int, scalars: Mapping[str, float]) -> None: ...

    def picture(self, name: str, picture: Image.Image, step: int) -> None: ...

    def bad_step(self, progress: Progress, problem: str) -> None:
        progress.bad_step()

    def elapsed_s(self) -> float:
        return 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if isinstance(error, Stopped):
            raise SystemExit(error.code) from None
        if isinstance(error, OSError):
            raise Stopped(f"process {self.rank}: {error.strerror or error}.") from None


def check_same_images(processes: Processes, fingerprint: str) -> None:
    """Raise InputError, in every process, where one has read other images than the first one."""
    of_first = processes.text_of_first(fingerprint)
    with processes.agreed():
        if fingerprint != of_first:
            raise InputError(f"--data-dir: process {processes.rank} has read other images than process 0.")


def restore(
    run: RunFolder | Follower,
    processes: Processes,
    tensors: Mapping[str, Tensor],
    data: str,
    genotype: str | None = None,
) -> Progress:
    """`RunFolder.restore` in the first process, whose tensors the others then take.

    Raises:
        InputError: as there.
    """
    with processes.agreed():
        progress = run.restore(tensors, data, genotype)
    processes.copy_from_first(list(tensors.values()))
    return Progress(**json.loads(processes.text_of_first(json.dumps(dataclasses.asdict(progress)))))
