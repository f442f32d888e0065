"""The tutorial, step after step in one folder, with a smaller supernet, fewer images and one epoch."""

import re
import runpy
import shlex
from pathlib import Path

from nas import export, genotypes
from nas.report import page
from tests.in_process import TWO, call

TUTORIAL = (Path(__file__).parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
STEP = re.compile(r"^```python\n(.*?)^```|^    (python [^\n]*)$", flags=re.DOTALL | re.MULTILINE)
SMALLER = ["--epochs=1", "--train-limit=40", "--init-channels=2", "--num-cells=3"]
SMALLEST = {"search.py": [*SMALLER, "--num-nodes=1", *TWO], "train_final.py": SMALLER}


def test_every_step_of_the_tutorial_works(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    steps = STEP.findall(TUTORIAL)
    assert len(steps) == 10
    for code, command in steps:
        if code:
            Path("step.py").write_text(code, encoding="utf-8")
            runpy.run_path("step.py")
            continue
        words = shlex.split(command)[1:]
        if words[0] == "-m":
            run = {"nas.genotypes": genotypes.main, "nas.report": page.main, "nas.export": export.main}
            assert run[words[1]](words[2:]) == 0, command
        else:
            assert call(words[0].removesuffix(".py"), tmp_path, *words[1:], *SMALLEST[words[0]]) == 0, command
    assert capfd.readouterr().out.splitlines()[-1] in ("temple", "flower")
    for path in ("genotypes/tiles.json", "runs/tiles/report.html", "runs/tiles-final/network.onnx", "compared.html"):
        assert Path(path).stat().st_size > 100, path
