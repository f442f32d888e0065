"""TensorBoard's event file, written at once and not by a thread, so that its size tells what is in it.

A resumed run cuts it to its size at the checkpoint. The `purge_step` of SummaryWriter cannot replace this: it drops
whole steps, but a checkpoint may lie between two records of one step (that of the step, and that of the epoch which
ends with it), so that a curve would have a gap or a double there.
"""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.event_pb2 import Event  # pyrefly: ignore
from tensorboard.compat.proto.summary_pb2 import Summary  # pyrefly: ignore
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary


class EventFile:
    """EventFile writes one event file. TensorBoard reads those of a folder in the order of their names.

    Args:
        folder: of the run's event files; made if it is missing.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events.out.tfevents.{time.time():.6f}"
        self._file = self.path.open("xb")
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float | None = None) -> None:
        """Write the scalars of one step by name; `wall_time` is in seconds since 1970, now if not given."""
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(wall_time=wall_time or time.time(), step=step, summary=Summary(value=points)))

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Write a picture of one step."""
        value = summary.image(name, np.asarray(picture.convert("RGB")), dataformats="HWC")
        self._write(Event(wall_time=time.time(), step=step, summary=value))

    def flags(self, values: Mapping[str, bool | float | str], compared: Sequence[str]) -> None:
        """Write a row of TensorBoard's table of runs (HPARAMS): flags, and scalars whose last values are compared."""
        # torch would write numbers for truth values, and takes no lists.
        words = {True: "yes", False: "no"}
        shown = {name: " ".join(value) if isinstance(value, tuple | list) else value for name, value in values.items()}
        shown = {name: words[value] if isinstance(value, bool) else value for name, value in shown.items()}
        for part in summary.hparams(shown, dict.fromkeys(compared, 0.0)):
            self._write(Event(wall_time=time.time(), summary=part))

    @property
    def deleted(self) -> bool:
        """Whether somebody has removed the file."""
        return os.fstat(self._file.fileno()).st_nlink == 0

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
        self._file.flush()
