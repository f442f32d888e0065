"""Reading files with a limit on their size, and replacing them in one step, so that none is ever half-written."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas.errors import InputError

MAX_JSON_BYTES = 1 << 20  # a genotype or a config takes a few KB


def read_json(path: Path, what: str, newest_version: int) -> bytes:
    """Return the content of a JSON file that may be hostile, as bytes for a strict parser.

    Args:
        what: what the file is, such as "genotype"; error messages begin with it.
        newest_version: the largest `format_version` that can be read.

    Raises:
        InputError: not a regular file, unreadable, larger than 1 MiB, not JSON, or of a newer version.
    """
    data = read_small(path, what)
    try:
        content = json.loads(data, object_pairs_hook=each_key_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} {path}: not JSON ({error}).") from None
    if newer := too_new(content, newest_version):
        raise InputError(f"{what} {path}: {newer}")
    return data


def read_small(path: Path, what: str) -> bytes:
    """Return the bytes of a file of at most 1 MiB.

    Raises:
        InputError: not a regular file, unreadable, or larger.
    """
    if path.exists() and not path.is_file():
        raise InputError(f"{what} {path}: not a regular file.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise InputError(f"{what} {path}: cannot be read ({error.strerror}).") from None
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{what} {path}: larger than 1 MiB, so it is not a {what} file.")
    return data


def too_new(content: Any, newest_version: int) -> str:
    """Return a sentence if the `format_version` of JSON content is newer than what can be read, else an empty text."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and version > newest_version:
        return f"format_version is {version!r:.40}, this nas reads {newest_version}: install a newer nas."
    return ""


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a dictionary, as an `object_pairs_hook` of `json.loads`; raise ValueError if a key is given twice."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r:.60} is given twice")
        content[key] = value
    return content


def json_text(content: Any) -> str:
    """Return content as JSON text; a list without lists in it takes one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Inside strings JSON writes a line break as \\n, so only layout is removed here.
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda part: re.sub(r"\n *", "", re.sub(r",\n *", ", ", part[0])), text) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    text = json_text(content)
    replace(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def replace(path: Path, write: Callable[[Path], Any], previous: Path | None = None) -> None:
    """Let `write` make a file beside `path`, then put it in the place of the one at `path` in one step.

    A power cut leaves the old file or the new one.

    Args:
        previous: where the old file is kept; for an instant there is then no file at `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.unlink(missing_ok=True)  # in a folder from elsewhere it may be a link to any file
    try:
        write(aside)
        sync(aside)
        if previous and path.exists():  # only now: a write that fails leaves both as they are
            os.replace(path, previous)
        os.replace(aside, path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the content of a file, or the list of names in a folder, is on the disk.

    Windows does not open folders, and writes their names to the disk by itself.
    """
    is_folder = path.is_dir()
    try:
        descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows syncs only what can be written
    except PermissionError:
        if not is_folder:
            raise
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_asides(folder: Path, name: str = "*") -> None:
    """Remove the files that a process left beside `folder / name`, or any other, when it was killed in `replace`."""
    for aside in folder.glob(f".{name}.*"):
        if aside.suffix[1:].isdigit() and not aside.is_dir():
            aside.unlink()
