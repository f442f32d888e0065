import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas.config.file import read_config
from nas.config.flags import FinalConfig, Run, SearchConfig, TrainedOn
from nas.errors import InputError, Stopped
from nas.runs import folder
from nas.runs.checkpoint import LoopState
from nas.runs.folder import RunFolder, folder_of_run, is_finished
from nas.runs.lock import is_at_work

IMAGES = "0" * 32  # a fingerprint
CONFIG = SearchConfig(run=Run(seed=3))
ZERO = torch.zeros(1)
THREADS = '{"format_version": 1, "config": {}, "environment": {"date": "2026-01-01", "num_threads": N}}'


def begun(path):
    """A new run, as a script begins it."""
    run = RunFolder.create(path, CONFIG)
    run.restore({}, IMAGES)
    return run


def save(run, steps, tensor=ZERO, **more):
    run.save({"w": tensor}, IMAGES, "a genotype", LoopState(steps=steps, **more))


def resumed(path, tensor=ZERO):
    """The run in a folder, as a script goes on with it, and its progress."""
    run = RunFolder.reopen(path, CONFIG)
    return run, run.restore({"w": tensor}, IMAGES)


def curves(path, name):
    events = EventAccumulator(str(path / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_run_leaves_its_config_metrics_log_and_curves(tmp_path, capsys):
    folder = tmp_path / "runs" / "a"
    run = begun(folder)
    run.log("begun [bold]plainly[/bold]")
    run.record(1, 10, {"lower/loss": 0.5, "upper/loss": 0.25, "lower/accuracy": float("nan")})
    run.record(2, 20, {"lower/loss": 0.4})
    run.picture("cells/normal", Image.new("L", (9, 7)), 20)
    run.close()

    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["config"] == dataclasses.asdict(CONFIG)
    assert {"nas", "python", "torch", "higher"} <= set(config["environment"]["versions"])
    assert config["environment"]["processor"]
    file = read_config(folder)
    assert (file.config["run"]["seed"], file.script, file.resumed) == (3, "search.py", [])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["lower/loss"]) for line in lines] == [(1, 10, 0.5), (2, 20, 0.4)]
    assert "lower/accuracy" not in lines[0]  # what is not finite is no JSON
    assert "begun [bold]plainly[/bold]" in capsys.readouterr().out
    assert re.fullmatch(r"\S+\+00:00 begun \[bold\]plainly\[/bold\]\n", (folder / "log.txt").read_text())
    assert curves(folder, "lower/loss") == [(10, 0.5), (20, pytest.approx(0.4))]
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert events.Images("cells/normal")[0].width == 9
    assert sorted(os.listdir(tmp_path / "runs")) == ["a"]


def test_a_final_network_knows_what_it_is_trained_on(tmp_path):
    with RunFolder.create(tmp_path / "a", FinalConfig(), TrainedOn(("ant", "bee"), 1, 8, (0.5,), (0.25,))) as run:
        assert run.go_on == f"python train_final.py --resume {tmp_path / 'a'}"
    file = read_config(tmp_path / "a")
    assert (file.script, file.trained_on["classes"]) == ("train_final.py", ["ant", "bee"])


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere")])
def test_a_folder_that_exists_is_refused(tmp_path, make):
    make(tmp_path / "a")
    with pytest.raises(InputError, match=r"--name a: .* exists already; choose another --name, or --resume"):
        RunFolder.create(tmp_path / "a", CONFIG)
    assert os.listdir(tmp_path) == ["a"]
    assert not (tmp_path / "a").exists() or os.listdir(tmp_path / "a") == []
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--run-dir: .*cannot be made"):
        RunFolder.create(tmp_path / "file" / "a", CONFIG)


