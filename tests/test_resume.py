"""Runs that are stopped, killed, resumed, refused: whatever happens, the end is that of a run left alone, bit for bit.

Most of it happens in this process, through `call`, as starting torch takes longer than the runs. What only the loop
sees is in `tests/training/test_loop.py`, on a toy.
"""

import contextlib
import itertools
import json
import os
import re
import resource
import shlex
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from nas.data import datasets
from nas.data.loader import Loader
from nas.report.run_data import read_run
from nas.runs import checkpoint
from nas.runs.checkpoint import Manifest
from nas.training import loop
from tests import torture
from tests.bad_calls import content
from tests.in_process import MAINS, TWO, call

SCRIPTS = list(MAINS)
# What makes the runs of `torture` still shorter.
DRAWN = ["--relaxation=dirichlet", "--smoothing=random", "--beta-decay=0.1"]  # each step draws numbers of its own
FLAGS = {"search": ["--num-nodes=1", *DRAWN], "train_final": []}
STEPS = {"search": 12, "train_final": 18}
STOPPED_AT = {"search": 8, "train_final": 14}  # within the second epoch of two
RUN = Path("runs", "run")
GO_ON = "--resume=runs/run"
EVERY_STEP = "--checkpoint-minutes=0"


def flags(script, *more):
    return torture.command(script, 2, *FLAGS[script], *more)[2:]


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


def stop_at_once():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def manifest(folder):
    with safe_open(folder / RUN / checkpoint.CURRENT, framework="pt") as file:
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
        with at_step(STOPPED_AT[script] + 1, stop_at_once):
            assert call(script, folder, *flags(script, EVERY_STEP)) == 130
    return folders


@pytest.fixture
def stopped(stopped_runs, tmp_path):
    """Makes a copy of such a folder, to be resumed or spoilt."""
    return lambda script: shutil.copytree(stopped_runs[script], tmp_path / "stopped")


# The same bits


@pytest.mark.parametrize(("script", "first_command"), [("search", []), ("train_final", flags("train_final"))])
def test_a_run_stopped_within_an_epoch_and_resumed_ends_with_the_same_bits(script, first_command, stopped, undisturbed):
    folder = stopped(script)
    progress = manifest(folder).progress
    assert (progress.steps, progress.epochs) == (STOPPED_AT[script], 1)
    assert call(script, folder, *first_command, GO_ON) == 0
    assert torture.differences(script, undisturbed[script], folder) == []
    assert f"resumed after step {STOPPED_AT[script]}, 1 epoch finished" in log(folder)
    last = manifest(folder)
    assert (last.progress.steps, last.progress.epochs, last.finished) == (STEPS[script], 2, True)
    assert last.config["run"]["checkpoint_minutes"] == 0  # what is not given is that of the run


def test_a_signal_ends_a_run_after_its_step_and_the_command_it_prints_goes_on(tmp_path, undisturbed, capfd):
    with at_step(4, lambda: signal.raise_signal(signal.SIGTERM)):
        assert call("search", tmp_path, *flags("search")) == 143
    error = capfd.readouterr().err
    assert "Traceback" not in error
    said = re.search(r"\nstopped: after step (\d+); resume with: python search\.py (.*)\n$", error)
    assert said, error
    assert manifest(tmp_path).progress.steps == int(said[1]) == 4
    assert f"stopped: after step {said[1]}" in log(tmp_path)
    assert call("search", tmp_path, *shlex.split(said[2])) == 0
    assert torture.differences("search", undisturbed["search"], tmp_path) == []


# Flags


