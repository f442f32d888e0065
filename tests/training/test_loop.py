"""The loop on a toy with three parameters: killed, stopped, resumed, not finite, disk full."""

import errno
import itertools
import json
import multiprocessing
import os
import re
import signal
from pathlib import Path

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


def train(*flags, at=(0, None), spoilt=(), last_epoch=3):
    """Run the toy in this folder, or go on with it; at a step, counted from 1, something is called."""
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
            if batch.step + 1 == at[0]:
                at[1]()
            loss = torch.tensor(torch.nan) if batch.step + 1 in spoilt else weights.square().sum()
            return {"lower/step_loss": loss, "num_correct": torch.tensor(1.0)}

        if config.run.dry_run:
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


RUN = Path("runs/toy")
BEGIN = ["--dataset=digits", "--name=toy"]
EVERY_STEP = [*BEGIN, "--checkpoint-minutes=0"]


def left():
    """Everything that a run leaves, without times."""
    records = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in record.items() if not re.match("time_s|speed/", k)} for record in records]
    events = EventAccumulator(str(RUN / "tensorboard")).Reload()
    curves = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    curves = {tag: points for tag, points in curves.items() if not tag.startswith("speed/")}
    tensors = {name: tensor.tolist() for name, tensor in load_file(RUN / checkpoint.CURRENT).items()}
    return tensors, kept, curves


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        assert train(*BEGIN) == 0
        return left()


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def stop():
    signal.raise_signal(signal.SIGTERM)


def stop_at_once():
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def no_space():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/toy/some file")


def test_steps_records_and_curves_are_those_of_the_loop(undisturbed):
    _, records, curves = undisturbed
    assert [(record["epoch"], record["step"]) for record in records] == [(1, 1), (1, 4), (2, 8), (3, 11), (3, 12)]
    assert [step for step, _ in curves["lower/loss"]] == [4, 8, 12]
    assert [step for step, _ in curves["lower/step_loss"]] == [1, 11]
    assert "lower/step_loss_max" in records[3]


@pytest.mark.parametrize(
    ("flags", "step", "saved"), [(BEGIN, 4, 0), (BEGIN, 12, 8), (EVERY_STEP, 1, 0), (EVERY_STEP, 12, 11)]
)
def test_a_killed_run_goes_on_to_the_same_end(flags, step, saved, undisturbed):
    at = step, lambda: os.kill(os.getpid(), signal.SIGKILL)
    child = multiprocessing.get_context("fork").Process(target=train, args=flags, kwargs={"at": at})
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert train() == 0
    assert f"resumed after step {saved}, " in (RUN / "log.txt").read_text()
    assert left() == undisturbed


@pytest.mark.parametrize(("number", "step"), [(signal.SIGTERM, 4), (signal.SIGINT, 6)])  # 4 ends an epoch
def test_a_signal_stops_after_the_step_and_the_printed_command_goes_on(number, step, undisturbed, capfd):
    assert train(*BEGIN, at=(step, lambda: signal.raise_signal(number))) == 128 + number
    said = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(rf"stopped: after step {step}; .*: python search\.py --resume runs/toy", said)
    assert train() == 0
    assert left() == undisturbed


