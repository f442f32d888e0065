"""The folder of one run: config.json, metrics.jsonl, TensorBoard's event files, log.txt; and its progress on screen."""

import contextlib
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from nas import files
from nas.errors import InputError
from nas.version import VERSION

CONFIG_VERSION = 1
PLAIN_LINE_EVERY_S = 60.0


class RunFolder:
    """Where a run writes.

    Args:
        path: made here; a folder that exists is refused, as it may hold another run.
        config: the run's config, as plain data; saved with versions and hardware.

    Raises:
        InputError: the folder exists, or cannot be made.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]):
        self.path = path
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"--name {path.name}: {path} exists already; choose another --name.") from None
        except OSError as error:
            raise InputError(f"--run-dir: {path} cannot be made ({error.strerror}).") from None
        self.console = Console(highlight=False, soft_wrap=True)
        self._began = time.monotonic()
        self._log = (path / "log.txt").open("w", encoding="utf-8", buffering=1)
        self._metrics = (path / "metrics.jsonl").open("w", encoding="utf-8", buffering=1)
        self._tensorboard = SummaryWriter(str(path / "tensorboard"))
        files.write_json(
            path / "config.json", {"format_version": CONFIG_VERSION, **config, "environment": environment()}
        )

    def log(self, line: str) -> None:
        """Print a line, and keep it in log.txt."""
        self.console.print(line, markup=False)
        self._log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")

    def record(self, epoch: int, step: int, scalars: Mapping[str, float]) -> None:
        """One line in metrics.jsonl, and the same scalars in TensorBoard.

        Args:
            epoch: counted from 1.
            step: steps taken since the start of the run.
            scalars: by name; what stands before a '/' groups them in TensorBoard.
        """
        line = {"epoch": epoch, "step": step, "time_s": round(time.monotonic() - self._began, 3), **scalars}
        self._metrics.write(json.dumps(line) + "\n")
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture in TensorBoard."""
        self._tensorboard.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    @contextlib.contextmanager
    def progress(self, num_steps: int) -> Iterator[Callable[[], None]]:
        """Hands out what to call after each step: on a terminal a bar with the time left, elsewhere a line a minute."""
        if self.console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, time left"), TimeRemainingColumn())
            with Progress(*columns, console=self.console, transient=True) as bar:
                task = bar.add_task("", total=num_steps)
                yield lambda: bar.advance(task)
            return
        began = said = time.monotonic()
        step = 0

        def advance() -> None:
            nonlocal said, step
            step += 1
            now = time.monotonic()
            if now - said >= PLAIN_LINE_EVERY_S:
                said = now
                self.log(f"step {step} of {num_steps}, {duration((now - began) / step * (num_steps - step))} left")

        yield advance

    def close(self) -> None:
        """Write out what is buffered."""
        self._tensorboard.close()
        self._metrics.close()
        self._log.close()


def read_config(path: Path, names: Sequence[str]) -> list[Any]:
    """The named parts of a run's config.json, as plain data that is still to be validated.

    Raises:
        InputError: no such file, not JSON, of a newer version, or without one of the parts.
    """
    content = json.loads(files.read_json(path, "config", CONFIG_VERSION))
    missing = [name for name in names if not isinstance(content, dict) or name not in content]
    if missing:
        raise InputError(f"config {path}: {missing[0]}: missing.")
    return [content[name] for name in names]


def duration(seconds: float) -> str:
    """Such as 1:02:03 (hours, minutes, seconds)."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def environment() -> dict[str, Any]:
    """Command, versions and hardware."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "platform": platform.platform(),
        "processor": _processor(),
        "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    packages = ("torch", "torchvision", "higher", "numpy")
    return {"nas": VERSION, "python": platform.python_version()} | {package: version(package) for package in packages}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()
