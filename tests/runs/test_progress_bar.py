"""A bar on a terminal, plain lines elsewhere."""

import io
import re

import IPython.display
import pytest
import rich
from rich.console import Console

from nas.runs import progress_bar


def steps(monkeypatch, terminal, notebook=False, num=5):
    """Lines that were logged, and what was drawn."""
    monkeypatch.setenv("JPY_PARENT_PID", "1") if notebook else monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    console, lines = Console(file=io.StringIO(), force_terminal=terminal, width=100), []
    with progress_bar.progress_bar(console, lines.append, num + 1, done=1, images_per_step=8, go_on="") as advance:
        for step in range(num):
            advance(f"lower {step}.0%; skips 2 + 1")
    return lines, console.file.getvalue()


@pytest.mark.parametrize("notebook", [False, True])  # which gives what it starts a terminal
def test_on_a_pipe_or_started_by_a_notebook_a_line_now_and_then_says_what_is_left(notebook, monkeypatch):
    monkeypatch.setattr(progress_bar, "PLAIN_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress_bar, "TIMED_STEPS", 2)
    lines, drawn = steps(monkeypatch, notebook, notebook)
    assert lines[0] == "step 3 of 6, 0:00:00 left; lower 1.0%; skips 2 + 1"
    assert re.search(r"images per second, \S+ s per step: 0:00:00 for 2 steps, until ", lines[1])
    assert lines[3:] == ["step 6 of 6, 0:00:00 left; lower 4.0%; skips 2 + 1"]
    assert drawn == ""


def test_on_a_terminal_one_line_has_steps_time_accuracies_and_skips(monkeypatch):
    _, drawn = steps(monkeypatch, terminal=True)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn).rstrip().splitlines()[-1].split("\r")[-1]
    assert re.search(r"step 6/6 .*left; lower 4\.0%; skips 2 \+ 1", last), last


@pytest.fixture
def in_notebook():
    rich.reconfigure(force_jupyter=True)
    yield
    rich.reconfigure()


@pytest.mark.parametrize(("every_s", "num_updates"), [(0.0, 6), (60.0, 1)])
@pytest.mark.usefixtures("in_notebook")
def test_in_a_notebook_one_output_is_replaced_now_and_then_and_at_the_end(every_s, num_updates, monkeypatch):
    drawings = []

    class Output:
        def update(self, shown):
            drawings.append(shown._repr_mimebundle_((), ())["text/html"])

    def display(shown, display_id):
        assert display_id is True
        return Output()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(progress_bar, "NOTEBOOK_EVERY_S", every_s)
    monkeypatch.setattr(progress_bar, "PLAIN_LINE_EVERY_S", 0.0)
    assert steps(monkeypatch, terminal=True, notebook=True) == ([], "")
    assert len(drawings) == num_updates
    assert re.search(r"━</span> step .*6/6</span> .*left; lower 4\.0%; skips 2 \+ 1\n", drawings[-1])


def test_speed_and_end_of_a_run():
    pattern = r"128\.0 images per second, 0\.5 s per step: 1:00:00 for 7,200 steps, until \d{4}-\d\d-\d\d \d\d:\d\d"
    assert re.fullmatch(pattern, progress_bar.outlook(0.5, 7200, 64))
    assert [progress_bar.duration(seconds) for seconds in (0.4, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]
