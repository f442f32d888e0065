"""Runs that are stopped, killed, resumed, refused: whatever happens, the end is that of a run left alone, bit for bit.

Most of it happens in this process, through `call`, as starting torch takes longer than the runs.
"""

import contextlib
import functools
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from nas.bilevel.step import Bilevel
from nas.config.cli import parse
from nas.data import datasets
from nas.data.loader import Loader
from nas.report.run_data import read_run
from nas.runs import checkpoint
from nas.runs.checkpoint import Manifest
from nas.search_space import pictures
from nas.training import loop
from tests import torture
from tests.bad_calls import content
from tests.in_process import MAINS, TWO, call

SCRIPTS = list(MAINS)
# What makes the runs of `torture` still shorter, or gives them more steps.
DRAWN = ["--relaxation=dirichlet", "--smoothing=random", "--beta-decay=0.1"]  # each step draws numbers of its own
FLAGS = {"search": ["--num-nodes=1", *DRAWN], "train_final": ["--batch-size=4"]}
STEPS = {"search": 12, "train_final": 36}
STOPPED_AT = {"search": 8, "train_final": 32}  # within the second epoch of two
RUN = Path("runs", "run")
GO_ON = "--resume=runs/run"
EVERY_STEP = "--checkpoint-minutes=0"


def flags(script, *more, epochs=2):
    return torture.command(script, epochs, *FLAGS[script], *more)[2:]


@contextlib.contextmanager
def at_step(step, act):
    """Call `act` inside one step, counted from 1, of a run in this process: after it is computed, before it counts."""
    read, steps = loop.scalars_to_host, itertools.count(1)

    def read_and_act(*arguments):
        result = read(*arguments)
        if next(steps) == step:
            act()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "scalars_to_host", read_and_act)
        yield


def once():
    signal.raise_signal(signal.SIGTERM)


def twice():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def manifest(path):
    with safe_open(path, framework="pt") as file:
        return Manifest.model_validate_json(file.metadata()["manifest"])


def log(folder):
    return (folder / RUN / "log.txt").read_text()


def is_one_sentence(error, beginning):
    return error.startswith(beginning) and error.count("\n") == 1


def assert_refused(script, folder, capfd, sentence, *more):
    """A resume ends with one sentence, and leaves all files as they were."""
    before = content(folder)
    assert call(script, folder, GO_ON, *more) == 2
    error = capfd.readouterr().err
    assert is_one_sentence(error, f"error: {sentence}"), error
    assert content(folder) == before


