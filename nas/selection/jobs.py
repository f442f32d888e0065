"""Runs of the two scripts as jobs: each in a process of its own, started, resumed or left alone as its folder says.

A job may be run any number of times, by one process after another, because its folder holds all that it has reached.
So the process that runs jobs may die at any moment and need not remember anything.
"""

import contextlib
import functools
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nas.errors import InputError, printable
from nas.machine.threads import usable_cores
from nas.runs import checkpoint
from nas.runs.lock import is_at_work
from nas.runs.progress_bar import speed_in

POLL_S = 0.5
CONNECT_S = 10.0
MAX_RESTARTS = 3  # in a row, without a step between them that was kept
ASKED_TO_STOP = (130, 143)

# On Linux the kernel then sends SIGTERM to the script when the process that started it dies, however that happens: a
# script that nobody waits for ends with a checkpoint. 1 is PR_SET_PDEATHSIG.
DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(143); "  # it may have died before
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)


@dataclass(frozen=True)
class Job:
    """One run of a script.

    Attributes:
        script: the file.
        folder: its run folder, relative to `cwd`.
        config: a config file with its flags, relative to `cwd`; what may change in a resumed run is read again.
        epochs: number of epochs after which it is finished.
        cwd: the folder in which it runs.
        dry_run: whether it is only a --dry-run, which says how quick a step is and leaves no run folder.
    """

    script: Path
    folder: Path
    config: Path
    epochs: int
    cwd: Path
    dry_run: bool = False

    @property
    def path(self) -> Path:
        """The run folder, wherever this process runs."""
        return self.cwd / self.folder

    @property
    def output(self) -> Path:
        """The file with what the script prints."""
        return self.path.with_name(f"{self.path.name}.out")


class Ending(NamedTuple):
    """The code with which a job ended (0: it is finished, 2: its input is wrong), and the reason in one sentence."""

    code: int
    why: str


def is_done(job: Job) -> bool:
    """Return whether nothing is left to do."""
    if job.dry_run:
        return job.output.exists() and speed_in(job.output.read_text(encoding="utf-8")) is not None
    manifest = checkpoint.finished(job.path)
    return manifest is not None and manifest.is_done(job.epochs)


def num_epochs(job: Job) -> int:
    """Return the number of finished epochs, which may be more than those of the job."""
    manifest = checkpoint.newest(job.path)
    return manifest.progress.epochs if manifest else 0


def run_job(job: Job, tick: Callable[[], None] = lambda: None, threads: int | None = None) -> Ending:
    """Run a job from where it is to its end; start it again when it dies.

    Args:
        tick: called about twice per second.
        threads: the job's share of the cores; None if it runs alone and may ask which ones are free.

    Raises:
        OSError: the disk is full, or what the script prints cannot be written for another reason.
        KeyboardInterrupt: it was raised here, for example by `tick`; the script was asked to stop and has ended.
    """
    restarts = 0
    while not is_done(job):
        while is_at_work(job.path):  # the script outlived whoever started it
            time.sleep(POLL_S)
            tick()
        before = _steps(job)
        code = _run_once(job, tick, threads)
        if code not in (0, *ASKED_TO_STOP):
            with job.output.open("ab") as output:  # fails on a full disk, of which the script could not say a word
                output.write(b"\n")
        if code == 2 and is_at_work(job.path):
            continue
        if code == 2:
            return Ending(code, _last_line(job.output).removeprefix("error: "))
        if code in ASKED_TO_STOP:
            return Ending(code, f"{job.folder} was asked to stop")
        restarts = 0 if _steps(job) > before else restarts + 1
        if restarts > MAX_RESTARTS:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            # How to go on with the job alone is of no use to who runs them all.
            why = _last_line(job.output).removeprefix("stopped: ").partition("; resume with: ")[0]
            return Ending(1, f"{job.folder} ended {restarts} times in a row {how}: {why}")
    return Ending(0, "")


def _steps(job: Job) -> int:
    """Return the number of steps that were applied up to the last checkpoint; -1 if there is no checkpoint yet."""
    manifest = checkpoint.newest(job.path)
    return manifest.progress.steps - manifest.progress.bad_steps if manifest else -1


