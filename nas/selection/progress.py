"""The progress of several jobs in one view: one bar per job on a terminal, otherwise a line now and then."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

from nas.errors import count
from nas.runs.progress_bar import PLAIN_LINE_EVERY_S, can_draw, duration, make_bars
from nas.selection.jobs import Job, is_done, num_epochs

# The first one that a record has.
SHOWN = {
    "upper/accuracy": "upper",
    "test/accuracy": "test",
    "holdout/accuracy": "held out",
    "train/accuracy": "training images",
}
TAIL_BYTES = 128 << 10  # of metrics.jsonl: some epochs
_RECORD = TypeAdapter(dict[str, float])


@contextlib.contextmanager
def jobs_view(console: Console, log: Callable[[str], None], jobs: Sequence[Job]) -> Iterator[Callable[[], None]]:
    """Yield a function to be called again and again while the jobs run, here or elsewhere; it reads their folders.

    Args:
        log: prints a line, and keeps it.
    """
    drawn = can_draw(console)
    before = {job: _modified(job.output) for job in jobs}
    left = [job for job in jobs if not is_done(job)]
    at_work: list[Job] = []
    said = time.monotonic()

    def look() -> None:
        nonlocal said
        for job in list(left):
            if job not in at_work and _modified(job.output) != before[job]:
                at_work.append(job)
                log(f"{job.path.name}: {'resumed' if num_epochs(job) else 'started'}")
            if is_done(job):
                left.remove(job)
                if job in at_work:
                    at_work.remove(job)
                log(f"{job.path.name}: finished; {status(job.path)}")
        if not drawn and time.monotonic() - said >= PLAIN_LINE_EVERY_S:
            said = time.monotonic()
            for job in at_work:
                log(f"{job.path.name}: {_epochs(job)} of {count(job.epochs, 'epoch')}; {status(job.path)}")

    if not drawn:
        yield look
        look()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("epoch"),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with make_bars(console, *columns) as bars:
        tasks = {job: bars.add_task(job.path.name, total=job.epochs, status="") for job in jobs}
        to_draw = list(jobs)

        def look_and_draw() -> None:
            look()
            for job in list(to_draw):
                # Where there is no room for all, there is for those at work.
                visible = job in at_work or len(jobs) < console.height - 2
                how = "waiting" if job in left and job not in at_work else status(job.path)
                bars.update(tasks[job], completed=_epochs(job), status=how, visible=visible)
                if job not in left:
                    to_draw.remove(job)

        yield look_and_draw
        look_and_draw()


def status(folder: Path) -> str:
    """Return the accuracy of the last finished epoch of a run and, for a search, the skip connections of its cells."""
    for record in _last_records(folder / "metrics.jsonl"):
        shown = [f"{title} {record[name]:.1%}" for name, title in SHOWN.items() if name in record]
        if not shown:
            continue
        skips = [f"{value:.0f}" for name, value in record.items() if name.startswith("cells/skip_connections_")]
        what = f"{shown[0]}, skips {' + '.join(skips)}" if skips else shown[0]
        return f"{what}; {duration(record.get('time_s', 0))}"
    return "no epoch yet"


def seconds_of_epochs(folder: Path) -> list[float]:
    """Return the seconds that each of the last epochs of a run took."""
    records = _last_records(folder / "metrics.jsonl")
    return [record["speed/epoch_s"] for record in records if "speed/epoch_s" in record]


def _last_records(path: Path) -> Iterator[dict[str, float]]:
    """Yield the records of a file, the last one first; lines that are no records are left out."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).split(b"\n")
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValidationError):
            yield _RECORD.validate_json(line)


def _epochs(job: Job) -> int:
    return min(num_epochs(job), job.epochs)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
