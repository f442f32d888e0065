"""The records of a run: the same scalars in metrics.jsonl, for programs, and in TensorBoard's event files."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from pydantic import TypeAdapter, ValidationError

from nas.errors import InputError
from nas.runs.event_file import EventFile

EVENT_FILES = "events.out.tfevents.*"
_RECORD = TypeAdapter(dict[str, float])


class Records:
    """Records opens the records of one run folder for more, after cutting them to what they were at a checkpoint.

    Args:
        folder: the run folder.
        sizes: in bytes at the checkpoint, by path in the folder, as `sizes` gives them; files that it does not name
            were begun later, and are emptied.
        began: when the run began, in seconds since 1970.
        flags: a row in TensorBoard's table of runs.
        compared: scalars that stand beside the flags there.
        say: called with each line that the user should know of.

    Raises:
        InputError: a line of metrics.jsonl is no record; it is named. Only where event files were removed, which are
            then made from it.
    """

    def __init__(
        self,
        folder: Path,
        sizes: Mapping[str, int],
        began: float,
        flags: Mapping[str, bool | float | str],
        compared: Sequence[str],
        say: Callable[[str], None],
    ):
        self._folder, self._began, self._flags, self._compared, self._say = folder, began, flags, compared, say
        path, size = folder / "metrics.jsonl", sizes.get("metrics.jsonl", 0)
        self._metrics = path.open("a", encoding="utf-8", buffering=1)
        if os.path.getsize(path) < size:
            say(f"{path} was cut or removed: what it held before the checkpoint is incomplete.")
        else:
            os.truncate(path, size)
        found = {f"tensorboard/{file.name}": file for file in (folder / "tensorboard").glob(EVENT_FILES)}
        complete = all(
            name in found and found[name].stat().st_size >= size
            for name, size in sizes.items()
            if name.startswith("tensorboard/")
        )
        for name, file in found.items():
            if complete and name in sizes:
                os.truncate(file, sizes[name])
            else:
                file.unlink()
        self._events = self._new_events()
        if not complete:
            self._restore_curves()

    def write(self, epoch: int, step: int, time_s: float, scalars: Mapping[str, float]) -> None:
        """Write one line of metrics.jsonl, and the same scalars for TensorBoard.

        Args:
            epoch: counted from 1.
            step: steps taken since the start of the run.
            time_s: seconds that the run has taken.
            scalars: by name, and what stands before a '/' groups them in TensorBoard; what is not finite is left out.
        """
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        line = {"epoch": epoch, "step": step, "time_s": round(time_s, 3), **scalars}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        if not self._renew_events():
            self._events.scalars(scalars, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Write a picture for TensorBoard."""
        self._renew_events()
        self._events.picture(name, picture, step)

    def sizes(self) -> dict[str, int]:
        """Wait until all files are on the disk, and return their sizes in bytes by path in the folder."""
        self._renew_events()
        os.fsync(self._metrics.fileno())
        self._events.sync()
        paths = [self._folder / "metrics.jsonl", *sorted((self._folder / "tensorboard").glob(EVENT_FILES))]
        return {path.relative_to(self._folder).as_posix(): path.stat().st_size for path in paths if path.exists()}

    def close(self) -> None:
        """Close both files, even if closing one of them fails."""
        try:
            self._metrics.close()
        finally:
            self._events.close()

    def _new_events(self) -> EventFile:
        events = EventFile(self._folder / "tensorboard")
        events.flags(self._flags, self._compared)
        return events

    def _renew_events(self) -> bool:
        """Return whether TensorBoard's folder was deleted; if so, it is made again from metrics.jsonl."""
        if not self._events.deleted:
            return False
        self._events.close()
        self._events = self._new_events()
        self._restore_curves()
        return True

    def _restore_curves(self) -> None:
        """Write the scalars of metrics.jsonl into the event file."""
        path = self._folder / "metrics.jsonl"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = _RECORD.validate_json(line)
                values.pop("epoch")
                step, time_s = int(values.pop("step")), values.pop("time_s")
            except (ValidationError, KeyError, ValueError):
                raise InputError(f"{path}, line {number}: not a record; remove the line.") from None
            self._events.scalars(values, step, self._began + time_s)
        self._say(
            f"{self._events.path.parent} was removed: its curves are those of metrics.jsonl, its pictures are lost."
        )