def _run_once(job: Job, tick: Callable[[], None], threads: int | None) -> int:
    """Return the exit code of the script, which is negative if a signal ended it."""
    which = ("--resume", str(job.folder)) if job.path.exists() else ("--name", job.folder.name)
    which = ("--dry-run",) if job.dry_run else which
    prelude = ("-c", DIE_WITH_PARENT, str(os.getpid())) if sys.platform == "linux" else ()
    command = (sys.executable, *prelude, str(job.script), *which, "--config", str(job.config))
    share = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    with job.output.open("ab") as output:
        # In a session of its own Ctrl-C does not reach it, so that it is asked to stop once, by us.
        script = subprocess.Popen(
            command,
            cwd=job.cwd,
            env=os.environ | share,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while True:
            try:
                return script.wait(POLL_S)
            except subprocess.TimeoutExpired:
                tick()
    except BaseException:
        script.terminate()
        try:
            script.wait()
        except KeyboardInterrupt:  # asked once more: at once
            script.terminate()
            script.wait()
        raise


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return printable(next((line for line in reversed(lines) if line.strip()), "it printed nothing"), 1000)


# Both functions return the endings of the jobs that are not finished; wrong input ends the other jobs as well.

RunAll = Callable[[Sequence[Job], Callable[[], None]], list[Ending]]


def in_turn(jobs: Sequence[Job], tick: Callable[[], None]) -> list[Ending]:
    """Run jobs one after another, on this machine."""
    endings = []
    for job in jobs:
        endings.append(run_job(job, tick))
        if endings[-1].code == 2:
            break
    return [ending for ending in endings if ending.code]


def on_ray(jobs: Sequence[Job], tick: Callable[[], None], resources: Mapping[str, float]) -> list[Ending]:
    """Run jobs in parallel, as tasks of the Ray to which this process is connected; Ray moves those of a dead node.

    Raises:
        InputError: a node cannot run them.
    """
    import ray

    task = ray.remote(_run_as_task).options(max_retries=-1, **resources)
    # Ray sets OMP_NUM_THREADS itself where it is not set; here a job has its share even so.
    threads = max(1, int(resources["num_cpus"]))
    waiting = [task.remote(job, threads) for job in jobs if not is_done(job)]
    endings: list[Ending] = []
    try:
        while waiting and not any(ending.code == 2 for ending in endings):
            ready, waiting = ray.wait(waiting, timeout=POLL_S)
            endings += ray.get(ready)
            tick()
    except ray.exceptions.RaySystemError as error:  # such as a node without nas
        why = printable(str(error).strip().rpartition("\n")[2].strip(), 300)
        raise InputError(f"--ray: a node cannot run the jobs ({why}); each needs nas and this folder.") from None
    finally:
        for one in waiting:
            ray.cancel(one)
        if waiting:
            ray.wait(waiting, num_returns=len(waiting))
    return [ending for ending in endings if ending.code]


def _run_as_task(job: Job, threads: int) -> Ending:
    asked: list[int] = []

    def stop_if_asked() -> None:
        if asked:
            raise KeyboardInterrupt

    # Ray cancels a task by SIGINT. Where a shell began this command in the background, its children ignore SIGINT, and
    # theirs too. So there is a handler of our own, which does not hurry a script that is already stopping.
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.append(number))
    try:
        return run_job(job, stop_if_asked, threads)
    except OSError as error:
        return Ending(1, f"{error.filename or job.folder}: {error.strerror}.")
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def runner(address: str | None, share: float, device: str, threads: int | None = None) -> Iterator[RunAll]:
    """Yield `in_turn`; or, if there is an address, `on_ray`, connected to that Ray until the end.

    Args:
        address: of a Ray cluster; local starts a Ray on this machine.
        share: GPUs per job; CPU cores if the cluster has no GPU, or `device` is cpu.
        threads: of each job, from --threads; a job then takes at least this many cores.

    Raises:
        InputError: Ray is not installed or does not answer, or no node has what a job takes.
    """
    if address is None:
        yield in_turn
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else a Ray begun here gives way to whatever else runs
    try:
        import ray
    except ImportError:
        raise InputError("--ray: the package ray is missing; install it with: pip install '.[ray]'") from None
    before = signal.getsignal(signal.SIGTERM)
    try:
        if address not in ("local", "auto"):  # where nobody listens Ray itself would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), CONNECT_S).close()
        # A Ray that begins here would count cores that this process may not use; another one has counted its own.
        cores = usable_cores() if address == "local" else None
        ray.init(address, num_cpus=cores, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except Exception as error:  # as Ray raises that very class where a busy machine is too slow for it
        why = printable(str(error).strip().partition("\n")[0], 300)
        raise InputError(f"--ray {address}: cannot connect to Ray, or start it ({why}).") from None
    try:
        signal.signal(signal.SIGTERM, before)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield functools.partial(on_ray, resources=resources_of_job(nodes, share, device, threads))
    finally:
        ray.shutdown()


def slots(share: float, device: str, threads: int | None = None) -> int:
    """Return how many jobs run at a time on the Ray to which this process is connected; arguments as in `runner`."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    taken = resources_of_job(nodes, share, device, threads)
    kind = "GPU" if "num_gpus" in taken else "CPU"
    each = taken.get("num_gpus") or taken["num_cpus"]
    return max(1, sum(int(node.get(kind, 0.0) / each + 1e-6) for node in nodes))


def resources_of_job(
    nodes: Sequence[Mapping[str, float]], share: float, device: str, threads: int | None = None
) -> dict[str, float]:
    """Return what a job takes from a node, as options of a Ray task; arguments as in `runner`.

    Raises:
        InputError: no node has that much.
    """
    with_gpus = device in ("auto", "cuda") and any(node.get("GPU") for node in nodes)
    kind = "GPU" if with_gpus else "CPU"
    most = max((node.get(kind, 0.0) for node in nodes), default=0.0)
    if not with_gpus and threads is not None and threads > share:
        if most < threads:
            raise InputError(f"--threads {threads}: no node has as many cores; the largest has {most:g}.")
        share = threads
    if most < share:
        raise InputError(f"--devices-per-search {share:g}: no node has as many; the largest has {most:g} {kind}.")
    share = math.floor(round(share * 10_000, 6)) / 10_000  # as exactly as Ray counts
    # Beside a GPU no core is asked for: there may be fewer of them than searches that share GPUs.
    return {"num_gpus": share, "num_cpus": 0.0} if with_gpus else {"num_cpus": share}
