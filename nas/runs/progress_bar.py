"""The progress of a loop: a bar on a terminal and in a notebook; a line per minute in a pipe or a file."""

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

from rich import get_console
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from nas import errors
from nas.machine.threads import Pace, slow_line

PLAIN_LINE_EVERY_S = 60.0
NOTEBOOK_EVERY_S = 0.5  # each time becomes a message to the browser
TIMED_STEPS = 10


def can_draw(console: Console) -> bool:
    """Return whether this runs in a notebook, or on a terminal that can redraw lines, unlike that of a notebook's !."""
    return get_console().is_jupyter or (console.is_terminal and "JPY_PARENT_PID" not in os.environ)


def make_bars(console: Console, *columns: ProgressColumn) -> Progress:
    """Return bars for what `can_draw`."""
    return NotebookBars(*columns) if get_console().is_jupyter else Progress(*columns, console=console, transient=True)


class NotebookBars(Progress):
    """NotebookBars are one output of a notebook's cell, replaced in place; what is printed stands beside it.

    Rich's own bars would need ipywidgets there, and would draw what is printed meanwhile into the widget.
    """

    def start(self) -> None:
        """Show the bars."""
        from IPython.display import display

        self._shown_at = time.monotonic()
        self._output: Any = display(self, display_id=True)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a bar, and show it where the last time was a while ago."""
        super().update(task_id, **changes)
        if time.monotonic() - self._shown_at >= NOTEBOOK_EVERY_S:
            self._shown_at = time.monotonic()
            self._output.update(self)

    def stop(self) -> None:
        """Leave the bars as they are now."""
        self._output.update(self)


@contextlib.contextmanager
def progress_bar(
    console: Console, log: Callable[[str], None], num_steps: int, done: int, images_per_step: int, go_on: str
) -> Iterator[Callable[[str], None]]:
    """Yield a function to call after each step, with a text to show beside the time left, such as accuracies.

    After a few steps a line says how quick they are and when the last one will have been taken, and another one, when
    they come to take three times as long, what to do.

    Args:
        log: prints a line, and keeps it.
        done: steps of `num_steps` that were taken before.
        go_on: the command that goes on with the run.
    """
    drawn = can_draw(console)
    began = said = last = time.monotonic()
    step, pace = done, Pace()

    def advance(status: str) -> None:
        nonlocal began, said, last, step
        step += 1
        now = time.monotonic()
        if step == done + 1:
            began = said = now  # the first step of a process is slower than the others
        elif step == done + 1 + TIMED_STEPS and step < num_steps:
            log(outlook((now - began) / TIMED_STEPS, num_steps - step, images_per_step))
        elif not drawn and now - said >= PLAIN_LINE_EVERY_S:
            said = now
            left = (now - began) / (step - done - 1) * (num_steps - step)
            log(f"step {step} of {num_steps}, {duration(left)} left; {status}")
        if step > done + 1 and (slow := pace.see(now - last)) is not None:
            log(slow_line(*slow, go_on))
        last = time.monotonic()

    if not drawn:
        yield advance
        return
    columns = (
        BarColumn(bar_width=16),
        TextColumn("step"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("left; {task.description}"),
    )
    with make_bars(console, *columns) as bar:
        task = bar.add_task("", total=num_steps, completed=done)

        def advance_with_bar(status: str) -> None:
            advance(status)
            bar.update(task, advance=1, description=status)

        yield advance_with_bar


def outlook(step_s: float, num_steps: int, images_per_step: int) -> str:
    """Return a line on the speed of the steps, how long this many of them take, and when they will end."""
    left_s = step_s * num_steps
    end = datetime.now().astimezone() + timedelta(seconds=left_s)
    return (
        f"{images_per_step / step_s:.1f} images per second, {step_s:.3g} s per step: {duration(left_s)} for "
        f"{errors.count(num_steps, 'step', ',')}, until {end:%Y-%m-%d %H:%M}"
    )


def speed_in(text: str) -> tuple[float, int] | None:
    """Return the seconds per step and the number of steps in the last `outlook` of a text; None if there is none."""
    found = re.findall(r" images per second, (\S+) s per step: \S+ for ([\d,]+) steps?, until ", text)
    return (float(found[-1][0]), int(found[-1][1].replace(",", ""))) if found else None


def duration(seconds: float) -> str:
    """Return a text such as 1:02:03 (hours, minutes, seconds)."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
