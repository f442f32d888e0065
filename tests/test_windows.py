"""Both scripts and the commands, in an interpreter that lacks what Windows lacks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nas.machine import memory, threads
from tests.in_process import TWO

ROOT = Path(__file__).parent.parent
SIZE = ["--dataset=digits", "--train-limit=24", "--init-channels=2", "--num-cells=1", "--batch-size=12"]
SEARCH = [str(ROOT / "search.py"), *SIZE, "--num-nodes=1", *TWO]
TRAIN = [str(ROOT / "train_final.py"), *SIZE]
HOLD = """
import pathlib, sys, time
from nas.runs.lock import take_lock
lock = take_lock(pathlib.Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


class Windows:
    """A process that runs commands one after another in a folder."""

    def __init__(self, folder, *arguments):
        environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "cp437", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-X", "warn_default_encoding", "-m", "tests.windows", *arguments]
        options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, encoding="cp437", **options)

    def begin(self, *command):
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def run(self, *command):
        """The exit code, and what was printed."""
        self.begin(*command)
        said = ""
        for line in self.process.stdout:
            if line.startswith("exit code "):
                return int(line.split()[2]), said
            said += line
        raise AssertionError(said)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows need not be imitated here")
def test_both_scripts_and_the_commands_run_without_what_windows_lacks(tmp_path):
    (tmp_path / "hold.py").write_text(HOLD)
    with Windows(tmp_path) as first, Windows(tmp_path, "psutil") as second:
        assert second.run(*SEARCH, "--name=a", "--epochs=1")[0] == 0
        first.begin("hold.py", "runs/a")
        assert "held\n" in iter(first.process.stdout.readline, "")
        code, said = second.run(SEARCH[0], "--resume=runs/a", "--epochs=2")
        assert (code, f"process {first.process.pid} is writing to it" in said) == (2, True), said
        first.process.kill()  # and whoever kills it tells nobody
        first.process.wait()
        for command, sentence in (
            ([SEARCH[0], "--resume=runs/a", "--epochs=2"], "resumed after step"),
            ([*TRAIN, "--genotype=a", "--name=c", "--epochs=1"], "test accuracy after epoch 1"),
            ([TRAIN[0], "--evaluate=runs/c"], "test accuracy"),
            (["nas.report", "runs/a"], "written: "),  # over the one that the search has written
            (["nas.genotypes", "show", "a", "--svg", "pictures"], "normal cell"),
            (["nas.export", "runs/c", "--format=safetensors"], "differ by at most 0.0e+00"),
        ):
            code, said = second.run(*command)
            assert (code, sentence in said) == (0, True), said
        assert second.run(*SEARCH, "--layers=3")[0] == 2


def test_without_psutil_every_core_counts_and_only_a_container_tells_of_memory(tmp_path, monkeypatch):
    """Which lacks modules in an interpreter that was built without them."""
    monkeypatch.setattr(memory, "psutil", None)
    monkeypatch.setattr(threads, "psutil", None)
    assert (memory.total_bytes(tmp_path), memory.free_bytes(tmp_path)) == (None, None)
    assert memory.half_of_memory() > 0
    assert threads.allowed_cores() == list(range(os.cpu_count()))
    assert threads.unused_cores() == threads.usable_cores() >= 1
