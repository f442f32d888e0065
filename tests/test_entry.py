"""How a script starts and ends: its config, its imports, its exit codes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas.config.flags import FinalConfig, SearchConfig, TrainedOn
from nas.entry import run_script
from nas.errors import InputError, Stopped
from nas.runs.folder import RunFolder

ROOT = Path(__file__).parent.parent


@pytest.fixture
def call(monkeypatch):
    """Calls a script that does nothing but to keep its config; or raises what is given."""
    configs = []

    def call_script(*arguments, kind=SearchConfig, raised=None):
        def run(config, _):
            configs.append(config)
            if raised is not None:
                raise raised

        monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
        return run_script(run, kind)

    call_script.configs = configs
    return call_script


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (Stopped("after step 3.", 143), 143, "stopped: after step 3."),
        (InputError("data\x1b[2J\nerror: all is well"), 2, r"error: data\x1b[2J\nerror: all is well"),
        (Stopped("\x1b]0;\a"), 1, r"stopped: \x1b]0;\x07"),
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C."),
        (torch.OutOfMemoryError("CUDA\nTried"), 1, r"stopped: out of memory (CUDA\nTried); choose a smaller --batch-"),
        (RuntimeError("can't allocate memory: 9"), 1, "stopped: out of memory (can't allocate memory: 9); choose a sm"),
        (OSError(28, "No space left on device"), 2, "error: standard output: No space left on device."),
        (PermissionError(13, "Permission denied", "x\n"), 2, r"error: x\n: Permission denied."),
        (None, 0, ""),
    ],
)
def test_exit_codes(call, capsys, raised, code, said):
    assert call(raised=raised) == code
    error = capsys.readouterr().err
    assert error.startswith(said)
    assert error.count("\n") == bool(said)


def test_a_bug_of_ours_keeps_its_traceback(call):
    with pytest.raises(RuntimeError, match="a bug"):
        call(raised=RuntimeError("a bug"))


@pytest.mark.parametrize("argument", ["--data-dir=caf\udce9", "--name", "\udcff"])
def test_bytes_that_are_not_utf_8_are_named(call, capsys, argument):
    assert call("--dataset=folder", argument, "caf\udce9") == 2
    error = capsys.readouterr().err
    assert error.endswith("': not UTF-8; rename that file or folder.\n")
    assert r"\udc" in error
    assert call.configs == []


def test_what_nobody_reads_to_its_end_and_a_full_disk():
    command = [sys.executable, str(ROOT / "train_final.py"), "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (2, b"error: standard output: No space left on device.\n")


@pytest.mark.parametrize(
    ("script", "flag", "code"),
    [("search.py", "--help", 0), ("train_final.py", "--help", 0), ("search.py", "--seed=x", 2)],
)
def test_help_and_what_is_wrong_are_said_before_an_import_that_takes_seconds(script, flag, code):
    done = subprocess.run([sys.executable, "-X", "importtime", script, flag], cwd=ROOT, capture_output=True, text=True)
    imported = {*re.findall(r"\| +([\w.]+)$", done.stderr, re.MULTILINE)}
    assert {"torch", "numpy", "PIL", "rich", "higher", "nas.entry"} & imported == {"nas.entry"}
    assert done.returncode == code


def test_with_restarts_a_run_needs_a_name_and_is_then_resumed(call, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    assert call("--dataset=digits") == 2
    assert "--name: missing; torchrun --max-restarts finds the run again by its name." in capsys.readouterr().err
    assert call("--dry-run") == 0  # which leaves nothing that might be found again
    trained_on = TrainedOn(("a", "b"), 1, 8, (0.5,), (0.5,))
    RunFolder.create(tmp_path / "runs" / "b", FinalConfig(), trained_on).close()
    assert call("--evaluate=runs/b", kind=FinalConfig) == 0
    assert call("--dataset=digits", "--name=a", "--seed=7") == 0
    RunFolder.create(tmp_path / "runs" / "a", call.configs[-1]).close()
    assert call("--dataset=digits", "--name=a", "--seed=7") == 0
    assert [config.run.resume for config in call.configs] == [None, None, None, "runs/a"]
    assert call.configs[-1].run.seed == 7
    assert call("--dataset=digits", "--name=a", "--seed=8") == 2  # with which it did not begin
    assert "--seed 8: the run in runs/a has 7" in capsys.readouterr().err
