"""How many threads torch computes with, and what a run says when its steps have become slow.

The threads that share an operation wait for one another by spinning. One of them that finds no core of its own slows
all of them down: beside one busy process, two threads on two cores take several times as long as one. So a run asks
which cores are free before it starts.
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
from nas.config.flags import MOST_THREADS, Run
from nas.distributed import World
from nas.errors import InputError, count
from nas.machine.memory import psutil

SAMPLES, SAMPLE_S = 3, 0.2
NOISE = 0.25  # cores in use that are no reason to take a thread less
WINDOW_STEPS, WINDOW_S = 5, 10.0  # at least this many steps, and at least this long
SLOW, QUICK = 3.0, 2.0  # times the usual step: slow from here on, and no longer slow below

CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # of a container (Linux control groups, version 2)

_held: list[socket.socket] = []


def take_threads(options: Run, path: Path, world: World) -> str:
    """Set torch's number of threads, and return the line that says how many there are and why.

    All processes of a run take as many as the first one chooses.

    Args:
        path: the run folder, which is read with --resume alone.

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
    """Let other runs have the cores that `take_threads` has held for this process."""
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

    The first of `given`, `kept` and `told` that is there counts; without any of them the free cores do.

    Args:
        given: by --threads.
        kept: of the run that goes on, as its bits depend on it.
        told: by OMP_NUM_THREADS: of the user, of torchrun, or the share of a job that runs beside others.
        usable: returns the cores that this process may use.
        free: returns those of them that nobody uses.
        processes: of this run on this machine, which share the free cores.
    """
    if given is not None:
        number, why = given, "--threads says so"
    elif kept is not None:
        number, why = kept, "the run had this number before"
        if kept > (cores := usable()):
            why += f", though only {count(cores, 'core')} can be used here; --threads {cores} may change bits"
    elif told is not None:
        number, why = told, "OMP_NUM_THREADS says so"
    else:
        cores = free()
        number = max(1, cores // processes)
        why = f"{cores} of {count(usable(), 'core')} {_are(cores)} free; --threads N takes another number"
    each = f" in each of {processes} processes" if processes > 1 else ""
    return number, f"{count(number, 'thread')}{each}: {why}"


def threads_told(variable: str) -> int | None:
    """Read OMP_NUM_THREADS, of whose list (one number for each level of nested loops) the first number counts.

    Raises:
        InputError: it is no number from 1 on.
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
    """Count the usable cores that nobody uses and no other run holds, over some tenths of a second.

    They are held from here on. A run that starts at the same moment is still idle: it shows by what it holds.
    """
    cores = allowed_cores()
    hold(1, cores)
    return hold(unused_cores(), cores)


def unused_cores() -> int:
    """Count the usable cores that no other process uses, over some tenths of a second, in which this process sleeps.

    Where psutil cannot be imported all of them count.
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

    unused = statistics.median(sample() for _ in range(SAMPLES))  # a moment's work of somebody else's does not count
    return max(0, min(usable_cores(), math.floor(unused + NOISE)))


def unused_of(percent: Sequence[float], allowed: Sequence[int]) -> float:
    """Sum the unused shares of the allowed cores, given the percentage of each core's time that was used."""
    # Where some cores are switched off the others are not listed by their numbers.
    shares = [percent[core] for core in allowed] if max(allowed) < len(percent) else percent
    return min(len(allowed), sum(1 - share / 100 for share in shares))


def hold(number: int, cores: Iterable[int]) -> int:
    """Hold cores against other runs of this machine, up to `number` in all, until they are let go or this process ends.

    A core is held by a name that the kernel gives to one process alone and takes back when that ends. Linux alone has
    such names; elsewhere any number can be had, and runs that start at the same moment do not see one another.

    Returns:
        How many this process holds now: fewer where other runs hold the rest.
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
    allowed = len(allowed_cores())
    limit, period = CPU_MAX.read_text("ascii").split() if CPU_MAX.is_file() else ("max", "")
    return allowed if limit == "max" else max(1, min(allowed, math.ceil(int(limit) / int(period))))


def _seconds_by_process() -> dict[int, float]:
    assert psutil is not None
    times = ((process.pid, process.info["cpu_times"]) for process in psutil.process_iter(["cpu_times"]))
    return {pid: time.user + time.system for pid, time in times if time is not None}


# Steps that become slow


class Pace:
    """Notices when steps come to take three times as long as they did.

    Medians are compared, over windows of several steps and seconds, so that a pause for a checkpoint or an evaluation,
    or a short burst of other work, is not taken for a slowdown.
    """

    def __init__(self):
        self._window: list[float] = []
        self._usual_s = math.inf  # median of the quickest window so far
        self._is_slow = False

    def see(self, step_s: float) -> tuple[float, float] | None:
        """Take note of the seconds of a step; once for each slowdown return those of a step now, and as it was."""
        self._window.append(step_s)
        if len(self._window) < WINDOW_STEPS or sum(self._window) < WINDOW_S:
            return None
        now_s, self._window = statistics.median(self._window), []
        was_slow, usual_s = self._is_slow, self._usual_s
        self._is_slow = now_s >= (QUICK if was_slow else SLOW) * usual_s
        self._usual_s = min(usual_s, now_s)
        return (now_s, usual_s) if self._is_slow and not was_slow else None


def slow_line(now_s: float, usual_s: float, go_on: str) -> str:
    """Ask the machine why steps take longer than they did, and say in a line what to do.

    Args:
        go_on: the command that goes on with the run.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    what = f"steps take {now_s:.3g} s, {now_s / usual_s:.1f} times as long as before ({usual_s:.3g} s)"
    return f"{what}: {advice(torch.get_num_threads(), usable_cores(), unused_cores(), processes, go_on)}"


def advice(threads: int, usable: int, unused: int, processes: int, go_on: str) -> str:
    """Say what is likely to make steps slow, and what to do; arguments as in `choose` and `slow_line`."""
    if unused >= threads * processes:
        return (
            f"{unused} of {count(usable, 'core')} {_are(unused)} free, so the cause is another one, such as too "
            "little memory or heat."
        )
    cause = f"other processes use {usable - unused} of {count(usable, 'core')}. Stop those"
    fewer = max(1, unused // processes)
    if fewer >= threads:
        return f"{cause}, or wait for their end."
    return f"{cause}, or stop this run and go on with fewer threads (bits may differ): {go_on} --threads {fewer}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"
