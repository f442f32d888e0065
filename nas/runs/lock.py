"""The lock of a run folder: one process at a time writes there."""

import os
from pathlib import Path

from filelock import FileLock, Timeout

from nas import files
from nas.errors import InputError

# Where the file system knows no locks, filelock keeps a file that names the process, and finds at a first try that the
# process is gone, at its second one that the lock is free.
LOCK_WAIT_S = 0.2


def is_at_work(path: Path) -> bool:
    """Return whether a process holds the lock of a run folder, on any machine."""
    if not (path / "lock").is_file() or _is_link(path / "lock"):  # to ask would make it, or change what it leads to
        return False
    try:
        with FileLock(path / "lock", timeout=LOCK_WAIT_S):
            return False
    except Timeout:
        return True
    except OSError:  # such as one that may not be written
        return False


def take_lock(path: Path) -> FileLock:
    """Take the lock of a run folder; the system releases it when the process ends, however that happens.

    Raises:
        InputError: another process holds it.
    """
    lock, holder = FileLock(path / "lock", timeout=LOCK_WAIT_S), path / "pid"
    try:
        lock.acquire()
    except Timeout:
        who = "another process"
        if holder.is_file():
            who = f"process {holder.read_bytes()[:20].decode(errors='replace').strip()}"
        raise InputError(f"--resume {path}: {who} is writing to it; wait until it ends, or stop it.") from None
    # Not in the locked file, which nobody else can read on Windows.
    files.replace(holder, lambda aside: aside.write_text(f"{os.getpid()}\n", encoding="ascii"))
    return lock


def refuse_links(path: Path) -> None:
    """Refuse a run folder with a link in it: a resumed run writes into its files, and a link could lead to any file.

    Raises:
        InputError: there is a link in the folder, or something else that is neither a file nor a folder.
    """
    for parent, folders, names in os.walk(path):
        for entry in (Path(parent, name) for name in folders + names):
            if _is_link(entry):
                raise InputError(f"--resume {path}: {entry} is a link, or not a regular file; remove it.")


def _is_link(path: Path) -> bool:
    """Return whether a path is a symbolic link, one of several hard links, or neither a file nor a folder."""
    return path.is_symlink() or not (path.is_dir() or (path.is_file() and path.stat().st_nlink == 1))