def test_where_a_run_writes(tmp_path):
    def folder(**flags):
        return str(folder_of_run(Run(**flags), lambda: "search-digits"))

    assert folder(name="mine", run_dir="elsewhere") == "elsewhere/mine"
    assert re.fullmatch(r"runs/search-digits-seed7-\d{8}-\d{6}", folder(seed=7))
    assert folder(resume=str(tmp_path)) == str(tmp_path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "not a run folder, because it has no config.json"),
        ("{", "config .*: not JSON"),
        ("[]", "config .*: '?.*must be an object"),
        ('{"format_version": 1}', "config .*: config: missing"),
        ('{"format_version": 1, "config": [], "environment": {}}', "config .*: config: must be an object"),
        ('{"format_version": 99, "config": {}}', "format_version is 99, this nas reads 1: install a newer nas"),
        ('{"format_version": 1, "config": {}, "environment": {"date": "x\\n"}}', "environment: date: must be a date"),
        ('{"format_version": 1, "config": {}, "environment": {"date": "2026-01-01"}, "surplus": 1}', "surplus: "),
        *((THREADS.replace("N", number), "num_threads: must be a whole .* 1024") for number in ("0", '"3"')),
    ],
)
def test_a_bad_config_file(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=sentence) as error:
        read_config(tmp_path)
    assert "\n" not in str(error.value)


def test_what_was_recorded_after_the_checkpoint_is_forgotten(tmp_path):
    path = tmp_path / "a"
    run, tensor = begun(path), torch.arange(3.0)
    run.record(1, 1, {"loss": 3.0})
    save(run, 1, tensor, peaks={"loss": 3.5})
    run.record(1, 2, {"loss": 2.0})
    run.close()

    read = torch.zeros(3)
    again, progress = resumed(path, read)
    assert (progress.steps, progress.peaks) == (1, {"loss": 3.5})
    assert torch.equal(read, tensor)
    again.record(1, 2, {"loss": 1.0})
    again.close()
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 3.0), (2, 1.0)]
    assert curves(path, "loss") == [(1, 3.0), (2, 1.0)]
    assert len(read_config(path).resumed) == 1


def test_time_goes_on_without_the_pause(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr(folder.time, "monotonic", lambda: now)
    with begun(tmp_path / "a") as run:
        now = 130.0
        save(run, 1)
    now = 5000.0
    again, _ = resumed(tmp_path / "a")
    now = 5001.0
    assert again.elapsed_s() == 31.0
    again.close()


def test_a_lock_ends_with_its_process_however_that_ends(tmp_path):
    run = RunFolder.create(tmp_path / "a", CONFIG)
    assert is_at_work(tmp_path / "a")
    run.close()
    assert not is_at_work(tmp_path / "a")
    code = (
        "from pathlib import Path; from nas.runs.lock import take_lock\n"
        "lock = take_lock(Path('a')); print('at work', flush=True); input()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, **pipes) as process:
        assert process.stdout.readline() == "at work\n"
        for _ in range(2):
            assert is_at_work(tmp_path / "a")
            with pytest.raises(InputError, match=rf"process {process.pid} is writing to it"):
                RunFolder.reopen(tmp_path / "a", CONFIG)
        process.kill()
    assert not is_at_work(tmp_path / "a")
    RunFolder.reopen(tmp_path / "a", CONFIG).close()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_lock_that_is_a_link_is_not_followed_by_who_asks(tmp_path, link):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / "a").mkdir()
    link(precious, tmp_path / "a" / "lock")
    assert not is_at_work(tmp_path / "a")
    assert precious.read_text() == "precious"
    if link is os.symlink:
        precious.unlink()
        assert not is_at_work(tmp_path / "a")
        assert not precious.exists()


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "b", CONFIG)
    run.close()
    for number in (errno.ENOLCK, errno.EOPNOTSUPP):
        refuse = mock.Mock(side_effect=OSError(number, os.strerror(number)))
        monkeypatch.setattr("fcntl.flock", refuse)
        with pytest.raises(InputError, match=rf"--run-dir: .*a cannot be made \({os.strerror(number)}\)"):
            RunFolder.create(tmp_path / "a", CONFIG)
        with pytest.raises(InputError, match=rf"--resume .*b: cannot be written \({os.strerror(number)}\)"):
            RunFolder.reopen(tmp_path / "b", CONFIG)
        assert refuse.called
    assert os.listdir(tmp_path) == ["b"]


