"""Commands in an interpreter that lacks what Windows lacks: python -m tests.windows, and on each line of its input one.

A line is a JSON list of a script or module and its arguments; the answer is a line with its exit code. Taken away are
the modules, functions and constants below. Besides, no folder can be opened; no file that this process has open can be
replaced, renamed or removed, nor the folder that holds it, as far as /proc tells; and nas has to name the encoding of
each text that it reads or writes, as Windows has one of its own.
"""

import contextlib
import json
import os
import runpy
import signal
import sys
import traceback
import warnings
from pathlib import Path

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
OS = (
    *("chown", "fchmod", "fork", "getegid", "geteuid", "getgid", "getuid", "getloadavg", "killpg", "mkfifo", "pread"),
    *("pwrite", "sched_getaffinity", "setsid", "statvfs", "sysconf"),
    *("O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_SYNC"),
)
SIGNALS = ("SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "setitimer")


def take_away() -> None:
    for name in MODULES:
        sys.modules[name] = None
    for holder, names in ((os, OS), (signal, SIGNALS)):
        for name in names:
            if hasattr(holder, name):
                delattr(holder, name)
    os.open = _but_no_folder(os.open)
    for name in ("replace", "rename", "remove", "unlink"):
        setattr(os, name, _but_not_what_is_open(getattr(os, name)))
    warnings.simplefilter("ignore", EncodingWarning)
    warnings.filterwarnings("error", category=EncodingWarning, module=r"nas\.|search|train_final")


def _but_no_folder(function):
    def replacement(path, *arguments, **options):
        ours = sys._getframe(1).f_globals["__name__"].startswith("nas")  # others clean up by opened folders
        if ours and os.path.isdir(path):
            raise PermissionError(13, "Permission denied", path)
        return function(path, *arguments, **options)

    return replacement


def _but_not_what_is_open(function):
    def replacement(*paths, **options):
        callers = {frame.f_globals["__name__"].partition(".")[0] for frame, _ in traceback.walk_stack(None)}
        for path in () if options or "filelock" in callers else paths:  # which has code of its own for Windows
            real = os.path.realpath(path)
            for file in _open_files():
                if file == real or file.startswith(real + os.sep):
                    raise PermissionError(13, f"{file} is open", os.fspath(path))
        return function(*paths, **options)

    return replacement


def _open_files() -> set[str]:
    """Files that this process has open, or mapped into its memory."""
    found = set()
    for entry in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(FileNotFoundError):  # the list itself
            found.add(os.readlink(f"/proc/self/fd/{entry}"))
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    return found | {parts[5] for line in lines if len(parts := line.split(maxsplit=5)) == 6}


def run(command: list[str]) -> int:
    sys.argv = list(command)
    try:
        if command[0].endswith(".py"):
            runpy.run_path(command[0], run_name="__main__")
        else:
            runpy.run_module(command[0], run_name="__main__", alter_sys=False)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    if sys.argv[1:] == ["psutil"]:  # which has code of its own for Windows, but on Linux takes what is taken away
        import psutil  # noqa: F401
    take_away()
    for line in sys.stdin:
        print("exit code", run(json.loads(line)), flush=True)
