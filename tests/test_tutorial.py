"""The tutorial, step after step in one folder, with a smaller supernet, fewer images and one epoch."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from nas import export, genotypes
from nas.report import __main__ as report_command
from tests.in_process import TWO, call

TUTORIAL = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
STEP = re.compile(r"^```python\n(.*?)^```|^    (python [^\n]*)$", flags=re.DOTALL | re.MULTILINE)
SMALLER = ["--epochs=1", "--train-limit=40", "--init-channels=2"]
SMALLEST = {"search.py": [*SMALLER, "--num-cells=3", "--num-nodes=1", *TWO]}
SMALLEST["train_final.py"] = [*SMALLER, "--num-cells=1"]


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("num_steps", [8, pytest.param(10, marks=pytest.mark.slow)])
def test_every_step_of_the_tutorial_works(num_steps, tmp_path, monkeypatch, capfd):
    """The last two export the network and use it, as `test_export.py` does."""
    monkeypatch.chdir(tmp_path)
    steps = STEP.findall(TUTORIAL)
    assert len(steps) == 10
    for code, command in steps[:num_steps]:
        if code:
            Path("step.py").write_text(code, encoding="utf-8")
            runpy.run_path("step.py")
            continue
        words = shlex.split(command)[1:]
        if words[0] == "-m":
            run = {"nas.genotypes": genotypes.main, "nas.report": report_command.main, "nas.export": export.main}
            assert run[words[1]](words[2:]) == 0, command
        else:
            assert call(words[0].removesuffix(".py"), tmp_path, *words[1:], *SMALLEST[words[0]]) == 0, command
    assert all(Path(path).stat().st_size > 100 for path in ("runs/tiles/report.html", "compared.html"))
    if num_steps == 10:
        assert capfd.readouterr().out.splitlines()[-1] in ("temple", "flower")
