"""The number of threads: its choice by made-up figures, what is asked of this machine, and what runs keep of it."""

import contextlib
import os
import re
import subprocess
import sys
import time

import pytest
import torch
from rich.console import Console

from nas.config.cli import parse
from nas.config.file import read_config
from nas.config.flags import SearchConfig
from nas.distributed import SINGLE
from nas.errors import InputError
from nas.machine import threads
from nas.machine.threads import Pace, advice, choose, hold, threads_told, unused_of
from nas.runs.checkpoint import LoopState
from nas.runs.progress_bar import progress_bar
from nas.training.run import Run
from tests.in_process import call

linux = pytest.mark.skipif(sys.platform != "linux", reason="holds and pins cores as Linux does")


@pytest.mark.parametrize(
    ("said", "free", "processes", "number", "line"),
    [
        ((None, None, None), 2, 1, 2, "2 threads: 2 of 4 cores are free; --threads N sets another number"),
        ((None, None, None), 1, 1, 1, "1 thread: 1 of 4 cores is free; --threads N sets another number"),
        ((None, None, None), 0, 1, 1, "1 thread: 0 of 4 cores are free; --threads N sets another number"),
        ((None, None, None), 3, 2, 1, "1 thread in each of 2 processes: 3 of 4 cores are free; --threads N sets "),
        ((7, 3, 5), None, 1, 7, "7 threads: set by --threads"),
        ((None, 3, 5), None, 1, 3, "3 threads: as before in this run"),
        ((None, 9, 5), None, 1, 9, "9 threads: as before in this run, but only 4 cores can be used here; "),
        ((None, None, 5), None, 2, 5, "5 threads in each of 2 processes: set by OMP_NUM_THREADS"),
    ],
)
def test_flag_then_the_run_itself_then_environment_then_free_cores(said, free, processes, number, line):
    def ask():
        assert free is not None, "takes time, and nobody needs it"
        return free

    chosen, why = choose(*said, lambda: 4, ask, processes)
    assert (chosen, why[: len(line)]) == (number, line)


@pytest.mark.parametrize(("variable", "number"), [("", None), (" ", None), ("3", 3), (" 4,2 ", 4), ("1024", 1024)])
def test_what_the_environment_says(variable, number):
    assert threads_told(variable) == number


@pytest.mark.parametrize("number", ["0", "-1", "two", "1025", "1.5", ",2", "²", 99 * "9"])
def test_what_is_no_number_of_threads(number):
    with pytest.raises(InputError, match=r"OMP_NUM_THREADS: must be a whole number from 1 to 1024, got '"):
        threads_told(number)
    if number in ("0", "1025"):
        with pytest.raises(InputError, match=r"--threads: must be (greater|less) than or equal to 1"):
            parse(SearchConfig, [f"--threads={number}"])


@pytest.mark.parametrize(
    ("percent", "allowed", "unused"),
    [([0, 100, 50, 0], [0, 1, 2, 3], 2.5), ([0, 100, 50, 0], [1, 2], 0.5), ([0, 100, 0], [0, 3], 2), ([100], [0], 0)],
)
def test_cores_count_as_far_as_they_are_unused_and_allowed(percent, allowed, unused):
    assert unused_of(percent, allowed) == unused


BUSY = "print(flush=True)\nwhile True: pass"


@contextlib.contextmanager
def process(code, core=None):
    """Another process that has begun; all that it does is done on one core, where one is given."""
    pin = None if core is None else (lambda: os.sched_setaffinity(0, [core]))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    other = subprocess.Popen([sys.executable, "-c", code], preexec_fn=pin, **pipes)
    try:
        other.stdout.readline()
        yield
    finally:
        other.kill()
        other.communicate()


