"""Reads and checks the metrics.jsonl of a run, which may be running."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from nas.errors import InputError

MAX_METRICS_BYTES = 256 << 20  # one epoch of a search writes some 25 KB
MAX_LINE_BYTES = 1 << 20
_RECORD = TypeAdapter(dict[str, Annotated[float, Field(strict=True, allow_inf_nan=False)]])


def records(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the number and content of each line of a metrics.jsonl, without a line that is still being written."""
    if not path.is_file():
        raise InputError(f"{path}: does not exist, so no epoch is finished yet.")
    try:
        if path.stat().st_size > MAX_METRICS_BYTES:
            raise InputError(f"{path}: is larger than {MAX_METRICS_BYTES >> 20} MiB.")
        with path.open("rb") as file:
            number = 0
            while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n"):
                number += 1
                try:
                    yield number, _RECORD.validate_json(line)
                except ValidationError:
                    raise InputError(f"{path}, line {number}: is not a record; remove the line.") from None
            if len(line) == MAX_LINE_BYTES:
                raise InputError(f"{path}, line {number + 1}: is longer than {MAX_LINE_BYTES >> 20} MiB.")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def curves(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Return (step, value) of each record that has a name, by this name; none as long as there is no such file.

    Raises:
        InputError: the file cannot be read, or a line in it is no record; the line is named.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    for number, record in records(path) if path.exists() else ():
        step = record.pop("step", -1.0)
        if step < 0 or not step.is_integer():
            raise InputError(f"{path}, line {number}: step must be a whole number.")
        for name, value in record.items():
            found.setdefault(name, []).append((int(step), value))
    return found