@pytest.mark.parametrize(
    ("script", "flag", "sentence"),
    [
        ("search", "--batch_size=16", "--batch-size 16: the run in runs/run has 8, which cannot change"),
        ("search", "--seed=7", "--seed 7: the run in runs/run has 0"),
        ("search", "--train-limit=50", "--train-limit 50: the run in runs/run has 96"),
        ("search", "--share-lower-step", "--share-lower-step True: the run in runs/run has False"),
        ("search", "--name=other", "--name other: the run in runs/run has run"),
        ("search", "--epochs=1", "--epochs 1: the run already has 2"),
        ("train_final", "--genotype=DARTS_V1", "--genotype DARTS_V1: the run in runs/run has DARTS_V2"),
        ("train_final", "--holdout-fraction=0", "--holdout-fraction 0.0: the run in runs/run has 0.25"),
        ("train_final", "--balanced", "--balanced True: the run in runs/run has False"),
    ],
)
def test_a_flag_that_would_make_another_run_is_refused_by_name(script, flag, sentence, stopped_runs, capfd):
    assert_refused(script, stopped_runs[script], capfd, sentence, flag)


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
    last = manifest(folder)
    assert (last.progress.epochs, last.progress.steps, last.finished) == (3, STEPS[script] * 3 // 2, True)


def test_a_checkpoint_of_flags_that_there_are_not_is_refused(stopped, capfd):
    folder = stopped("train_final")
    crafted = manifest(folder).model_copy(update={"config": {"odd": {"flag": 1}}})
    checkpoint.save(folder / RUN, load_file(folder / RUN / checkpoint.CURRENT), crafted)
    assert_refused("train_final", folder, capfd, "--resume runs/run: flag is None in config.json, 1 in the checkpoint")


# Files


def test_a_run_whose_files_may_not_grow_ends_in_one_sentence_and_goes_on_later(tmp_path, undisturbed, capfd):
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with at_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))):
            codes = [call("search", tmp_path, *flags("search", EVERY_STEP)), call("search", tmp_path, GO_ON)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert codes == [1, 1]
    said = r"stopped: runs/run.*: File too large; the checkpoint of step 2 is kept; resume with: python search\.py .*\n"
    assert re.fullmatch(f"({said}){{2}}", capfd.readouterr().err)
    assert manifest(tmp_path).progress.steps == 2
    assert list((tmp_path / RUN).glob(".*")) == []
    assert call("search", tmp_path, GO_ON) == 0
    assert torture.differences("search", undisturbed["search"], tmp_path) == []


@pytest.mark.parametrize(
    ("link", "name"),
    [(os.symlink, "log.txt"), (os.symlink, "tensorboard"), (os.link, "lock"), (os.link, "cells/x")],
)
def test_a_link_in_a_run_folder_is_refused_and_its_target_is_left_alone(link, name, stopped, capfd):
    folder = stopped("train_final")
    target, path = folder / "precious", folder / RUN / name
    if path.exists():
        path.rename(target)
    else:
        target.write_text("kept")
    link(target, path)
    assert_refused("train_final", folder, capfd, f"--resume runs/run: {path.relative_to(folder)} is a link")


def test_other_images_are_refused_and_the_same_ones_elsewhere_are_not(tmp_path, capfd):
    names = [f"images/{part}/{name}/{index}.png" for part in ("train", "test") for name in "ab" for index in range(4)]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * number, 0, 0)).save(tmp_path / name)
    arguments = ["--dataset=folder", "--data-dir=images", "--image-size=8", "--batch-size=4", "--init-channels=2"]
    arguments += ["--genotype=DARTS_V2", "--num-cells=3", "--epochs=1", "--name=run"]
    with at_step(1, lambda: signal.raise_signal(signal.SIGTERM)):
        assert call("train_final", tmp_path, *arguments) == 143
    capfd.readouterr()
    shutil.copytree(tmp_path / "images", tmp_path / "elsewhere")
    assert_refused("train_final", tmp_path, capfd, "--data-dir imgaes: there is no folder imgaes", "--data-dir=imgaes")
    for changed in (names[0], names[-1]):  # one to train on, and one of the test set
        shutil.copytree(tmp_path / "elsewhere", tmp_path / "images", dirs_exist_ok=True)
        Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / changed)
        assert call("train_final", tmp_path, GO_ON) == 2
        error = capfd.readouterr().err
        assert is_one_sentence(error, "error: --resume runs/run: the images are not those of the run (fingerprint ")
    assert call("train_final", tmp_path, GO_ON, "--data-dir=elsewhere") == 0
    assert "data_dir: images before, elsewhere from here on" in log(tmp_path)


# Numbers that go wrong


FEW = ["--dataset=digits", "--train-limit=16", "--init-channels=2", "--num-cells=3", "--batch-size=4", "--name=run"]
FEW_STEPS = {
    # 12 images for the weights: 3 steps.
    "search": [*FEW, "--num-nodes=1", *TWO, "--upper-fraction=0.25", "--hypergradient=first-order", "--epochs=1"],
    "train_final": [*FEW, "--genotype=DARTS_V2", "--train-limit=12", "--epochs=2"],
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


@pytest.mark.parametrize(
    ("script", "purpose", "said"),
    [
        ("search", "lower", "lower/step_loss is nan"),
        ("search", "upper", "the upper objective is nan"),
        ("train_final", "final", "train/step_loss is nan"),
    ],
)
def test_images_that_give_no_numbers_are_named_and_the_next_steps_go_on(script, purpose, said, tmp_path, monkeypatch):
    chosen = spoil_images(monkeypatch, [1], purpose)
    assert call(script, tmp_path, *FEW_STEPS[script], "--balanced") == 0
    line = next(line for line in log(tmp_path).splitlines() if "is not applied" in line)
    assert re.search(rf"step 1 is not applied: .*{said}", line)
    named = [int(number) for number in re.search(rf"{purpose} batch: 4 images \(([\d, ]+)\)", line)[1].split(", ")]
    limit = 16 if script == "search" else 12
    assert datasets.load("digits", Path(), "train", limit=limit).targets[named].tolist() == chosen[0]
    last = manifest(tmp_path)
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


@pytest.mark.parametrize(("script", "flag"), [("search", "--alpha-lr"), ("train_final", "--lr")])
def test_a_learning_rate_that_is_far_too_large_stops_the_run_and_is_named(script, flag, tmp_path, capfd):
    assert call(script, tmp_path, *FEW_STEPS[script], f"{flag}=1e30", "--max-bad-steps=2") == 1
    error = capfd.readouterr().err
    assert is_one_sentence(error, "stopped: 2 steps in a row were not finite"), error
    assert f"a smaller {flag};" in error
    tensors = load_file(tmp_path / RUN / checkpoint.CURRENT)
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert manifest(tmp_path).progress.bad_steps == 2


# --deterministic


@pytest.mark.usefixtures("restored_determinism")
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_operation_that_is_not_deterministic_is_one_sentence(script, tmp_path, capfd):
    def not_deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))

    with at_step(6, not_deterministic):  # the last one: all operations before it are deterministic
        assert call(script, tmp_path, *FEW_STEPS[script], "--deterministic", "--epochs=2") == 1
    error = capfd.readouterr().err
    assert is_one_sentence(error, "stopped: put_ is not deterministic; leave out --deterministic"), error
