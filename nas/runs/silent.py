"""SilentRun stands for the run folder in all processes but the main one, which alone writes."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from rich.console import Console
from torch import Tensor

from nas.errors import Stopped
from nas.runs.checkpoint import LoopState
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Provenance


class SilentRun:
    """SilentRun has the methods of `RunFolder`, and writes nothing.

    As a context it ends silently where the main process prints why, and in `Stopped` where another process is gone.
    """

    is_silent = True

    def __init__(self, path: Path, rank: int):
        self.path = path
        self.rank = rank
        self.started = ""
        self.go_on = ""
        self.saved_at = float("inf")
        self.console = Console(quiet=True)
        self.has_pictures = False

    def restore(self, tensors: Mapping[str, Tensor], data: str, genotype: str | None = None) -> LoopState:
        return LoopState()

    def save(self, *_: object) -> None: ...

    def save_genotype(self, genotype: Genotype, provenance: Provenance) -> None: ...

    def draw(self, genotype: Genotype) -> None: ...

    def log(self, line: str) -> None: ...

    def record(self, epoch: int, step: int, scalars: Mapping[str, float]) -> None: ...

    def picture(self, name: str, picture: Image.Image, step: int) -> None: ...

    def bad_step(self, progress: LoopState, problem: str) -> None:
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
