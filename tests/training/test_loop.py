"""The loop on a toy with three parameters: killed, stopped, resumed, not finite, disk full."""

import errno
import itertools
import json
import multiprocessing
import os
import re
import signal

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas.config.cli import parse
from nas.config.flags import Data, SearchConfig
from nas.data.datasets import Split
from nas.data.loader import training_loader
from nas.distributed import SINGLE
from nas.entry import exit_code
from nas.runs import checkpoint
from nas.runs.checkpoint import LoopState
from nas.search_space.genotype import Genotype
from nas.training.loop import Loop
from nas.training.run import Run

CPU = torch.device("cpu")
CELLS = Genotype.load("DARTS_V2")
STEPS = 12  # three epochs of four steps


def train(folder, *flags, at=lambda step: None, spoilt=(), dry_run=False, last_epoch=3):
    """Run the toy in a folder, or go on with it, and return its exit code.

    Args:
        at: called in each step, counted from 1.
        spoilt: the steps whose loss is not a number.
        last_epoch: ends with this one.
    """
    os.chdir(folder)
    weights, momentum = torch.ones(3), torch.zeros(3)
    split = Split(torch.zeros(12, 1, 8, 8, dtype=torch.uint8), torch.arange(12) % 2, ("a", "b"))

    def run():
        config = parse(SearchConfig, list(flags) or ["--resume=runs/toy"])
        toy = Run.open(config, SINGLE, 3, lambda: "toy")
        if toy is None:
            return 0
        toy.check_images(split)
        loader = training_loader(split, Data(), CPU, batch_size=3, seed=config.run.seed)
        loop = Loop(toy, {"weights": weights, "momentum": momentum}, CELLS, 3, [loader], "lower", "--lower-lr")

        def take_step(batch):
            momentum.mul_(0.9).add_(batch.indices.float().mul(weights))
            weights.sub_(0.01 * momentum)
            at(batch.step + 1)
            loss = torch.tensor(torch.nan) if batch.step + 1 in spoilt else weights.square().sum()
            return {"lower/step_loss": loss, "num_correct": torch.tensor(1.0)}

        if dry_run:
            loop.rehearse(take_step, ["one more line"], runs=5)
            return 0
        with loop:
            for epoch in loop.epochs():
                for step in loop.steps():
                    loop.take(take_step, loader.batch(step), rates={"lower/learning_rate": 0.01})
                loop.folder.record(epoch + 1, loop.state.steps, loop.state.scalars("lower"))
                if epoch + 1 == last_epoch < 3:
                    loop.end_early("enough.")
        return 0

    return exit_code(run)


BEGIN = ["--dataset=digits", "--name=toy"]
EVERY_STEP = [*BEGIN, "--checkpoint-minutes=0"]


def left(folder):
    """Everything that a run leaves, without times."""
    path = folder / "runs/toy"
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in record.items() if not re.match("time_s|speed/", k)} for record in records]
    events = EventAccumulator(str(path / "tensorboard")).Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    curves = {tag: points for tag, points in curves.items() if not tag.startswith("speed/")}
    tensors = {name: tensor.tolist() for name, tensor in load_file(path / "checkpoint.safetensors").items()}
    return tensors, kept, curves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # restored at the end, as `train` changes it
        assert train(folder, *BEGIN) == 0
        return left(folder)


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def raises(number, times=1):
    return lambda: [signal.raise_signal(number) for _ in range(times)]


def at(wanted, act):
    return lambda step: act() if step == wanted else None


def test_steps_records_and_curves_are_those_of_the_loop(undisturbed):
    _, records, curves = undisturbed
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 1), (1, 4), (2, 8), (3, 11), (3, 12)]
    assert [step for step, _ in curves["lower/loss"]] == [4, 8, 12]
    assert [step for step, _ in curves["lower/step_loss"]] == [1, 11]
    assert "lower/step_loss_max" in records[3]


@pytest.mark.parametrize("flags", [BEGIN, EVERY_STEP], ids=["a checkpoint per epoch", "a checkpoint per step"])
@pytest.mark.parametrize("step", [1, 4, 5, 12])
def test_a_killed_run_goes_on_to_the_same_end(step, flags, undisturbed, tmp_path):
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=train, args=(tmp_path, *flags), kwargs={"at": at(step, kill)})
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert train(tmp_path) == 0
    saved = step - 1 if flags is EVERY_STEP else 4 * ((step - 1) // 4)  # an epoch ends with a checkpoint
    assert f"resumed after step {saved}, " in (tmp_path / "runs/toy/log.txt").read_text()
    assert left(tmp_path) == undisturbed


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_and_the_printed_command_goes_on(number, code, undisturbed, tmp_path, capfd):
    assert train(tmp_path, *BEGIN, at=at(6, raises(number))) == code
    said = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"stopped: after step 6; .*: python search\.py --resume runs/toy", said)
    assert train(tmp_path) == 0
    assert left(tmp_path) == undisturbed


