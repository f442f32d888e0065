"""The number of threads for torch, and what a run says when its steps have become slow.

The threads that share an operation wait for one another by spinning. A thread without a core of its own slows all of
them down: next to one busy process, two threads on two cores take several times as long as one. So a run asks which
cores are free before it starts.
"""

import json
import math
import os
import re
import socket
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from nas.config.file import read_config
from nas.config.flags import Run
from nas.config.values import MOST_THREADS
from nas.distributed import World
from nas.errors import InputError, count
from nas.machine.memory import psutil

SAMPLES, SAMPLE_S = 3, 0.2
NOISE = 0.25  # cores in use that are no reason to take one thread fewer
WINDOW_STEPS, WINDOW_S = 5, 10.0  # at least this many steps, and at least this long
SLOW, QUICK = 3.0, 2.0  # times the usual step: slow from here on, and no longer slow below

# Of a container (Linux control groups): version 2, and quota and period of version 1.
CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
CFS_QUOTA, CFS_PERIOD = (Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us") for name in ("quota", "period"))

_held: list[socket.socket] = []


def take_threads(options: Run, path: Path, world: World) -> str:
    """Set torch's number of threads, and return the line that says how many there are and why.

    All processes of a run take the number that the main process chooses.

    Args:
        path: the run folder, which is read only with --resume.

    Raises:
        InputError: config.json or OMP_NUM_THREADS holds no number of threads.
    """

    def chosen() -> str:
        kept = None if options.resume is None else read_config(path).num_threads
        told = threads_told(os.environ.get("OMP_NUM_THREADS", ""))
        return json.dumps(choose(options.threads, kept, told, usable_cores, free_cores, world.local_size))

    number, line = json.loads(world.from_main(chosen))
    if world.local_rank == 0:
        hold(number * world.local_size, allowed_cores())
    torch.set_num_threads(number)
    return line


def release_cores() -> None:
    """Give up the cores that `take_threads` has held for this process."""
    hold(0, ())


def choose(
    given: int | None,
    kept: int | None,
    told: int | None,
    usable: Callable[[], int],
    free: Callable[[], int],
    processes: int = 1,
) -> tuple[int, str]:
    """Choose the number of threads of a process, and say why.

    The first of `given`, `kept` and `told` that is not None decides; if all are, the free cores decide.

    Args:
        given: the number of --threads.
        kept: the number of the resumed run, because its bits depend on it.
        told: OMP_NUM_THREADS, which the user, torchrun or the runner of several jobs sets.
        usable: returns the number of cores that this process may use.
        free: returns the number of those that nobody uses.
        processes: of this run on this machine, which share the free cores.
    """
    if given is not None:
        number, why = given, "set by --threads"
    elif kept is not None:
        number, why = kept, "as before in this run"
        if kept > (cores := usable()):
            why += f", but only {count(cores, 'core')} can be used here; --threads {cores} may change bits"
    elif told is not None:
        number, why = told, "set by OMP_NUM_THREADS"
    else:
        cores = free()
        number = max(1, cores // processes)
        why = f"{cores} of {count(usable(), 'core')} {_are(cores)} free; --threads N sets another number"
    each = f" in each of {processes} processes" if processes > 1 else ""
    return number, f"{count(number, 'thread')}{each}: {why}"


def threads_told(variable: str) -> int | None:
    """Return the number in OMP_NUM_THREADS: the first one, if it has a number for each level of nested loops.

    Raises:
        InputError: it is not a number from 1 on.
    """
    if not variable.strip():
        return None
    first = variable.partition(",")[0].strip()
    if not re.fullmatch(r"[0-9]{1,5}", first) or not 1 <= int(first) <= MOST_THREADS:
        raise InputError(f"OMP_NUM_THREADS: must be a whole number from 1 to {MOST_THREADS}, got {variable!r:.60}.")
    return int(first)


# Asking the machine


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that the operating system lets this process run on."""
    process = psutil.Process() if psutil else None
    return sorted(process.cpu_affinity() if hasattr(process, "cpu_affinity") else range(os.cpu_count() or 1))


def usable_cores() -> int:
    """Count the cores that this process may use: allowed, within the quota of its container, hyperthreads once."""
    physical = psutil.cpu_count(logical=False) if psutil else None
    return min(_quota(), physical or _quota())


def free_cores() -> int:
    """Hold and count the usable cores that nobody uses and no other run holds, over some tenths of a second.

    A run that starts at the same moment is still idle, but holds its cores.
    """
    cores = allowed_cores()
    hold(1, cores)
    return hold(unused_cores(), cores)


def unused_cores() -> int:
    """Count the usable cores that no other process uses, over some tenths of a second, in which this process sleeps.

    If psutil cannot be imported, all of them count.
    """
    if psutil is None:
        return usable_cores()
    allowed, quota = allowed_cores(), _quota()

    def sample() -> float:
        before = _seconds_by_process()
        unused = unused_of(psutil.cpu_percent(SAMPLE_S, percpu=True), allowed)
        if quota < len(allowed):  # which all that runs in this container shares
            used_s = sum(after - before.get(pid, after) for pid, after in _seconds_by_process().items())
            unused = min(unused, quota - used_s / SAMPLE_S)
        return unused

    unused = statistics.median(sample() for _ in range(SAMPLES))  # short work of another process does not count
    return max(0, min(usable_cores(), math.floor(unused + NOISE)))


def unused_of(percent: Sequence[float], allowed: Sequence[int]) -> float:
    """Sum the unused shares of the allowed cores, given the percentage of each core's time that was used."""
    # If some cores are switched off, the others are not listed by their numbers.
    shares = [percent[core] for core in allowed] if max(allowed) < len(percent) else percent
    return min(len(allowed), sum(1 - share / 100 for share in shares))


def hold(number: int, cores: Iterable[int]) -> int:
    """Hold up to `number` cores against other runs of this machine, until they are given up or this process ends.

    A core is held by a name that the kernel gives to only one process, and takes back when that ends. Only Linux has
    such names; elsewhere any number can be held, and runs that start at the same moment do not see one another.

    Returns:
        The number of cores that this process holds now; it is smaller if other runs hold the rest.
    """
    if sys.platform != "linux":
        return number
    while len(_held) > number:
        _held.pop().close()
    for core in cores:
        if len(_held) >= number:
            break
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0nas core {core}")
        except OSError:  # another run has it, or this one
            name.close()
        else:
            _held.append(name)
    return len(_held)


def _quota() -> int:
    """Count the cores whose time this process may use up: those that are allowed, or fewer in a container."""
    allowed, limit, period = len(allowed_cores()), "max", ""
    if CPU_MAX.is_file():
        limit, period = CPU_MAX.read_text("ascii").split()
    elif CFS_QUOTA.is_file() and CFS_PERIOD.is_file():
        limit, period = (file.read_text("ascii").strip() for file in (CFS_QUOTA, CFS_PERIOD))
    return allowed if limit in ("max", "-1") else max(1, min(allowed, math.ceil(int(limit) / int(period))))


def _seconds_by_process() -> dict[int, float]:
    assert psutil is not None
    times = ((process.pid, process.info["cpu_times"]) for process in psutil.process_iter(["cpu_times"]))
    return {pid: time.user + time.system for pid, time in times if time is not None}


# Steps that become slow


class Pace:
    """A watch on the duration of steps, which notices when they take three times as long as before.

    It compares medians over windows of several steps and seconds, so that a pause for a checkpoint or an evaluation, or
    a short burst of other work, is not taken for a slowdown.
    """

    def __init__(self):
        self._window: list[float] = []
        self._usual_s = math.inf  # median of the quickest window so far
        self._is_slow = False

    def see(self, step_s: float) -> tuple[float, float] | None:
        """Record the seconds of a step; once per slowdown, return the seconds of a step now and before."""
        self._window.append(step_s)
        if len(self._window) < WINDOW_STEPS or sum(self._window) < WINDOW_S:
            return None
        now_s, self._window = statistics.median(self._window), []
        was_slow, usual_s = self._is_slow, self._usual_s
        self._is_slow = now_s >= (QUICK if was_slow else SLOW) * usual_s
        self._usual_s = min(usual_s, now_s)
        return (now_s, usual_s) if self._is_slow and not was_slow else None


def slow_line(now_s: float, usual_s: float, go_on: str) -> str:
    """Return a line that says why steps take longer than before, and what to do.

    Args:
        go_on: the command that resumes the run.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    what = f"steps take {now_s:.3g} s, {now_s / usual_s:.1f} times as long as before ({usual_s:.3g} s)"
    return f"{what}: {advice(torch.get_num_threads(), usable_cores(), unused_cores(), processes, go_on)}"


def advice(threads: int, usable: int, unused: int, processes: int, go_on: str) -> str:
    """Return the likely cause of slow steps, and what to do; arguments as in `choose` and `slow_line`."""
    if unused >= threads * processes:
        return (
            f"{unused} of {count(usable, 'core')} {_are(unused)} free, so the cause is something else, such as "
            "too little memory, or heat."
        )
    cause = f"other processes use {usable - unused} of {count(usable, 'core')}. Stop them"
    fewer = max(1, unused // processes)
    if fewer >= threads:
        return f"{cause}, or wait for their end."
    return f"{cause}, or stop this run and resume it with fewer threads (bits may differ): {go_on} --threads {fewer}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
