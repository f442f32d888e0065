"""Several processes, started for real, against one."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nas.distributed import SINGLE, World
from nas.models.batch_norm import BatchNorm2d, StackedNorm, synchronise
from tests.in_process import TWO

ROOT = Path(__file__).parent.parent


def start(count: int, command: list[str], folder: Path, **more: str) -> list[subprocess.Popen]:
    """The processes of one group, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
    sizes = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    environment = os.environ | sizes | {"PYTHONPATH": str(ROOT)} | more
    options = {"cwd": folder, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([sys.executable, *command], env=environment | rank, **options) for rank in ranks]


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit code, output and complaints of each."""
    outputs = [process.communicate(timeout=280) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def after_steps(num_steps: int, count: int, kind: str, folder: Path, *flags: str) -> list[dict[str, torch.Tensor]]:
    """What each process holds then."""
    command = [str(ROOT / "tests" / "some_steps.py"), kind, str(folder), str(num_steps), *flags]
    for code, _, complaint in ends(start(count, command, folder)):
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
        pytest.param(3, "search", 2, SEARCH, id="exact, three steps"),
        pytest.param(10, "search", 2, (*SEARCH, "--num-nodes=2"), id="exact", marks=slow),
        pytest.param(10, "search", 2, (*SEARCH, "--share-lower-step"), id="shared", marks=slow),
        pytest.param(10, "search", 4, SEARCH, id="exact, four", marks=slow),
        pytest.param(10, "final", 2, ("--batch-size=15",), id="final", marks=slow),
    ],
)
def test_synchronised_processes_do_what_one_does(num_steps, kind, count, flags, tmp_path):
    alone = after_steps(num_steps, 1, kind, tmp_path, *flags)[0]
    several = after_steps(num_steps, count, kind, tmp_path, *flags, "--sync-batch-norm")
    assert relative_difference(several[0], alone) <= 1e-10
    for other in several[1:]:
        assert all(torch.equal(other[name], value) for name, value in several[0].items())


@slow
def test_without_synchronised_norms_all_hold_the_same_bits_but_not_those_of_one(tmp_path):
    alone = after_steps(10, 1, "search", tmp_path, *SEARCH)[0]
    first, second = after_steps(10, 2, "search", tmp_path, *SEARCH)
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert relative_difference(first, alone) > 1e-3


# The two scripts

TINY = ["--dataset=digits", "--train-limit=80", "--batch-size=10", "--init-channels=2", "--num-cells=3"]
TINY_SEARCH = [*TINY, "--num-nodes=1", *TWO, "--checkpoint-minutes=0"]
ONE_OF_TWO = [str(ROOT / "search.py"), *TINY_SEARCH, "--epochs=4", "--name=a", "--sync-batch-norm"]


def wait_for_steps(folder: Path, processes: list[subprocess.Popen]) -> None:
    """Until there is a record beyond the first step."""
    deadline = time.monotonic() + 200
    while not (folder / "metrics.jsonl").exists() or not (folder / "metrics.jsonl").read_text():
        assert all(process.poll() is None for process in processes), ends(processes)
        assert time.monotonic() < deadline
        time.sleep(0.05)


@slow
def test_asked_to_stop_on_two_and_resumed_on_one(tmp_path):
    processes = start(2, ONE_OF_TWO, tmp_path)
    wait_for_steps(tmp_path / "runs" / "a", processes)
    processes[1].send_signal(signal.SIGTERM)  # one is asked, both stop after the same step
    (code, _, said), (other_code, other_output, other_said) = ends(processes)
    assert (code, other_code) == (143, 143)
    assert said.count("\n") == 1
    assert "resume with: python search.py --resume runs/a" in said
    assert (other_output, other_said) == ("", "\nStopping after this step. Press Ctrl-C again to stop at once.\n")
    [(code, output, said)] = ends(start(1, [str(ROOT / "search.py"), "--resume=runs/a"], tmp_path))
    assert (code, said) == (0, "")
    assert "num_processes were 2, are 1: bits may differ" in output
    assert (tmp_path / "genotypes" / "a.json").exists()


def test_one_of_two_is_killed_and_torchrun_goes_on(tmp_path):
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1"]
    (torchrun,) = start(1, [*command, *ONE_OF_TWO], tmp_path, MASTER_PORT="")
    wait_for_steps(tmp_path / "runs" / "a", [torchrun])
    holder = int((tmp_path / "runs" / "a" / "pid").read_text())
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    os.kill(next(int(child) for child in children if int(child) != holder), signal.SIGKILL)
    [(code, output, said)] = ends([torchrun])
    assert code == 0, said
    assert "resumed after step" in output
    assert "1 thread in each of 2 processes: set by OMP_NUM_THREADS" in output
    assert "1 thread in each of 2 processes: as before in this run" in output
    assert "stopped: runs/a: a process that computed with this one is gone" in said or "stopped: after step" in said
    assert (tmp_path / "genotypes" / "a.json").exists()


@slow
def test_a_final_training_on_two_writes_once_and_measures_again(tmp_path):
    command = [str(ROOT / "train_final.py"), "--genotype=DARTS_V2", *TINY, "--epochs=1", "--name=f"]
    command += ["--cutout=2", "--sync-batch-norm"]
    (code, output, said), *others = ends(start(2, command, tmp_path))
    assert (code, said) == (0, "")
    assert others == [(0, "", "")]
    accuracy = output.partition("test accuracy after epoch 1: ")[2].partition(" of 360")[0]
    evaluate = [str(ROOT / "train_final.py"), "--evaluate=runs/f"]
    [(code, output, _)] = ends(start(1, evaluate, tmp_path))
    assert code == 0
    assert f"test accuracy {accuracy} of 360" in output


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        pytest.param(["--epochs=0"], 2, "error: --epochs: must be greater than or equal to 1, got 0.", marks=slow),
        pytest.param(["--dataset=folder", "--data-dir=nowhere"], 2, "error: --data-dir nowhere", marks=slow),
        (["--dataset=digits", "--train-limit=5", "--batch-size=2"], 2, "2 at least are needed, shared by 2 processes"),
    ],
)
def test_what_is_wrong_is_said_once(flags, code, sentence, tmp_path):
    results = ends(start(2, [str(ROOT / "search.py"), *flags], tmp_path))
    assert [result[0] for result in results] == [code] * 2
    assert sentence in results[0][2]
    assert results[1][1:] == ("", "")
    assert list(tmp_path.iterdir()) == []


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


@pytest.mark.parametrize("kind", [BatchNorm2d, StackedNorm])
def test_a_synchronised_norm_of_one_process_is_the_usual_one(kind):
    torch.manual_seed(0)
    images = torch.randn(5, 6, 4, 4, dtype=torch.float64)
    results = []
    for gather in (None, lambda tensor: tensor[None]):
        norm = (kind(6) if kind is BatchNorm2d else kind(2, 3)).double()
        synchronise(norm, gather)
        x = images.clone().requires_grad_()
        scales = torch.linspace(0.5, 2.0, 6, dtype=torch.float64, requires_grad=True)
        if kind is BatchNorm2d:
            with torch.no_grad():
                norm.weight.copy_(scales)
        y = norm(x) if kind is BatchNorm2d else norm(x, scales)
        (y**3).sum().backward()
        scale_gradient = norm.weight.grad if kind is BatchNorm2d else scales.grad
        statistics = [buffer.double() for buffer in norm.buffers()]
        norm.eval()
        results.append([y, x.grad, scale_gradient, *statistics, norm(x.detach())])
    for usual, synchronised in zip(*results, strict=True):
        torch.testing.assert_close(synchronised, usual, rtol=1e-10, atol=1e-10)


def test_alone_nothing_is_exchanged():
    tensors = [torch.ones(2), torch.zeros(())]
    assert all(mean is tensor for mean, tensor in zip(SINGLE.mean(tensors), tensors, strict=True))
    assert SINGLE.any(True, False) == [True, False]
    assert SINGLE.from_main(lambda: "text") == "text"
    SINGLE.check_identical({"a": tensors[0]})


def test_processes_wait_long_for_data_and_not_long_for_a_step(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(
        "import datetime, time\nfrom nas import distributed\nfrom nas.entry import exit_code\n"
        "distributed.LONGEST_WAIT = datetime.timedelta(seconds=3)\n"
        "def run():\n    with distributed.connect() as world:\n"
        "        world.local_first(lambda: time.sleep(5))\n"
        "        print('loaded', flush=True)\n"
        "        time.sleep(6 * world.rank)\n        world.any(False)\n"
        "    return 0\nraise SystemExit(exit_code(run))\n"
    )
    (code, output, said), late = ends(start(2, [str(script)], tmp_path))
    assert (output, late[1]) == ("loaded\n", "loaded\n")
    assert (code, late[0]) == (1, 1)
    assert re.fullmatch(r"stopped: a process that computed with this one is gone \(Timed out [^.\[]*\)\.\n", said)


def test_a_process_that_holds_other_weights_is_named(tmp_path):
    script = tmp_path / "differ.py"
    script.write_text(
        "import torch\nfrom nas.entry import exit_code\nfrom nas.distributed import connect\n"
        "def run():\n    with connect() as world:\n"
        "        world.check_identical({'w': torch.zeros(3)})\n"
        "        world.check_identical({'w': torch.tensor([0.0, 1e-30 * (world.rank == 1), 0.0])})\n"
        "    return 0\nraise SystemExit(exit_code(run))\n"
    )
    for code, _, said in ends(start(2, [str(script)], tmp_path)):
        assert code == 1
        assert "process 1 of 2 holds other weights" in said
