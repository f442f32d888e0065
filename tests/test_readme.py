"""README is true: its commands exist, its code runs, its map is that of the tree."""

import contextlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from nas.config.cli import parse, run_tyro
from nas.config.flags import FinalConfig, SearchConfig
from nas.errors import InputError
from nas.export import Export
from nas.genotypes import Command, List
from nas.report.page import Arguments
from tests.bad_calls import CALLS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.strip() for line in re.findall(r"^    (?:make|python|tensorboard|torchrun) .*$", README, flags=re.MULTILINE)
]


def test_there_are_commands():
    assert {command.split()[0] for command in COMMANDS} == {"make", "python", "tensorboard", "torchrun"}


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python -m")])
def test_each_command_of_a_module_is_understood(command):
    _, _, module, *arguments = shlex.split(command, comments=True)
    kind, options = {
        "nas.genotypes": (Command, {"default": List()}),
        "nas.export": (Export, {}),
        "nas.report": (Arguments, {}),
    }[module]
    assert run_tyro(kind, arguments, **options)


@pytest.mark.parametrize("command", [command for command in COMMANDS if re.search(r" \w+\.py", command)])
def test_the_flags_of_each_command_are_understood(command):
    script, *arguments = shlex.split(command[re.search(r"\w+\.py", command).start() :])
    # A run that there is not is noticed after all flags were understood.
    there_is_none = pytest.raises(InputError, match="not a run folder")
    with there_is_none if {"--resume", "--config", "--evaluate"} & set(arguments) else contextlib.nullcontext():
        parse({"search.py": SearchConfig, "train_final.py": FinalConfig}[script], arguments)


def test_make_has_each_target_and_ci_calls_one_of_them():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [command.split("#")[0].split()[1] for command in COMMANDS if command.startswith("make")]
    assert {"demo", "test", "check"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make .*$", ci, flags=re.MULTILINE) == ["make check"]
    assert re.search(r"^check:.*\btest\b", makefile, flags=re.MULTILINE)


def test_the_example_of_onestage_moves_the_upper_model(tmp_path):
    code = next(block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "Onestage" in block)
    assert len([line for line in code.splitlines() if line and "import" not in line]) <= 10
    torch.manual_seed(0)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    names = runpy.run_path(str(tmp_path / "example.py"))
    assert names["upper_loss"].isfinite()
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["upper"].parameters())


def test_the_wrong_calls_are_as_many_as_it_says():
    assert f"| {len(CALLS)} of {len(CALLS)} | `python -m tests.bad_calls` |" in README


def test_the_map_names_every_module():
    for name in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / name).is_file(), name
    count = len(list((ROOT / "genotypes").glob("*.json")))
    published = re.search(r"(\d+) published ones", README)[1]
    assert count >= int(published)


def test_an_installed_package_knows_the_published_cells(tmp_path):
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "runs", "data", "build", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*build, str(source)], check=True, capture_output=True)
    with zipfile.ZipFile(next(tmp_path.glob("nas-*.whl"))) as wheel:
        wheel.extractall(tmp_path / "installed")
    code = "import nas; print(nas.__file__, nas.Genotype.load('DARTS_V2') == nas.Genotype.load('PDARTS'))"
    done = subprocess.run(
        # -I keeps the checkout out of the way.
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, '{tmp_path}/installed'); {code}"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [f"{tmp_path}/installed/nas/__init__.py", "False"]