@linux
def test_a_busy_core_is_not_free(monkeypatch):
    monkeypatch.setattr(threads, "SAMPLES", 1)
    before = os.sched_getaffinity(0)
    core = min(before)
    os.sched_setaffinity(0, [core])
    try:
        with process(BUSY, core):
            assert (threads.usable_cores(), threads.unused_cores(), threads.free_cores()) == (1, 0, 0)
    finally:
        os.sched_setaffinity(0, before)


@linux
@pytest.mark.parametrize(
    ("files", "usable"),
    [
        ({"CPU_MAX": "max 100000\n"}, 64),
        ({"CPU_MAX": "60000 100000\n"}, 1),  # a part of a core is one that can be used
        ({"CFS_QUOTA": "-1\n", "CFS_PERIOD": "100000\n"}, 64),
        ({"CFS_QUOTA": "60000\n", "CFS_PERIOD": "100000\n"}, 1),
        ({"CFS_QUOTA": "60000\n"}, 64),
    ],
)
def test_in_a_container_all_that_runs_there_shares_its_quota(files, usable, monkeypatch, tmp_path):
    monkeypatch.setattr(threads, "SAMPLES", 1)
    monkeypatch.setattr("psutil.cpu_count", lambda **_: 64)
    monkeypatch.setattr(threads, "allowed_cores", lambda: range(64))
    for name in ("CPU_MAX", "CFS_QUOTA", "CFS_PERIOD"):
        monkeypatch.setattr(threads, name, tmp_path / name)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert threads.usable_cores() == usable
    if "CPU_MAX" in files and usable == 1:
        idle = 64 * [0.0]  # percent of each core of the whole machine
        monkeypatch.setattr("psutil.cpu_percent", lambda interval, **_: [time.sleep(interval), idle][1])
        with process(BUSY):
            assert threads.unused_cores() == 0


@linux
def test_runs_that_start_together_share_the_cores():
    cores = [f"of a test {number}" for number in range(4)]
    name = f"\0nas core {cores[1]}"
    try:
        assert hold(1, cores) == 1
        with process(f"import socket; run = socket.socket(socket.AF_UNIX); run.bind({name!r}); print(); input()"):
            assert hold(9, cores) == 3
        assert hold(9, cores) == 4
        assert hold(2, cores) == 2
    finally:
        hold(0, ())


SMALL = ["--dataset=digits", "--train-limit=32", "--init-channels=2", "--num-cells=3", "--batch-size=16", "--name=run"]
CHOSEN = re.compile(r"^(\d+) threads?: (\d+) of (\d+) cores? (?:is|are) free; --threads N sets another number$", re.M)


@pytest.fixture(autouse=True)
def computes_with_one_thread(monkeypatch):
    """torch takes note of the number, but a second thread would wait for the cores of other tests."""
    numbers = [1]
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: numbers[-1])


def test_a_run_takes_the_free_cores_as_a_dry_one_says_and_its_measurement_what_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OMP_NUM_THREADS")
    for more in (["--dry-run"], []):
        assert call("train_final", tmp_path, *SMALL, "--genotype=DARTS_V2", "--epochs=1", *more) == 0
        number, free, usable = map(int, CHOSEN.search(capsys.readouterr().out).groups())
        assert number == torch.get_num_threads() == max(1, free) <= usable
    assert read_config(tmp_path / "runs/run").environment["num_threads"] == number
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for flags, said in ((["--threads=3"], "3 threads: set by --threads"), ([], "1 thread: set by OMP_NUM_THREADS")):
        assert call("train_final", tmp_path, "--evaluate=runs/run", *flags) == 0
        assert capsys.readouterr().out.startswith(said)


def start(capsys, *flags):
    """Begin a run, or go on with it, up to a checkpoint, and return what is said."""
    run = Run.open(parse(SearchConfig, ["--dataset=digits", *flags]), SINGLE, 9, lambda: "")
    with run.begin() as folder:
        folder.restore({"w": torch.zeros(1)}, "0" * 32)
        folder.save({"w": torch.zeros(1)}, "0" * 32, "a genotype", LoopState())
    return run.notes[0] + capsys.readouterr().out


