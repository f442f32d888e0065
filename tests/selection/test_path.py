"""The way from images to a network: what is wrong on it is said before the first step, and nothing is lost."""

import contextlib
import errno
import json
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from nas.errors import Stopped
from nas.selection import budget, measure, protocol
from tests.bad_calls import content
from tests.data.folders import folder_data, paint
from tests.in_process import TWO, call, in_this_process

SMALL = ["--init-channels=2", "--num-cells=1", "--num-nodes=1", "--epochs=1", *TWO, "--selection-epochs=4", "--name=p"]
SMALL += ["--selection-channels=2", "--selection-cells=1", "--selection-halving", "--train-final"]
SMALL += ["--final-epochs=1", "--final-channels=2", "--final-cells=1", "--export=safetensors", "--derive-top=2"]
SMALL += ["--random-baseline=2"]
BUDGET = "--time-budget=2h"
DIGITS = ["--dataset=digits", "--train-limit=40"]
FOLDER = ["--dataset=folder", "--data-dir=.", "--image-size=8"]
GO_ON = "--resume=runs/p"
RUN = "runs/p"


@pytest.fixture
def no_job(monkeypatch):
    """No job may begin."""
    monkeypatch.setattr(protocol, "runner", lambda *_: contextlib.nullcontext(lambda *_: pytest.fail("a job began")))


def eel(folder):
    paint(folder_data(folder, num_images=5), "test/eel/0.png")


def spoilt(folder):
    (folder_data(folder, num_images=5) / "test" / "cat" / "0.png").write_bytes(b"\x89PNG no more")


@pytest.mark.parametrize(
    ("flags", "make", "sentence"),
    [
        (FOLDER, lambda path: folder_data(path, ("train",), num_images=5), "--train-final: --data-dir .: there is no"),
        (FOLDER, eel, "--train-final: --data-dir .: training and test images differ in their classes (eel)"),
        (FOLDER, spoilt, "--train-final: test/cat/0.png: cannot be read as an image"),
        (FOLDER, lambda path: folder_data(path, classes=("cat",)), "train holds 1 class folder"),
        (FOLDER, lambda path: folder_data(path, num_images=2), "--selection-fraction 0.2: 4 images would give 1"),
        ([*DIGITS, "--selection-fraction=0.001"], Path.exists, "0.001: 40 images would give 0 to compare cells"),
        ([*DIGITS, "--selection-fraction=0.999"], Path.exists, "would give 40 to compare cells, 0 for the weights"),
        ([*DIGITS, "--candidates", "DARTS_V2", "own.json"], Path.exists, "--candidates: genotype own.json: there"),
    ],
)
@pytest.mark.parametrize("more", [[], [BUDGET, "--dry-run"]], ids=" ".join)
def test_what_would_end_a_later_stage_is_said_before_the_first(tmp_path, no_job, capfd, flags, make, sentence, more):
    make(tmp_path)
    before = content(tmp_path)
    assert call("search", tmp_path, *flags, *SMALL, *more) == 2
    error = capfd.readouterr().err
    assert sentence in error
    assert (error[:7], error.count("\n")) == ("error: ", 1)
    assert {path: each for path, each in content(tmp_path).items() if ".nas-" not in path} == before


def test_a_name_that_is_taken_is_refused_before_the_time_is_planned(tmp_path, no_job, capfd):
    (tmp_path / RUN).mkdir(parents=True)
    assert call("search", tmp_path, *DIGITS, *SMALL, BUDGET) == 2
    assert capfd.readouterr().err.startswith("error: --name p: runs/p exists already")


def test_a_genotype_of_a_planned_search_is_not_overwritten(tmp_path, no_job, monkeypatch, capfd):
    few = budget.Plan(budget_s=9e3, speeds={})
    few.stages["search"] = budget.Stage(flags={"selection": {"searches": 3}}, planned_s=1.0)
    monkeypatch.setattr(protocol, "make_plan", lambda *_: few)
    (tmp_path / "genotypes").mkdir()
    (tmp_path / "genotypes" / "p-seed2.json").write_text("mine")
    assert call("search", tmp_path, *DIGITS, *SMALL, BUDGET) == 2
    assert capfd.readouterr().err == "error: --name p: genotypes/p-seed2.json exists already; choose another --name.\n"
    assert not (tmp_path / RUN).exists()


