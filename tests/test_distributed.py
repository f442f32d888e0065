"""Several processes, started for real, against one."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nas.distributed import SINGLE, World
from tests.in_process import TWO, call
from tests.processes import come_late, connected, differ, ends, save_steps, start, wait_for_a_record

ROOT = Path(__file__).parent.parent


def after_steps(num_steps: int, count: int, kind: str, folder: Path, *flags: str) -> list[dict[str, torch.Tensor]]:
    """What each process holds then."""
    for code, _, complaint in ends(start(count, folder, connected, save_steps, kind, num_steps, *flags)):
        assert code == 0, complaint
    return [load_file(folder / f"{count}-{rank}.safetensors") for rank in range(count)]


def relative_difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest one; of a tensor that is 0 but for rounding, in parts of 1e-4."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - value).double().norm() / value.double().norm().clamp_min(1e-4)).item()
        for name, value in expected.items()
    )


SEARCH = ("--init-channels=4", "--num-cells=3", "--num-nodes=1", *TWO, "--batch-size=11", "--alpha-lr=0.01")
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("num_steps", "kind", "count", "flags"),
    [
        pytest.param(2, "search", 2, SEARCH, id="exact, two steps"),
        pytest.param(10, "search", 2, (*SEARCH, "--num-nodes=2"), id="exact", marks=slow),
        pytest.param(10, "search", 2, (*SEARCH, "--share-lower-step"), id="shared", marks=slow),
        pytest.param(10, "search", 4, SEARCH, id="exact, four", marks=slow),
        pytest.param(2, "final", 2, ("--batch-size=15",), id="final"),
    ],
)
def test_synchronised_processes_do_what_one_does(num_steps, kind, count, flags, tmp_path):
    alone = after_steps(num_steps, 1, kind, tmp_path, *flags)[0]
    several = after_steps(num_steps, count, kind, tmp_path, *flags, "--sync-batch-norm")
    assert relative_difference(several[0], alone) <= 1e-10
    for other in several[1:]:
        assert all(torch.equal(other[name], value) for name, value in several[0].items())


# The two scripts

TINY = ["--dataset=digits", "--train-limit=80", "--batch-size=10", "--init-channels=2", "--num-cells=3"]
ONE_OF_TWO = [*TINY, "--num-nodes=1", *TWO, "--checkpoint-minutes=0", "--epochs=2", "--name=a"]


def test_asked_to_stop_on_two_and_resumed_on_one(tmp_path):
    processes = start(2, tmp_path, call, "search", ".", *ONE_OF_TWO)
    wait_for_a_record(tmp_path / "runs" / "a", processes[0].is_alive)
    os.kill(processes[1].pid, signal.SIGTERM)  # one is asked, both stop after the same step
    (code, _, said), (other_code, other_output, other_said) = ends(processes)
    assert (code, other_code) == (143, 143)
    assert said.count("\n") == 1
    assert "resume with: python search.py --resume runs/a" in said
    assert (other_output, other_said) == ("", "\nStopping after this step. Press Ctrl-C again to stop at once.\n")
    [(code, output, said)] = ends(start(1, tmp_path, call, "search", ".", "--resume=runs/a"))
    assert (code, said) == (0, "")
    assert "num_processes were 2, are 1: bits may differ" in output
    assert (tmp_path / "genotypes" / "a.json").exists()


def test_one_of_two_is_killed_and_both_go_on_when_they_are_started_again(tmp_path):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun keeps it
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_MAX_RESTARTS": "1", "MASTER_PORT": str(store.port)}
    processes = start(2, tmp_path, call, "search", ".", *ONE_OF_TWO, **agent)
    wait_for_a_record(tmp_path / "runs" / "a", processes[0].is_alive)
    processes[1].kill()
    (code, output, said), _ = ends(processes)
    assert code == 1
    assert "1 thread in each of 2 processes: set by OMP_NUM_THREADS" in output
    assert said.startswith("stopped: runs/a: a process that computed with this one is gone"), said
    again = start(2, tmp_path, call, "search", ".", *ONE_OF_TWO, **agent, TORCHELASTIC_RESTART_COUNT="1")
    code, output, said = ends(again)[0]
    assert code == 0, said
    assert "resumed after step" in output
    assert "1 thread in each of 2 processes: as before in this run" in output
    assert (tmp_path / "genotypes" / "a.json").exists()


@slow
def test_one_of_two_is_killed_and_torchrun_goes_on(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["--monitor-interval=0.1", str(ROOT / "search.py"), *ONE_OF_TWO]
    options = {"env": os.environ | {"PYTHONPATH": str(ROOT)}, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    torchrun = subprocess.Popen(command, cwd=tmp_path, text=True, **options)
    wait_for_a_record(tmp_path / "runs" / "a", lambda: torchrun.poll() is None)
    holder = int((tmp_path / "runs" / "a" / "pid").read_text())
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(next(int(child) for child in children if int(child) != holder), signal.SIGKILL)
    output, said = torchrun.communicate(timeout=280)
    assert torchrun.returncode == 0, said
    assert "resumed after step" in output


@slow
def test_a_final_training_on_two_writes_once_and_measures_again(tmp_path):
    command = ["--genotype=DARTS_V2", *TINY, "--epochs=1", "--name=f", "--cutout=2", "--sync-batch-norm"]
    (code, output, said), *others = ends(start(2, tmp_path, call, "train_final", ".", *command))
    assert (code, said) == (0, "")
    assert others == [(0, "", "")]
    accuracy = output.partition("test accuracy after epoch 1: ")[2].partition(" of 360")[0]
    [(code, output, _)] = ends(start(1, tmp_path, call, "train_final", ".", "--evaluate=runs/f"))
    assert code == 0
    assert f"test accuracy {accuracy} of 360" in output


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--epochs=0"], "error: --epochs: must be greater than or equal to 1, got 0."),
        (["--dataset=digits", "--stem=imagenet"], "error: --stem imagenet: "),  # which each of them finds
        (["--dataset=digits", "--train-limit=5", "--batch-size=2"], "2 at least are needed, shared by 2 processes"),
    ],
)
def test_what_is_wrong_is_said_once(flags, sentence, tmp_path):
    (code, _, said), other = ends(start(2, tmp_path, call, "search", ".", *flags))
    assert (code, other) == (2, (2, "", ""))
    assert sentence in said
    assert list(tmp_path.iterdir()) == []


def test_processes_wait_long_for_data_and_not_long_for_a_step(tmp_path):
    (code, output, said), late = ends(start(2, tmp_path, come_late))
    assert (output, late[1]) == ("loaded\n", "loaded\n")
    assert (code, late[0]) == (1, 1)
    assert re.fullmatch(r"stopped: a process that computed with this one is gone \(Timed out [^.\[]*\)\.\n", said)


def test_a_process_that_holds_other_weights_is_named(tmp_path):
    for code, _, said in ends(start(2, tmp_path, connected, differ)):
        assert code == 1
        assert "process 1 of 2 holds other weights" in said


# What is shared


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("num_images", [7, 8, 63, 64])
def test_rows_make_up_the_batch_and_weights_its_mean(count, num_images):
    processes = [World(rank, count) for rank in range(count)]
    rows = [list(range(num_images))[process.rows(num_images)] for process in processes]
    assert [row for part in rows for row in part] == list(range(num_images))
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    values = torch.arange(num_images, dtype=torch.float64) ** 2
    parts = [process.weight(num_images) * values[process.rows(num_images)].mean() for process in processes]
    torch.testing.assert_close(torch.stack(parts).mean(), values.mean())


def test_alone_nothing_is_exchanged():
    tensors = [torch.ones(2), torch.zeros(())]
    assert all(mean is tensor for mean, tensor in zip(SINGLE.mean(tensors), tensors, strict=True))
    assert SINGLE.any(True, False) == [True, False]
    assert SINGLE.from_main(lambda: "text") == "text"
    SINGLE.check_identical({"a": tensors[0]})