def test_a_second_signal_stops_at_once_and_keeps_the_last_checkpoint(undisturbed, tmp_path, capfd):
    assert train(tmp_path, *EVERY_STEP, at=at(6, raises(signal.SIGINT, 2))) == 130
    assert "stopped: at once; the checkpoint of step 5 is kept" in capfd.readouterr().err
    assert train(tmp_path) == 0
    assert left(tmp_path) == undisturbed


def test_a_finished_run_says_so_and_takes_no_step(undisturbed, tmp_path, capfd):
    assert train(tmp_path, *BEGIN) == 0
    assert train(tmp_path, at=lambda step: pytest.fail("a step")) == 0
    assert "finished after 3 epochs" in capfd.readouterr().out


def test_a_step_that_is_not_finite_is_undone_and_its_images_are_named(tmp_path, capfd):
    assert train(tmp_path, *EVERY_STEP, "--max-bad-steps=1", spoilt=[7]) == 1
    said = capfd.readouterr()
    assert said.err.startswith("stopped: the last step was not finite, because lower/step_loss is nan.")
    assert "a smaller --lower-lr;" in said.err
    assert re.search(r"step 7 is not applied: lower/step_loss is nan\. .*batch: 3 images \(\d+, \d+, \d+\)", said.out)
    now, before = (load_file(tmp_path / f"runs/toy/checkpoint{name}.safetensors") for name in ("", ".previous"))
    assert all(torch.equal(now[name], before[name]) for name in now)
    assert train(tmp_path) == 0  # the next steps are good ones
    assert left(tmp_path)[1][-1]["step"] == STEPS


def test_bad_steps_are_counted_from_the_last_good_one(tmp_path, capfd):
    assert train(tmp_path, *BEGIN, "--max-bad-steps=2", spoilt=[1, 3, 5, 6]) == 1
    assert "stopped: 2 steps in a row were not finite, the last one because" in capfd.readouterr().err
    assert left(tmp_path)[1][0]["steps/bad"] == 1
    assert "lower/step_loss" not in left(tmp_path)[1][0]


@pytest.mark.parametrize("write", [1, 2, 5])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_space(write, undisturbed, tmp_path, capfd):
    replace, calls = os.replace, itertools.count(1)

    def full(source, target, *rest):
        if str(target).endswith("checkpoint.safetensors") and next(calls) == write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        return replace(source, target, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert train(tmp_path, *EVERY_STEP) == 1
    error = capfd.readouterr().err
    kept = "no step is kept" if write == 1 else f"the checkpoint of step {write - 2} is kept"
    assert re.fullmatch(rf"stopped: runs/toy/\S*: No space left on device; {kept}; .*\n", error), error
    assert train(tmp_path) == 0
    assert left(tmp_path) == undisturbed


def test_a_rehearsal_prints_and_leaves_nothing(tmp_path, capfd):
    assert train(tmp_path, *BEGIN, "--dry-run", dry_run=True) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "one more line" in lines
    assert "for 60 steps" in lines[-1]
    assert list(tmp_path.iterdir()) == []
    assert train(tmp_path, *BEGIN, "--dry-run", dry_run=True, spoilt=[1]) == 2
    assert capfd.readouterr().err.startswith("error: --lower-lr: too large for the first steps: lower/step_loss is nan")


def test_other_images_are_refused_and_the_folder_is_free_again(tmp_path, capfd, monkeypatch):
    assert train(tmp_path, *BEGIN, at=at(6, raises(signal.SIGTERM))) == 143
    monkeypatch.setattr("nas.training.run.fingerprint", lambda *splits: "1" * 32)
    for _ in range(2):  # the lock is given back
        assert train(tmp_path) == 2
        assert "the images are not those of the run" in capfd.readouterr().err


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_ends_early_is_finished(stopped, tmp_path, capfd):
    if stopped:
        assert train(tmp_path, *EVERY_STEP, at=at(6, raises(signal.SIGTERM)), last_epoch=2) == 143
    assert train(tmp_path, *([] if stopped else BEGIN), last_epoch=2) == 0
    manifest = checkpoint.finished(tmp_path / "runs/toy")
    assert (manifest.progress.epochs, manifest.progress.steps, manifest.progress.ended_early) == (2, 8, True)
    assert train(tmp_path) == 0  # nothing is left to do
    printed = capfd.readouterr().out
    assert printed.count("the search ends with this epoch: enough.") == 1
    assert "runs/toy: finished after 2 epochs" in printed


def test_a_cell_is_the_same_for_as_many_epochs_as_it_was_seen_again():
    state = LoopState()
    assert [(state.end_epoch(cell), state.same_cell_epochs)[1] for cell in "aabbb"] == [0, 1, 0, 1, 2]
