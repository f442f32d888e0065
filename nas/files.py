"""Files read with a limit, and written aside and then swapped in, so that none is ever half there."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nas.errors import InputError

MAX_JSON_BYTES = 1 << 20  # a genotype or a config takes a few KB


def read_json(path: Path, what: str, newest_version: int) -> bytes:
    """The content of a JSON file that may be hostile, still as text, for a strict parser to read.

    Args:
        what: begins the sentence of an error, such as "genotype".
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
    """The bytes of a file of at most 1 MiB.

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
        raise InputError(f"{what} {path}: larger than 1 MiB, so it is no {what} file.")
    return data


def too_new(content: Any, newest_version: int) -> str:
    """A sentence where the `format_version` in the content of a JSON file is newer than what can be read, else none."""
    version = content.get("format_version") if isinstance(content, dict) else None
    if type(version) is int and version > newest_version:
        return f"format_version is {version!r:.40}, this nas reads {newest_version}: install a newer nas."
    return ""


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An `object_pairs_hook` of `json.loads`; raises ValueError at a key that is given twice."""
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"{key!r:.60} is given twice")
        content[key] = value
    return content


def json_text(content: Any) -> str:
    """Content as JSON; lists without lists in them take one line."""
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Inside strings JSON writes a line break as \\n, so that what is taken out here is layout.
    return re.sub(r"\[\n[^\[\]{}]*\]", lambda part: re.sub(r"\n *", "", re.sub(r",\n *", ", ", part[0])), text) + "\n"


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file in one step."""
    text = json_text(content)
    replace(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def replace(path: Path, write: Callable[[Path], Any], previous: Path | None = None) -> None:
    """Let `write` make a file aside, and put it in the place of the one at `path` in one step, safe from a power cut.

    Args:
        previous: where the file that was at `path` is kept; for an instant there is none at `path` then.
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
    """Have a file's content, or a folder's list of names, on the disk before going on.

    Windows opens no folder, and writes its names to the disk by itself.
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


def remove_asides(path: Path) -> None:
    """Remove what a process that was killed inside `replace` left beside `path`."""
    for aside in path.parent.glob(f".{path.name}.*"):
        if aside.suffix[1:].isdigit():
            aside.unlink()
