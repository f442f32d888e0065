"""The view of several jobs, on a pipe and on a terminal, from what lies in their folders."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from nas.selection import progress
from nas.selection.jobs import Job


def get_to(job, epochs, **scalars):
    """Leave in the folder what a run does."""
    job.path.mkdir(parents=True, exist_ok=True)
    finished = epochs == job.epochs
    manifest = {"config": {}, "data": "0" * 32, "genotype": "", "progress": {"epochs": epochs}, "sizes": {}}
    manifest |= {"elapsed_s": 1.0, "finished": finished}
    save_file({"x": np.zeros(1)}, job.path / "checkpoint.safetensors", {"manifest": json.dumps(manifest)})
    with (job.path / "metrics.jsonl").open("a") as file:
        print(json.dumps({"epoch": epochs, "time_s": 61.2} | scalars), file=file)
        print(json.dumps({"epoch": epochs + 1, "lower/step_loss": 1.0}), file=file)
    with job.output.open("a") as file:
        file.write("a line")


SEARCH = {"upper/accuracy": 0.751, "cells/skip_connections_normal": 3.0, "cells/skip_connections_reduce": 1.0}


@pytest.fixture
def jobs(tmp_path):
    return [Job(Path("search.py"), Path(name), Path("c"), 2, tmp_path) for name in ("a-seed0", "a-seed1")]


def test_on_a_pipe_there_is_a_line_when_a_job_begins_or_ends_and_one_a_minute(jobs, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    lines = []
    get_to(jobs[1], 1)
    with progress.jobs_view(Console(file=io.StringIO()), lines.append, jobs) as look:
        look()
        assert lines == []
        get_to(jobs[0], 0)
        look()
        look()
        assert lines == ["a-seed0: started"]
        get_to(jobs[0], 1, **SEARCH)
        now += 61
        look()
        assert lines[1:] == ["a-seed0: 1 of 2 epochs; upper 75.1%, skips 3 + 1; 0:01:01"]
        get_to(jobs[0], 2, **SEARCH)
        get_to(jobs[1], 1, **{"holdout/accuracy": 0.5})
        look()
        assert lines[2:] == ["a-seed0: finished; upper 75.1%, skips 3 + 1; 0:01:01", "a-seed1: resumed"]
        get_to(jobs[1], 2, **{"holdout/accuracy": 0.5})
    assert lines[4:] == ["a-seed1: finished; held out 50.0%; 0:01:01"]


def test_a_job_that_ends_without_a_word_is_finished(jobs, monkeypatch):
    get_to(jobs[0], 1)
    lines = []
    with progress.jobs_view(Console(file=io.StringIO()), lines.append, jobs) as look:
        before = jobs[0].output.stat()
        get_to(jobs[0], 2)
        os.utime(jobs[0].output, ns=(before.st_atime_ns, before.st_mtime_ns))
        look()
    assert lines == ["a-seed0: finished; no epoch yet"]


@pytest.mark.parametrize(
    ("num_jobs", "height", "others"), [(2, 30, r"a-seed0 [ ━╸╺]+ epoch 0/2 waiting"), (20, 8, "^(?!.*a-seed11)")]
)
def test_on_a_terminal_there_is_a_bar_a_job_or_where_there_is_no_room_for_all_one_for_those_at_work(
    tmp_path, monkeypatch, num_jobs, height, others
):
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=height, color_system=None)
    jobs = [Job(Path("search.py"), Path(f"a-seed{seed}"), Path("c"), 2, tmp_path) for seed in range(num_jobs)]
    with progress.jobs_view(console, console.print, jobs) as look:
        get_to(jobs[num_jobs // 2], 1, **SEARCH)
        look()
        screen.seek(0)
        screen.truncate()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"a-seed10? [ ━╸╺]+ epoch 1/2 upper 75.1%, skips 3 \+ 1; 0:01:01", drawn)
    assert re.search(others, drawn, re.DOTALL)


def test_hostile_metrics_are_not_shown(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'\xff\n[1]\n{}\n{"cut of' + b"9" * 300_000)
    assert progress.status(tmp_path) == "no epoch yet"
    assert progress.status(tmp_path / "nowhere") == "no epoch yet"


@pytest.mark.parametrize(
    ("records", "shown"),
    [
        ([{"train/accuracy": 0.5, "time_s": 5}], "training images 50.0%; 0:00:05"),
        ([{"train/accuracy": 0.5}, {"train/step_loss": 1.0}], "training images 50.0%; 0:00:00"),
        ([{"train/accuracy": 0.5, "holdout/accuracy": 0.4, "time_s": 5}], "held out 40.0%; 0:00:05"),
        ([{"train/accuracy": 0.5}, {"test/accuracy": 0.3, "time_s": 9}], "test 30.0%; 0:00:09"),
    ],
)
def test_a_training_shows_the_accuracy_that_says_most(tmp_path, records, shown):
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert progress.status(tmp_path) == shown