@pytest.mark.parametrize("where", ["dry_run_of", "speed_in"], ids=["before a dry run", "after it"])
@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C."),
        (Stopped("by SIGTERM.", 143), 143, "stopped: by SIGTERM."),
        (OSError(errno.ENOSPC, "No space left on device", "plan"), 2, "error: plan: No space left on device."),
    ],
)
def test_what_ends_the_planning_is_one_sentence_and_leaves_nothing(
    tmp_path, monkeypatch, capfd, where, raised, code, said
):
    def end(*_):
        raise raised

    (tmp_path / "here").mkdir()
    (tmp_path / "aside").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "aside"))
    monkeypatch.setattr(protocol, "runner", lambda *_: contextlib.nullcontext(lambda jobs, tick: touch(jobs[0].output)))
    monkeypatch.setattr(measure, where, end)
    assert call("search", tmp_path / "here", *DIGITS, *SMALL, BUDGET) == code
    assert capfd.readouterr().err == said + "\n"
    assert [*tmp_path.glob("*/**/*")] == []


def touch(file):
    """What a job does that prints nothing."""
    file.touch()
    return []


def test_a_disk_that_is_full_when_the_folder_is_made_leaves_none(tmp_path, monkeypatch, capfd):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(protocol, "runner", in_this_process(tmp_path))
    monkeypatch.setattr(protocol, "candidate_files", fail)
    assert call("search", tmp_path, *DIGITS, *SMALL) == 2
    assert capfd.readouterr().err == "error: --run-dir: runs/p cannot be made (No space left on device).\n"
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


@pytest.fixture
def copy(whole_path, tmp_path, monkeypatch):
    """A copy of the folder of a finished run, to be spoilt and resumed."""
    monkeypatch.setattr(protocol, "runner", in_this_process(tmp_path))
    return shutil.copytree(whole_path, tmp_path, dirs_exist_ok=True)


LATER = ["table-2.json", "table-4.json", "table.json", "final", "report.html"]  # than the first brief trainings


@pytest.mark.parametrize("gone", [["table-1.json"], ["table-1.json", *LATER], LATER, ["final"]], ids=" ".join)
def test_whatever_a_kill_or_a_user_removed_the_result_is_the_same(whole_path, copy, gone):
    for name in gone:
        path = copy / RUN / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    asides = [*(f"{RUN}/.{name}.4711" for name in ("table-2.json", "random0.json", "p-seed0.config.json"))]
    asides += ["genotypes/.p.json.4711", "genotypes/.p-seed0.json.4711"]
    for name in asides:  # what is left of a file that was being written
        (copy / name).write_text("half")
    assert call("search", copy, GO_ON) == 0
    assert [path.name for path in copy.rglob(".*")] == []
    for table in ("table-1.json", "table-2.json", "table-4.json", "table.json"):
        assert (copy / RUN / table).read_bytes() == (whole_path / RUN / table).read_bytes()
    weights = "runs/p/final/weights.safetensors"
    assert (copy / weights).read_bytes() == (whole_path / weights).read_bytes()


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("table-1.json", lambda rows: rows[1:]),
        ("table-2.json", lambda rows: [rows[0] | {"genotype": rows[1]["genotype"]}, *rows[1:]]),
        (
            "table-1.json",
            lambda rows: [row | {"seeds": [], "runner_up_seeds": [], "random_seeds": [0]} for row in rows],
        ),
        ("table-2.json", lambda rows: [rows[0] | {"holdout_accuracy": 2.0}, *rows[1:]]),
    ],
)
def test_a_table_of_other_cells_is_one_sentence(copy, capfd, name, spoil):
    path = copy / RUN / name
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"cells": spoil(table["cells"])}))
    capfd.readouterr()
    assert call("search", copy, GO_ON) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(rf"error: table runs/p/{name}: .*move it away, then resume\.\n", error)


def test_images_that_changed_between_two_jobs_are_refused_by_name(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(protocol, "runner", in_this_process(tmp_path))
    folder_data(tmp_path, num_images=10)
    brief = ["--derive-top=1", "--selection-epochs=1", "--random-baseline=1"]
    assert call("search", tmp_path, *FOLDER, *SMALL, *brief) == 0
    shutil.rmtree(tmp_path / RUN / "retrained-random0")
    (tmp_path / RUN / "table-1.json").unlink()
    shutil.move(tmp_path / "train", tmp_path / "before")
    assert call("search", tmp_path, GO_ON) == 2
    assert "error: --data-dir .: there is no folder train" in capfd.readouterr().err
    shutil.copytree(tmp_path / "before", tmp_path / "train")
    paint(tmp_path, "train/cat/more.png")
    assert call("search", tmp_path, GO_ON) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: runs/p/retrained-random0: it learned from other images than runs/p/p-seed0; ")
