"""Both scripts on a device that is not the CPU: see `tests/stand_in.py`."""

import json

import pytest
import torch

from nas import export
from nas.report import page
from tests.in_process import TWO, call
from tests.stand_in import DEVICE, StandIn, stand_in  # noqa: F401, as pytest wants the fixture by its name

SMALL = ["--dataset=digits", "--init-channels=2", "--batch-size=6", "--epochs=1", "--train-limit=12"]
SEARCH = [*SMALL, "--num-cells=1", "--num-nodes=1", "--name=a"]
FINAL = [*SMALL, "--batch-size=60", "--num-cells=2", "--genotype=DARTS_V2", "--name=b"]


def test_a_search_among_all_primitives_ends_on_another_device(stand_in, tmp_path):  # noqa: F811
    assert call("search", tmp_path, *SEARCH, "--hypergradient=first-order", "--balanced") == 0
    assert (tmp_path / "genotypes/a.json").exists()


def test_a_search_goes_on_there_and_is_reported(stand_in, tmp_path):  # noqa: F811
    assert call("search", tmp_path, *SEARCH, *TWO) == 0
    assert call("search", tmp_path, "--resume=runs/a", "--epochs=2") == 0
    last = json.loads((tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()[-1])
    assert (last["epoch"], last["step"]) == (2, 2)
    page.write([tmp_path / "runs/a"], tmp_path / "report.html")


@pytest.mark.parametrize("flags", [["--holdout-fraction=0.5", "--auxiliary-weight=0", "--balanced"], ["--dry-run"]])
def test_a_training_ends_on_another_device(flags, stand_in, tmp_path):  # noqa: F811
    assert call("train_final", tmp_path, *FINAL, *flags) == 0


def test_a_training_goes_on_there_is_measured_again_and_exported(stand_in, tmp_path, capfd):  # noqa: F811
    assert call("train_final", tmp_path, *FINAL, "--cutout=2") == 0
    assert call("train_final", tmp_path, "--resume=runs/b", "--epochs=2") == 0
    assert call("train_final", tmp_path, "--evaluate=runs/b") == 0
    assert capfd.readouterr().out.count("test accuracy") == 3
    assert export.main([str(tmp_path / "runs/b"), "--format=safetensors"]) == 0


@pytest.mark.parametrize(
    ("script", "flags", "a_step"),
    [
        ("search", [*SEARCH, *TWO], 12),
        ("search", [*SEARCH, *TWO, "--share-lower-step"], 12),
        ("train_final", FINAL, 60),
    ],
)
def test_a_step_reads_the_device_once(script, flags, a_step, stand_in, tmp_path):  # noqa: F811
    reads = []
    for num_steps in (1, 2):
        stand_in.reads.clear()
        name, limit = f"--name={num_steps}", f"--train-limit={num_steps * a_step}"
        assert call(script, tmp_path, *flags, name, limit) == 0
        reads.append(stand_in.reads.copy())
    by_step = reads[1] - reads[0]  # a line that reads once a run is in both
    assert list(by_step.values()) == [1], f"reads of a step by line: {dict(by_step)}"


def test_the_stand_in_refuses_what_a_gpu_refuses():
    here, there = torch.ones(3), torch.ones(3, device=DEVICE)
    with StandIn():
        for mixed in (
            lambda: here + there,
            lambda: torch.stack([here[0], there[0]]),
            lambda: torch._foreach_add([here, here], [there, there]),
            lambda: here.mul_(there),
        ):
            with pytest.raises(RuntimeError, match="tensors on cpu and meta"):
                mixed()
        assert (there * here[0]).is_meta
        assert there[torch.tensor([0, 2])].is_meta