@pytest.fixture(scope="module", autouse=True)
def quicker():
    """The runs in this process draw, and read, the same things again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_render", functools.cache(pictures._render))
        patch.setattr(datasets, "_load_digits", functools.cache(datasets._load_digits))
        yield


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """By script, a folder with a run that was never stopped."""
    folders = {script: tmp_path_factory.mktemp("undisturbed") for script in SCRIPTS}
    for script, folder in folders.items():
        assert call(script, folder, *flags(script)) == 0
    return folders


@pytest.fixture(scope="module")
def stopped_runs(tmp_path_factory):
    """By script, a folder with a run that was stopped within its second epoch, and a checkpoint of the step before."""
    folders = {script: tmp_path_factory.mktemp("stopped") for script in SCRIPTS}
    for script, folder in folders.items():
        with at_step(STOPPED_AT[script] + 1, twice):
            assert call(script, folder, *flags(script, EVERY_STEP)) == 130
    return folders


@pytest.fixture
def stopped(stopped_runs, tmp_path):
    """Makes a copy of such a folder, to be resumed or spoilt."""

    def copy(script):
        return shutil.copytree(stopped_runs[script], tmp_path / "stopped")

    return copy


# The same bits


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_stopped_within_an_epoch_and_resumed_ends_with_the_same_bits(script, stopped, undisturbed):
    folder = stopped(script)
    progress = manifest(folder / RUN / checkpoint.CURRENT).progress
    assert (progress.steps, progress.epochs) == (STOPPED_AT[script], 1)
    assert call(script, folder, GO_ON) == 0
    assert torture.differences(script, undisturbed[script], folder) == []
    assert f"resumed after step {STOPPED_AT[script]}, 1 epoch finished" in log(folder)
    last = manifest(folder / RUN / checkpoint.CURRENT)
    assert (last.progress.steps, last.progress.epochs, last.finished) == (STEPS[script], 2, True)
    for name, values in torture.events(folder).items():
        steps = [step for step, _ in values]
        assert steps == sorted(set(steps)), name


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_balanced_run_resumes_alike_and_is_another_than_one_that_is_not(script, tmp_path, undisturbed):
    left_alone, resumed = tmp_path / "left alone", tmp_path / "resumed"
    for folder in (left_alone, resumed):
        folder.mkdir()
    assert call(script, left_alone, *flags(script, "--balanced")) == 0
    with at_step(STOPPED_AT[script], once):
        assert call(script, resumed, *flags(script, "--balanced")) == 143
    assert call(script, resumed, GO_ON) == 0
    assert torture.differences(script, left_alone, resumed) == []
    assert torture.differences(script, left_alone, undisturbed[script]) != []


@pytest.mark.parametrize("script", SCRIPTS)
def test_whether_a_run_is_balanced_holds(script, stopped, capfd):
    assert call(script, stopped(script), GO_ON, "--balanced") == 2
    assert is_one_sentence(
        capfd.readouterr().err, "error: --balanced True: the run in runs/run has False, which cannot change"
    )


def test_a_search_stopped_at_the_last_step_of_an_epoch_resumes_alike(tmp_path, undisturbed):
    with at_step(6, once):
        assert call("search", tmp_path, *flags("search")) == 143
    assert call("search", tmp_path, GO_ON) == 0
    assert torture.differences("search", undisturbed["search"], tmp_path) == []


def process(script, folder, *arguments):
    command = [sys.executable, str(torture.ROOT / f"{script}.py"), *arguments]
    environment = os.environ | {"NO_COLOR": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for_a_record(folder, running):
    path, end = folder / RUN / "metrics.jsonl", time.monotonic() + 120
    while not (path.exists() and path.stat().st_size):
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.parametrize(("script", "number"), [("search", signal.SIGTERM), ("train_final", signal.SIGINT)])
def test_a_signal_ends_a_process_after_its_step_and_the_command_it_prints_goes_on(
    script, number, tmp_path, undisturbed
):
    running = process(script, tmp_path, *flags(script))
    wait_for_a_record(tmp_path, running)
    running.send_signal(number)
    _, error = running.communicate(timeout=120)
    assert running.returncode == 128 + number
    assert "Traceback" not in error
    said = re.search(r"\nstopped: after step (\d+); resume with: python (.*)\n$", error)
    assert said, error
    assert manifest(tmp_path / RUN / checkpoint.CURRENT).progress.steps == int(said[1]) < STEPS[script]
    assert f"stopped: after step {said[1]}" in log(tmp_path)
    name, *arguments = shlex.split(said[2])
    assert name == f"{script}.py"
    assert call(script, tmp_path, *arguments) == 0
    assert torture.differences(script, undisturbed[script], tmp_path) == []


@pytest.mark.parametrize("name", ["write_bytes", "replace"])
def test_signals_inside_the_writing_of_a_checkpoint_leave_a_good_one(name, tmp_path, undisturbed, monkeypatch):
    """Before it is written, and in the instant in which there is the previous one alone."""
    where = {"write_bytes": Path, "replace": os}[name]
    function, calls = getattr(where, name), itertools.count(1)

    def interrupted(path, *rest):
        if str(path).rpartition("/")[2].startswith(".checkpoint") and next(calls) == 15:
            twice()
        return function(path, *rest)

    monkeypatch.setattr(where, name, interrupted)
    assert call("train_final", tmp_path, *flags("train_final", EVERY_STEP)) == 130
    assert (tmp_path / RUN / checkpoint.CURRENT).exists() == (name == "write_bytes")
    assert call("train_final", tmp_path, GO_ON) == 0
    assert "resumed after step 13," in log(tmp_path)  # the first checkpoint is that of step 0
    assert torture.differences("train_final", undisturbed["train_final"], tmp_path) == []


@pytest.mark.slow  # as is tests/torture.py, which does it thirty times
def test_a_search_that_is_killed_twice_ends_the_same(tmp_path, monkeypatch):
    # With alphas that stay where they are no cell is drawn anew, which is what takes time.
    monkeypatch.setitem(torture.COMMANDS, "search", [*torture.COMMANDS["search"], *FLAGS["search"], "--alpha-lr=1e-7"])
    monkeypatch.setitem(torture.STEPS_AN_EPOCH, "search", 100)  # two epochs are enough
    # Of this seed the first kill falls into the start, the second one into a checkpoint.
    kills, _, different = torture.torture("search", 2, seed=4, folder=tmp_path)
    assert different == []
    assert (kills.before_the_folder, kills.total()) == (1, 2)


# Flags


CHANGES = [
    ("search", "--batch-size=16", "--batch-size 16: the run in runs/run has 8"),
    ("search", "--batch_size=16", "--batch-size 16: the run in runs/run has 8"),
    ("search", "--lower-lr=0.1", "--lower-lr 0.1: the run in runs/run has 0.025"),
    ("search", "--seed=7", "--seed 7: the run in runs/run has 0"),
    ("search", "--num-nodes=4", "--num-nodes 4: the run in runs/run has 1"),
    ("search", "--train-limit=50", "--train-limit 50: the run in runs/run has 96"),
    ("search", "--share-lower-step", "--share-lower-step True: the run in runs/run has False"),
    ("search", "--hypergradient=first-order", "--hypergradient first-order: the run in runs/run has onestage"),
    ("search", "--name=other", "--name other: the run in runs/run has run"),
    ("search", "--epochs=1", "--epochs 1: the run already has 2"),
    ("train_final", "--lr=0.1", "--lr 0.1: the run in runs/run has 0.025"),
    ("train_final", "--genotype=DARTS_V1", "--genotype DARTS_V1: the run in runs/run has DARTS_V2"),
    ("train_final", "--holdout-fraction=0", "--holdout-fraction 0.0: the run in runs/run has 0.25"),
    ("train_final", "--epochs=1", "--epochs 1: the run already has 2"),
]


@pytest.mark.parametrize(("script", "flag", "sentence"), CHANGES)
def test_a_flag_that_would_make_another_run_is_refused_by_name(script, flag, sentence, stopped_runs, capfd):
    assert_refused(script, stopped_runs[script], capfd, sentence, flag)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_first_command_with_resume_added_goes_on(script, stopped, undisturbed, monkeypatch):
    folder = stopped(script)
    monkeypatch.chdir(folder)
    _, kind = MAINS[script]
    arguments = [*flags(script), GO_ON]
    assert parse(kind, arguments).run.checkpoint_minutes == 0  # what is not given is that of the run
    if script == "train_final":  # the quicker one
        assert call(script, folder, *arguments) == 0
        assert torture.differences(script, undisturbed[script], folder) == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_finished_run_says_so_and_goes_on_with_more_epochs_alone(script, undisturbed, tmp_path, capfd):
    folder = shutil.copytree(undisturbed[script], tmp_path / "finished")
    before = content(folder)
    assert call(script, folder, GO_ON) == 0
    assert capfd.readouterr().out.startswith("runs/run: finished after 2 epochs")
    assert content(folder) == before
    assert call(script, folder, GO_ON, "--epochs=3") == 0
    assert "epochs: 2 before, 3 from here on" in log(folder)
    group = {"search": "lower", "train_final": "training"}[script]
    assert json.loads((folder / RUN / "config.json").read_text())["config"][group]["epochs"] == 3
    last = manifest(folder / RUN / checkpoint.CURRENT)
    assert (last.progress.epochs, last.progress.steps, last.finished) == (3, STEPS[script] * 3 // 2, True)


@pytest.mark.parametrize(("script", "other"), [SCRIPTS, SCRIPTS[::-1]])
def test_a_run_of_the_other_script_is_refused_with_the_right_command(script, other, stopped_runs, capfd):
    before = content(stopped_runs[script])
    assert call(other, stopped_runs[script], GO_ON) == 2
    assert f"belongs to {script}.py; use: python {script}.py --resume runs/run." in capfd.readouterr().err
    assert content(stopped_runs[script]) == before


def test_a_config_edited_by_hand_is_refused_by_name(stopped, capfd):
    folder = stopped("search")
    path = folder / RUN / "config.json"
    path.write_text(path.read_text().replace('"lower_lr": 0.025', '"lower_lr": 0.05'))
    assert_refused(
        "search", folder, capfd, "--resume runs/run: lower_lr is 0.05 in config.json, 0.025 in the checkpoint"
    )


def test_a_checkpoint_of_flags_that_there_are_not_is_refused(stopped, capfd):
    folder = stopped("train_final")
    path = folder / RUN / checkpoint.CURRENT
    crafted = manifest(path).model_copy(update={"config": {"odd": {"flag": 1}}})
    checkpoint.save(folder / RUN, load_file(path), crafted)
    assert_refused("train_final", folder, capfd, "--resume runs/run: flag is None in config.json, 1 in the checkpoint")


# One writer


def test_a_folder_in_use_is_refused_and_the_lock_of_a_dead_process_is_not(stopped, undisturbed, capfd):
    folder = stopped("train_final")
    lock, process = folder / RUN / "lock", folder / RUN / "pid"
    assert re.fullmatch(r"\d+\n", process.read_text())
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys, time; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); "
            "time.sleep(60)",
            str(lock),
        ],
        stdout=subprocess.PIPE,
    )
    holder.stdout.readline()
    process.write_text(f"{holder.pid}\n")
    assert_refused("train_final", folder, capfd, f"--resume runs/run: process {holder.pid} is writing to it")
    holder.kill()
    holder.communicate()
    assert call("train_final", folder, GO_ON) == 0
    assert process.read_text() == f"{os.getpid()}\n"
    assert torture.differences("train_final", undisturbed["train_final"], folder) == []


# Disks


@contextlib.contextmanager
def mounted(path, *options):
    """Mount a file system; the test is skipped where that is not allowed."""
    path.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(path)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"may not mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def test_a_process_whose_files_may_not_grow_ends_in_one_sentence_and_goes_on_later(tmp_path, undisturbed):
    running = process("search", tmp_path, *flags("search", EVERY_STEP))
    wait_for_a_record(tmp_path, running)
    resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    _, error = running.communicate(timeout=120)
    assert running.returncode == 1
    said = re.fullmatch(
        r"stopped: runs/run\S*: File too large; the checkpoint of step (\d+) is kept; resume with: "
        r"python search\.py --resume runs/run\n",
        error,
    )
    assert said, error
    assert manifest(tmp_path / RUN / checkpoint.CURRENT).progress.steps == int(said[1])
    assert list((tmp_path / RUN).glob(".*")) == []
    assert call("search", tmp_path, GO_ON) == 0
    assert torture.differences("search", undisturbed["search"], tmp_path) == []


@pytest.mark.parametrize("checkpoints", [2.5, 1.5, 0.5])
def test_a_full_disk_ends_in_one_sentence_and_the_run_goes_on_when_there_is_space(
    checkpoints, tmp_path, undisturbed, capfd
):
    """Space for so many checkpoints: three are there while one is written, for the weights alone it takes less."""
    size = (undisturbed["train_final"] / RUN / checkpoint.CURRENT).stat().st_size
    num_bytes = round(checkpoints * size)
    runs = tmp_path / "runs"
    with mounted(runs, "-t", "tmpfs", "-o", f"size={num_bytes}", "nas-test"):
        assert call("train_final", tmp_path, *flags("train_final", EVERY_STEP)) == 1
        error = capfd.readouterr().err
        kept = "no step is kept" if checkpoints < 1 else f"the checkpoint of step {int(checkpoints) - 1} is kept"
        go_on = f"{kept}; resume with: python train_final.py --resume runs/run\n"
        assert is_one_sentence(error, "stopped: runs/run"), error
        assert f": No space left on device; {go_on}" in error
        if checkpoints > 1:
            assert manifest(runs / "run" / checkpoint.CURRENT).progress.steps == int(checkpoints) - 1
        assert call("train_final", tmp_path, GO_ON) in (1, 2)
        assert is_one_sentence(error := capfd.readouterr().err, ("stopped: ", "error: ")), error
        subprocess.run(["mount", "-o", "remount,size=100m", str(runs)], check=True)
        assert call("train_final", tmp_path, GO_ON) == 0
        assert torture.differences("train_final", undisturbed["train_final"], tmp_path) == []


def test_a_run_folder_that_cannot_be_written_is_refused(stopped, capfd):
    folder = stopped("train_final")
    path, before = folder / RUN, content(folder)
    if os.geteuid():
        modes = {entry: entry.stat().st_mode for entry in (path, *path.rglob("*"))}
        for entry, mode in modes.items():
            entry.chmod(mode & ~0o222)
        assert call("train_final", folder, GO_ON) == 2
        for entry, mode in modes.items():
            entry.chmod(mode)
    else:  # whom permissions do not bind
        with mounted(path, "--bind", str(path)):
            subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
            assert call("train_final", folder, GO_ON) == 2
    error = capfd.readouterr().err
    assert is_one_sentence(error, "error: --resume runs/run: cannot be written (")
    assert content(folder) == before


def test_a_folder_of_runs_that_cannot_be_written_is_refused(tmp_path, capfd):
    runs = tmp_path / "runs"
    runs.mkdir()
    if os.geteuid():
        runs.chmod(0o500)
        assert call("train_final", tmp_path, *flags("train_final")) == 2
    else:
        with mounted(runs, "-t", "tmpfs", "-o", "ro", "nas-test"):
            assert call("train_final", tmp_path, *flags("train_final")) == 2
    assert is_one_sentence(capfd.readouterr().err, "error: --run-dir: runs/run cannot be made (")


# Damage


def rewrite(change):
    """Damage to a file's bytes."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def flip(share):
    """One bit, at a share of the file's length."""

    def change(data):
        index = int(share * (len(data) - 1))
        return data[:index] + bytes([data[index] ^ 16]) + data[index + 1 :]

    return rewrite(change)