@pytest.mark.parametrize(("owner", "name"), [(Path, "write_bytes"), (os, "replace")])
@pytest.mark.parametrize(
    ("number", "act", "code", "sentence"),
    [
        (1, no_space, 1, "runs/toy/some file: No space left on device; no step is kept"),
        (5, no_space, 1, "runs/toy/some file: No space left on device; the checkpoint of step 3 is kept"),
        (5, stop_at_once, 130, "at once; the checkpoint of step 3 is kept"),
    ],
)
def test_what_ends_the_writing_of_a_checkpoint_leaves_a_good_one(
    owner, name, number, act, code, sentence, undisturbed, capfd
):
    function, calls = getattr(owner, name), itertools.count(1)

    def interrupted(path, *rest):
        if path.name.startswith(f".{checkpoint.CURRENT}") and next(calls) == number:
            act()
        return function(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert train(*EVERY_STEP) == code
    assert list(RUN.glob(".*")) == []
    assert re.search(rf"(^|\n)stopped: {sentence}; resume with: .*\n$", capfd.readouterr().err)
    assert train() == 0
    assert left() == undisturbed


def test_with_a_damaged_checkpoint_the_one_before_it_serves(undisturbed):
    assert train(*EVERY_STEP, at=(6, stop)) == 143
    (RUN / checkpoint.CURRENT).write_bytes(b"damaged")
    assert train() == 0
    said = r"checkpoint\.safetensors: damaged .* Resuming from the previous checkpoint\.\n.* resumed after step 5,"
    assert re.search(said, (RUN / "log.txt").read_text())
    assert left() == undisturbed


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (Path.unlink, "--resume runs/toy: its checkpoints are gone, though runs/toy/metrics.jsonl holds records"),
        (lambda path: path.write_bytes(b""), "checkpoint runs/toy/checkpoint.safetensors: damaged"),
    ],
)
def test_without_any_good_checkpoint_a_run_is_refused_and_keeps_its_records(spoil, sentence, capfd):
    assert train(*EVERY_STEP, at=(6, stop)) == 143
    records = (RUN / "metrics.jsonl").read_bytes()
    for name in (checkpoint.CURRENT, checkpoint.PREVIOUS):
        spoil(RUN / name)
    capfd.readouterr()
    assert train() == 2
    assert re.fullmatch(f"error: {sentence}.* start a new run.*\n", capfd.readouterr().err)
    assert (RUN / "metrics.jsonl").read_bytes() == records


def test_a_step_that_is_not_finite_is_undone_and_its_images_are_named(capfd):
    assert train(*EVERY_STEP, "--max-bad-steps=1", spoilt=[7]) == 1
    said = capfd.readouterr()
    assert said.err.startswith("stopped: the last step was not finite, because lower/step_loss is nan.")
    assert "a smaller --lower-lr;" in said.err
    assert re.search(r"step 7 is not applied: lower/step_loss is nan\. .*batch: 3 images \(\d+, \d+, \d+\)", said.out)
    now, before = (load_file(RUN / name) for name in (checkpoint.CURRENT, checkpoint.PREVIOUS))
    assert all(torch.equal(now[name], before[name]) for name in now)
    assert train() == 0  # the next steps are good ones
    assert left()[1][-1]["step"] == 12


def test_bad_steps_are_counted_from_the_last_good_one(capfd):
    assert train(*BEGIN, "--max-bad-steps=2", spoilt=[1, 3, 5, 6]) == 1
    assert "stopped: 2 steps in a row were not finite, the last one because" in capfd.readouterr().err
    first = left()[1][0]
    assert first["steps/bad"] == 1
    assert "lower/step_loss" not in first


def test_a_rehearsal_prints_and_leaves_nothing(capfd):
    assert train(*BEGIN, "--dry-run") == 0
    lines = capfd.readouterr().out.splitlines()
    assert "one more line" in lines
    assert "for 60 steps" in lines[-1]
    assert os.listdir() == []
    assert train(*BEGIN, "--dry-run", spoilt=[1]) == 2
    assert capfd.readouterr().err.startswith("error: --lower-lr: too large for the first steps: lower/step_loss is nan")


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_ends_early_is_finished(stopped, capfd):
    if stopped:
        assert train(*EVERY_STEP, at=(6, stop), last_epoch=2) == 143
    assert train(*([] if stopped else BEGIN), last_epoch=2) == 0
    manifest = checkpoint.finished(RUN)
    assert (manifest.progress.epochs, manifest.progress.steps, manifest.progress.ended_early) == (2, 8, True)
    assert train(at=(9, lambda: pytest.fail("a step"))) == 0  # nothing is left to do
    printed = capfd.readouterr().out
    assert printed.count("the search ends with this epoch: enough.") == 1
    assert "runs/toy: finished after 2 epochs" in printed


def test_a_cell_is_the_same_for_as_many_epochs_as_it_was_seen_again():
    state = LoopState()
    assert [(state.end_epoch(cell), state.same_cell_epochs)[1] for cell in "aabbb"] == [0, 1, 0, 1, 2]
