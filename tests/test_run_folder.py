import json
import re

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nas import run_folder
from nas.errors import InputError
from nas.run_folder import RunFolder, duration, read_config


def test_a_run_leaves_its_config_metrics_log_and_curves(tmp_path, capsys):
    run = RunFolder(tmp_path / "runs" / "a", {"config": {"seed": 3}})
    run.log("begun [bold]plainly[/bold]")
    run.record(1, 10, {"lower/loss": 0.5, "upper/loss": 0.25})
    run.record(2, 20, {"lower/loss": 0.4})
    run.picture("cells/normal", Image.new("L", (9, 7)), 20)
    run.close()

    folder = tmp_path / "runs" / "a"
    config = json.loads((folder / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["config"] == {"seed": 3}
    assert {"nas", "python", "torch", "higher"} <= set(config["environment"]["versions"])
    assert config["environment"]["processor"]
    assert read_config(folder / "config.json", ["config"]) == [{"seed": 3}]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"], line["lower/loss"]) for line in lines] == [(1, 10, 0.5), (2, 20, 0.4)]
    assert "begun [bold]plainly[/bold]" in capsys.readouterr().out
    assert re.fullmatch(r"\S+\+00:00 begun \[bold\]plainly\[/bold\]\n", (folder / "log.txt").read_text())
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("lower/loss")] == [(10, 0.5), (20, 0.4)]
    assert events.Images("cells/normal")[0].width == 9


def test_a_folder_that_exists_is_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").write_text("kept")
    with pytest.raises(InputError, match=r"--name a: .* exists already"):
        RunFolder(tmp_path / "a", {})
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--run-dir: .*cannot be made"):
        RunFolder(tmp_path / "file" / "a", {})


BAD_CONFIGS = [("{}", "config: missing"), ("[]", "config: missing"), ("{", "not JSON")]


@pytest.mark.parametrize(("content", "sentence"), BAD_CONFIGS)
def test_a_bad_config_file(tmp_path, content, sentence):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=sentence):
        read_config(tmp_path / "config.json", ["config"])


def test_on_a_pipe_a_line_now_and_then_says_what_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_folder, "PLAIN_LINE_EVERY_S", 0.0)
    run = RunFolder(tmp_path / "a", {})
    with run.progress(2) as advance:
        advance()
        advance()
    run.close()
    out = capsys.readouterr().out
    assert re.search(r"step 1 of 2, 0:00:00 left\nstep 2 of 2, 0:00:00 left", out)
    assert "\x1b" not in out


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run = RunFolder(tmp_path / "a", {})
    with run.progress(2) as advance:
        advance()
        run.log("a line above the bar")
        advance()
    run.close()
    out = capsys.readouterr().out
    assert "2/2" in out
    assert "a line above the bar" in out


def test_durations_are_readable():
    assert [duration(seconds) for seconds in (0.4, 59.6, 3723)] == ["0:00:00", "0:01:00", "1:02:03"]