def send_outside(path):
    """A checkpoint that is whole, but says that a file outside the run folder is to be cut."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["manifest"])
    content["sizes"]["../../precious"] = 0
    content["progress"] = checkpoint.LoopState(**content["progress"])
    crafted = Manifest.model_construct(**content)
    kept = path.with_name(checkpoint.PREVIOUS).read_bytes()
    checkpoint.save(path.parent, load_file(path), crafted)
    path.with_name(checkpoint.PREVIOUS).write_bytes(kept)


DAMAGES = {
    "truncated": rewrite(lambda data: data[: len(data) // 2]),
    "empty": rewrite(lambda data: b""),
    "a bit of a tensor": flip(0.9),
    "the length of the header": flip(0),
    "a digit of the manifest": rewrite(lambda data: data.replace(b'\\"steps\\":32', b'\\"steps\\":31')),
    "another file": rewrite(lambda data: b"\x80\x04" + data),
    "sizes outside": send_outside,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_with_a_damaged_checkpoint_the_one_before_it_serves(damage, stopped, undisturbed):
    folder = stopped("train_final")
    (folder / "precious").write_text("kept")
    whole = (folder / RUN / checkpoint.CURRENT).read_bytes()
    DAMAGES[damage](folder / RUN / checkpoint.CURRENT)
    assert (folder / RUN / checkpoint.CURRENT).read_bytes() != whole
    assert call("train_final", folder, GO_ON) == 0
    assert re.search(
        r"checkpoint runs/run/checkpoint\.safetensors: .*Resuming from the previous checkpoint", log(folder)
    )
    assert f"resumed after step {STOPPED_AT['train_final'] - 1}," in log(folder)
    assert torture.differences("train_final", undisturbed["train_final"], folder) == []
    assert (folder / "precious").read_text() == "kept"


def test_without_any_good_checkpoint_the_run_is_refused(stopped, capfd):
    folder = stopped("train_final")
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (folder / RUN / name).write_bytes(b"")
    metrics = (folder / RUN / "metrics.jsonl").read_bytes()
    assert call("train_final", folder, GO_ON) == 2
    error = capfd.readouterr().err
    assert is_one_sentence(error, "error: checkpoint runs/run/checkpoint.safetensors: damaged")
    assert "start a new run" in error
    assert (folder / RUN / "metrics.jsonl").read_bytes() == metrics


def test_a_run_whose_checkpoints_are_gone_keeps_its_records(stopped, capfd):
    folder = stopped("train_final")
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        (folder / RUN / name).unlink()
    metrics = (folder / RUN / "metrics.jsonl").read_bytes()
    assert call("train_final", folder, GO_ON) == 2
    error = capfd.readouterr().err
    assert is_one_sentence(error, "error: --resume runs/run: its checkpoints are gone, though runs/run/metrics.jsonl")
    assert (folder / RUN / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "config.json", "tensorboard", "lock", "pid", "cells/x"])
@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_a_run_folder_is_refused_and_its_target_is_left_alone(name, link, stopped, capfd):
    folder = stopped("train_final")
    target, path = folder / "precious", folder / RUN / name
    if name == "tensorboard":
        path.rename(target)
        if link is os.link:  # there are none of folders
            target, path = target / "events.out.tfevents.1", path / "events.out.tfevents.1"
            path.parent.mkdir()
            target.write_text("kept")
    elif path.exists():
        path.rename(target)
    else:
        target.write_text("kept")
    link(target, path)
    assert_refused("train_final", folder, capfd, f"--resume runs/run: {path.relative_to(folder)} is a link")


def test_curves_are_there_again_after_tensorboards_folder_was_deleted(tmp_path, undisturbed):
    with at_step(15, lambda: shutil.rmtree(tmp_path / RUN / "tensorboard")):
        assert call("train_final", tmp_path, *flags("train_final")) == 0
    assert "tensorboard was removed: its curves are those of metrics.jsonl" in log(tmp_path)
    assert torture.differences("train_final", undisturbed["train_final"], tmp_path) == []


def test_curves_are_there_again_where_the_folder_was_deleted_between_stop_and_resume(stopped, undisturbed):
    folder = stopped("train_final")
    shutil.rmtree(folder / RUN / "tensorboard")
    assert call("train_final", folder, GO_ON) == 0
    assert "tensorboard was removed" in log(folder)
    assert torture.differences("train_final", undisturbed["train_final"], folder) == []


def test_curves_are_there_again_where_the_folder_was_deleted_just_before_the_stop(tmp_path, undisturbed):
    def delete_and_stop():
        shutil.rmtree(tmp_path / RUN / "tensorboard")
        signal.raise_signal(signal.SIGTERM)

    with at_step(15, delete_and_stop):  # no record follows before the checkpoint
        assert call("train_final", tmp_path, *flags("train_final")) == 143
    assert call("train_final", tmp_path, GO_ON) == 0
    assert torture.differences("train_final", undisturbed["train_final"], tmp_path) == []


# Images


@pytest.fixture
def stopped_on_a_folder(tmp_path):
    """A training on a folder of images that was stopped."""
    for part in ("train", "test"):
        for shade, name in enumerate(("ant", "bee")):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for index in range(8):
                image = Image.new("RGB", (8, 8), (100 * shade, 20 * index, 0))
                image.save(tmp_path / "images" / part / name / f"{index}.png")
    arguments = ["--dataset=folder", "--data-dir=images", "--image-size=8", "--batch-size=4", "--init-channels=2"]
    arguments += ["--genotype=DARTS_V2", "--num-cells=3", "--epochs=2", "--name=run"]
    with at_step(2, once):
        assert call("train_final", tmp_path, *arguments) == 143
    return tmp_path


@pytest.mark.parametrize("part", ["train", "test"])
def test_other_images_are_refused_and_the_same_ones_elsewhere_are_not(part, stopped_on_a_folder, capfd):
    folder = stopped_on_a_folder
    shutil.copytree(folder / "images", folder / "elsewhere")
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "images" / part / "ant" / "0.png")
    assert call("train_final", folder, GO_ON) == 2
    error = capfd.readouterr().err
    assert is_one_sentence(error, "error: --resume runs/run: the images are not those of the run (fingerprint ")
    assert call("train_final", folder, GO_ON, "--data-dir=elsewhere") == 0
    assert "data_dir: images before, elsewhere from here on" in log(folder)


def test_a_mistyped_folder_leaves_the_run_as_it_was(stopped_on_a_folder, capfd):
    folder = stopped_on_a_folder
    before = (folder / RUN / "config.json").read_bytes()
    assert call("train_final", folder, GO_ON, "--data-dir=imgaes", "--epochs=30") == 2
    assert "there is no folder imgaes/train" in capfd.readouterr().err
    assert (folder / RUN / "config.json").read_bytes() == before


# Numbers that go wrong


FEW = ["--dataset=digits", "--train-limit=16", "--init-channels=2", "--num-cells=3", "--batch-size=4", "--name=run"]
FEW_STEPS = {
    # 12 images for the weights: 3 steps.
    "search": [*FEW, "--num-nodes=1", *TWO, "--upper-fraction=0.25", "--hypergradient=first-order", "--epochs=1"],
    "train_final": [*FEW, "--genotype=DARTS_V2", "--train-limit=12", "--epochs=2"],
}


# What is spoilt after the second step of the weights: a scalar of it, or a tensor that it moves.
SPOILT_STEPS = {
    "lower/step_loss is nan": "--lower-lr",
    "lower/gradient_norm is nan": "--lower-lr",
    "lower/weights_norm is nan": "--lower-lr",
    "supernet.classifier.bias is not finite": "--lower-lr",
    "alphas.normal is not finite": "--alpha-lr",
}


def spoil_images(monkeypatch, bad_steps, purpose):
    """Images that are no numbers, in some steps counted from 1."""
    batch, chosen = Loader.batch, []

    def spoilt(self, step):
        found = batch(self, step)
        if step + 1 in bad_steps and self.purpose == purpose:
            chosen.append(found.classes.tolist())
            found = found._replace(images=found.images * torch.nan)
        return found

    monkeypatch.setattr(Loader, "batch", spoilt)
    return chosen


def assert_the_step_was_undone(folder, steps):
    """The state is that of the step before, bit for bit, though the step is counted."""
    path = folder / RUN
    now, before = (load_file(path / name) for name in (checkpoint.CURRENT, checkpoint.PREVIOUS))
    assert [name for name in now.keys() | before.keys() if not torture.same(now, before, name)] == []
    progress, previous = (manifest(path / name).progress for name in (checkpoint.CURRENT, checkpoint.PREVIOUS))
    assert (progress.steps, progress.bad_steps) == (steps, 1)
    assert (previous.steps, previous.bad_steps) == (steps - 1, 0)
    assert (progress.loss, progress.num_images) == (previous.loss, previous.num_images)


@pytest.mark.parametrize(("quantity", "flag"), SPOILT_STEPS.items())
def test_a_step_of_the_search_that_is_not_finite_is_undone_and_named(quantity, flag, tmp_path, monkeypatch, capfd):
    weight_step, steps, name = Bilevel.weight_step, itertools.count(1), quantity.split()[0]

    def spoilt_step(bilevel, train):
        found = weight_step(bilevel, train)
        if next(steps) == 2:
            (found | bilevel.state())[name].detach().flatten()[0] = torch.nan
        return found

    monkeypatch.setattr(Bilevel, "weight_step", spoilt_step)
    assert call("search", tmp_path, *FEW_STEPS["search"], EVERY_STEP, "--max-bad-steps=1") == 1
    error = capfd.readouterr().err
    assert is_one_sentence(error, f"stopped: the last step was not finite, because {quantity}.")
    assert f"a smaller {flag};" in error
    assert f"step 2 is not applied: {quantity}. lower batch: 4 images (" in log(tmp_path)
    assert_the_step_was_undone(tmp_path, steps=2)
    assert call("search", tmp_path, GO_ON) == 0  # step 3 and the others are good ones


@pytest.mark.parametrize(
    ("script", "purpose", "said"),
    [
        ("search", "lower", "lower/step_loss is nan"),
        ("search", "upper", "the upper objective is nan"),
        ("train_final", "final", "train/step_loss is nan"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--balanced"]], ids=["", "balanced"])
def test_images_that_give_no_numbers_are_named_and_the_next_steps_go_on(
    script, purpose, said, more, tmp_path, monkeypatch
):
    chosen = spoil_images(monkeypatch, [1], purpose)
    assert call(script, tmp_path, *FEW_STEPS[script], *more) == 0
    line = next(line for line in log(tmp_path).splitlines() if "is not applied" in line)
    assert re.search(rf"step 1 is not applied: .*{said}", line)
    named = [int(number) for number in re.search(rf"{purpose} batch: 4 images \(([\d, ]+)\)", line)[1].split(", ")]
    limit = 16 if script == "search" else 12
    assert datasets.load("digits", Path(), "train", limit=limit).targets[named].tolist() == chosen[0]
    text = (tmp_path / RUN / "metrics.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert [record["steps/bad"] for record in records if "steps/bad" in record] == [1]
    assert not any("step_loss" in name for name in records[0])
    last = manifest(tmp_path / RUN / checkpoint.CURRENT)
    assert (last.progress.bad_steps, last.progress.bad_steps_in_a_row, last.finished) == (1, 0, True)
    tensors = load_file(tmp_path / RUN / checkpoint.CURRENT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    if script == "search":  # of three steps one is missing in Adam's count
        assert tensors["alpha_optimizer.0.step"] == 2


@pytest.mark.parametrize(("script", "purpose", "epochs"), [("search", "lower", 1), ("train_final", "final", 2)])
def test_where_no_step_is_applied_it_is_said_and_no_figure_is_made_up(
    script, purpose, epochs, tmp_path, monkeypatch, capfd
):
    spoil_images(monkeypatch, range(1, 100), purpose)
    assert call(script, tmp_path, *FEW_STEPS[script], "--max-bad-steps=99") == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum("is not applied: " in line for line in lines) == 3 * epochs
    lines = [line for line in lines if "is not applied: " not in line]  # these name what was not a number
    assert sum("no step was applied" in line for line in lines) == epochs
    assert not any("nan" in line for line in [*lines, (tmp_path / RUN / "metrics.jsonl").read_text()])
    series = read_run(tmp_path / RUN)["series"]
    assert [series.get(f"{level}/accuracy") for level in ("lower", "train")].count([None] * epochs) == 1


@pytest.mark.parametrize(
    ("script", "flag"), [("search", "--lower-lr"), ("search", "--alpha-lr"), ("train_final", "--lr")]
)
def test_a_learning_rate_that_is_far_too_large_stops_the_run_and_is_named(script, flag, tmp_path, capfd):
    assert call(script, tmp_path, *FEW_STEPS[script], f"{flag}=1e30", "--max-bad-steps=2") == 1
    error = capfd.readouterr().err
    assert is_one_sentence(error, "stopped: 2 steps in a row were not finite"), error
    assert f"a smaller {flag};" in error
    tensors = load_file(tmp_path / RUN / checkpoint.CURRENT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert manifest(tmp_path / RUN / checkpoint.CURRENT).progress.bad_steps == 2


# --deterministic


@pytest.fixture
def restored_determinism():
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_operation_that_is_not_deterministic_is_one_sentence(script, tmp_path, capfd):
    def not_deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    with at_step(2, not_deterministic):
        assert call(script, tmp_path, *FEW_STEPS[script], "--deterministic") == 1
    error = capfd.readouterr().err
    assert is_one_sentence(error, "stopped: put_ is not deterministic; leave out --deterministic"), error


@pytest.mark.usefixtures("restored_determinism")
def test_on_a_cpu_all_operations_are_deterministic(tmp_path):
    for script in SCRIPTS:
        (tmp_path / script).mkdir()
        assert call(script, tmp_path / script, *FEW_STEPS[script], "--deterministic") == 0
        assert torch.are_deterministic_algorithms_enabled()