def test_the_number_is_kept_until_another_one_is_given(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    start(capsys, "--name=run")  # by OMP_NUM_THREADS
    file = tmp_path / "runs" / "run" / "config.json"
    file.write_text(file.read_text().replace('"num_threads": 1', '"num_threads": 3'))
    said = start(capsys, "--resume=runs/run")
    assert said.startswith("3 threads: as before in this run")
    assert "bits may differ" not in said
    said = start(capsys, "--resume=runs/run", "--threads=2", "--epochs=60")
    assert said.startswith("2 threads: set by --threads")
    assert "num_threads were 3, are 2: bits may differ" in said
    assert "epochs: 50 before, 60 from here on" in said
    assert "before, 2 from here on" not in said
    start(capsys, "--resume=runs/run")
    content = read_config(file)
    assert [again["num_threads"] for again in content.resumed] == [3, 2, 2]
    assert content.config["run"]["threads"] == 2


@pytest.mark.parametrize(
    ("steps", "notices"),
    [
        pytest.param(30 * [4.6], [], id="even"),
        pytest.param([60, *20 * [4.6]], [], id="a first step that is slower"),
        pytest.param(10 * [4.6] + 10 * [13.0], [], id="not three times"),
        pytest.param(10 * [4.6] + 20 * [16.0], [(16.0, 4.6)], id="once, though it goes on"),
        pytest.param(10 * [16.0] + 10 * [4.6] + 5 * [16.0], [(16.0, 4.6)], id="slow at first, as before"),
        pytest.param(4 * [4.6, 4.6, 60.0, 4.6, 60.0], [], id="pauses"),
        pytest.param(10 * [2.0] + 5 * [7.0] + 5 * [5.0] + 5 * [7.0], [(7.0, 2.0)], id="almost quick between"),
        pytest.param(10 * [2.0] + 5 * [7.0] + 5 * [2.1] + 5 * [8.0], [(7.0, 2.0), (8.0, 2.0)], id="quick between"),
        pytest.param(2000 * [0.01] + 100 * [0.03], [], id="some quick steps"),
        pytest.param(2000 * [0.01] + 1000 * [0.03], [(0.03, 0.01)], id="many quick steps"),
        pytest.param(4 * [1.0] + 4 * [9.0], [], id="on the first steps"),
    ],
)
def test_steps_that_take_three_times_as_long_are_noticed_once(steps, notices):
    pace = Pace()
    assert [notice for step_s in steps if (notice := pace.see(step_s)) is not None] == notices


@pytest.mark.parametrize(
    ("count", "unused", "processes", "said"),
    [
        (2, 1, 1, "other processes use 1 of 2 cores. Stop them, or stop this run and resume it with fewer threads"),
        (2, 0, 1, "other processes use 2 of 2 cores. Stop them, or stop this run and resume it with fewer threads"),
        (1, 0, 1, "other processes use 2 of 2 cores. Stop them, or wait for their end."),
        (1, 1, 2, "other processes use 1 of 2 cores. Stop them, or wait for their end."),
        (2, 2, 1, "2 of 2 cores are free, so the cause is something else, such as too little memory, or heat."),
    ],
)
def test_what_to_do_when_steps_are_slow(count, unused, processes, said):
    line = advice(count, 2, unused, processes, "python search.py --resume runs/a")
    assert line.startswith(said)
    assert line.endswith(" (bits may differ): python search.py --resume runs/a --threads 1") == ("fewer" in said)


def test_the_bar_says_it_once(monkeypatch):
    now, lines = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with progress_bar(Console(quiet=True), lines.append, 40, 0, 8, "python search.py --resume runs/a") as advance:
        for step_s in [50, *9 * [4], *20 * [20]]:
            now[0] += step_s
            advance("")
    assert sum(line.startswith("steps take 20 s, 5.0 times as long as before (4 s): ") for line in lines) == 1