def test_a_folder_whose_resumption_is_refused_is_as_it_was_and_free_again(tmp_path):
    path = tmp_path / "a"
    with begun(path) as run:
        save(run, 1)
    before = (path / "config.json").read_bytes()
    for tensor, images, config, sentence in (
        (ZERO, "1" * 32, CONFIG, "the images are not those of the run"),
        (torch.zeros(2), IMAGES, CONFIG, "w has the shape"),
        (ZERO, IMAGES, SearchConfig(run=Run(seed=4)), "seed is 4 in config.json, 3 in the checkpoint"),
    ):
        with pytest.raises(InputError, match=sentence), RunFolder.reopen(path, config) as again:
            again.restore({"w": tensor}, images)
        assert (path / "config.json").read_bytes() == before
    resumed(path)[0].close()


@pytest.mark.parametrize("when", ["before a record", "before a picture", "before a checkpoint", "after the end"])
def test_curves_come_again_from_the_metrics_after_tensorboards_folder_was_deleted(tmp_path, when):
    path = tmp_path / "a"
    with begun(path) as run:
        run.record(1, 1, {"loss": 3.0})
        save(run, 1)
        run.record(1, 2, {"loss": 2.0})
        if when != "after the end":
            shutil.rmtree(path / "tensorboard")
        if when == "before a picture":
            run.picture("cells/normal", Image.new("L", (9, 7)), 2)
        elif when == "before a record":
            run.record(1, 3, {"loss": 1.0})
        save(run, 3)
    if when == "after the end":
        shutil.rmtree(path / "tensorboard")
    resumed(path)[0].close()
    assert curves(path, "loss") == [(1, 3.0), (2, 2.0)] + [(3, 1.0)] * (when == "before a record")
    assert (path / "log.txt").read_text().count("tensorboard was removed: its curves are those of metrics.jsonl") == 1


def test_metrics_that_were_cut_are_said(tmp_path):
    with begun(tmp_path / "a") as run:
        run.record(1, 1, {"loss": 3.0})
        save(run, 1)
    (tmp_path / "a" / "metrics.jsonl").unlink()
    resumed(tmp_path / "a")[0].close()
    assert "metrics.jsonl was cut or removed" in (tmp_path / "a" / "log.txt").read_text()


def test_a_run_is_finished_only_with_all_its_epochs(tmp_path, capsys):
    run = begun(tmp_path / "a")
    assert not is_finished(tmp_path / "a", 2)
    save(run, 6, epochs=2)
    assert not is_finished(tmp_path / "a", 2)  # something follows the last epoch
    run.save({"w": ZERO}, IMAGES, "a genotype", LoopState(steps=6, epochs=2), finished=True)
    run.close()
    assert is_finished(tmp_path / "a", 2)
    assert "finished after 2 epochs; resume it with a larger --epochs to train further" in capsys.readouterr().out
    assert not is_finished(tmp_path / "a", 3)


def test_a_disk_that_fails_is_one_sentence_with_the_command_to_go_on_and_a_bug_of_ours_passes(tmp_path):
    kept = r"metrics: No space left; the checkpoint of step 4 is kept; resume with: python"
    run = begun(tmp_path / "a")
    save(run, 4)
    with pytest.raises(Stopped, match=kept) as error, run:
        raise OSError(28, "No space left", "metrics")
    assert error.value.code == 1
    with pytest.raises(RuntimeError, match="a bug"), RunFolder.reopen(tmp_path / "a", CONFIG):
        raise RuntimeError("a bug")
