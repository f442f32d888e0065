"""README and docs/ are true: their commands and flags exist, their code runs, their links and the code map hold."""

import contextlib
import re
import runpy
import shlex
import tomllib
from pathlib import Path

import pytest
import torch

from nas.config.cli import parse, run_tyro
from nas.config.flags import FinalConfig, SearchConfig
from nas.config.foreign_flags import SENTENCES, flags_of
from nas.errors import InputError
from nas.export import Export
from nas.genotypes import Command, List
from nas.predict import Predict
from nas.report.__main__ import Arguments
from nas.version import VERSION
from tests.bad_calls import CALLS

ROOT = Path(__file__).parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
README, CODE_MAP = PAGES["README.md"], PAGES["docs/code.md"]
# A line of its own, or code within a line that has more than the name of a program.
COMMAND = re.compile(
    r"^ {4,}((?:make|python|tensorboard|torchrun|source) .*)$|`((?:make|python|torchrun|pip) [^`]+)`", re.MULTILINE
)
COMMANDS = sorted({one or other for page in PAGES.values() for one, other in COMMAND.findall(page)})
BLOCKS = [block for page in PAGES.values() for block in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)]
MODULES = {
    "nas.genotypes": lambda arguments: run_tyro(Command, arguments, default=List()),
    "nas.export": lambda arguments: run_tyro(Export, arguments),
    "nas.predict": lambda arguments: run_tyro(Predict, arguments),
    "nas.report": lambda arguments: run_tyro(Arguments, arguments),
}
CONFIGS = {"search.py": SearchConfig, "train_final.py": FinalConfig}


def text_of(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_there_are_commands_of_each_kind():
    kinds = {command.split()[0] for command in COMMANDS}
    assert kinds == {"make", "pip", "python", "source", "tensorboard", "torchrun"}
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_understood(command):
    program, *words = shlex.split(command, comments=True)
    script = next((word for word in words if word in CONFIGS), None)
    if script:
        arguments = words[words.index(script) + 1 :]
        # A run folder that does not exist is noticed after all flags were understood.
        missing = pytest.raises(InputError, match="not a run folder")
        with missing if {"--resume", "--config", "--evaluate"} & set(arguments) else contextlib.nullcontext():
            parse(CONFIGS[script], arguments)
    elif program == "make":
        assert re.search(rf"^{words[0]}:", text_of("Makefile"), flags=re.MULTILINE)
    elif words[:2] == ["-m", "pip"] or program == "pip":
        project = tomllib.loads(text_of("pyproject.toml"))["project"]
        assert words[-2] == "install"
        assert words[-1] == "." or words[-1][2:-1] in project["optional-dependencies"]
    elif words[0] == "-m" and words[1] in MODULES:
        assert MODULES[words[1]](words[2:])
    elif words[:3] == ["-m", "pytest", "-k"]:
        sources = (path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/test_*.py"))
        assert any(f"def test_{words[3]}" in source for source in sources)
    elif words[0] == "-m":
        source = text_of(f"{words[1].replace('.', '/')}.py")
        assert all(word in source for word in words[2:])
    else:
        assert (program, words[0]) in {("tensorboard", "--logdir"), ("source", ".venv/bin/activate")}


@pytest.mark.parametrize("page", PAGES)
def test_each_flag_exists_and_each_link_leads_somewhere(page):
    within = re.findall(r"`[^`\n]*`", PAGES[page])
    flags = {flag for span in within if "python -m" not in span for flag in re.findall(r"--([a-z-]+)", span)}
    own = set().union(*map(flags_of, SENTENCES), *SENTENCES.values())
    assert flags <= own | {"help", "tyro-print-completion", "nproc-per-node", "max-restarts", "nnodes"}
    for target in re.findall(r"\]\((?!http)([^)]+)\)", PAGES[page]):
        name, _, heading = target.partition("#")
        path = (ROOT / page).parent / name
        assert path.is_file(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE) if heading else []
        assert not heading or heading in {title.lower().replace(" ", "-") for title in headings}


def test_the_readme_is_short_and_the_index_has_every_page():
    assert len(README.splitlines()) <= 120
    named = {f"docs/{name}" for name in re.findall(r"\]\(([\w-]+\.md)\)", PAGES["docs/README.md"])}
    assert named == set(PAGES) - {"README.md", "CONTRIBUTING.md", "docs/README.md"}


def test_the_code_map_names_every_module_and_no_other():
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "nas").rglob("*.py") if path.name != "__init__.py"}
    assert set(re.findall(r"^- `(nas/[^`]+\.py)`: \S.*\.$", CODE_MAP, flags=re.MULTILINE)) == modules
    assert {name for name in re.findall(r"`([a-z_./]+\.py)`", CODE_MAP) if not (ROOT / name).is_file()} == set()
    published = int(re.search(r"(\d+) published ones", CODE_MAP)[1])
    assert len(list((ROOT / "genotypes").glob("*.json"))) >= published


def test_ci_calls_make_check_and_nothing_else():
    for name, line in ((".ci/run", r"^make .*$"), (".github/workflows/ci.yml", r"make [a-z].*$")):
        assert re.findall(line, text_of(name), flags=re.MULTILINE) == ["make check"], name
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", text_of("Makefile"), flags=re.MULTILINE)[1]
    hooks = re.findall(r"entry: (.*)$", text_of(".pre-commit-config.yaml"), re.MULTILINE)
    assert hooks == re.findall(r"\t\$\(BIN\)/(.*)\n", lint)


def test_the_examples_move_an_upper_model_and_save_a_genotype(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (onestage,) = [block for block in BLOCKS if "Onestage" in block]
    (saves,) = [block for block in BLOCKS if "nas.Provenance" in block]
    assert len([line for line in onestage.splitlines() if line and "import" not in line]) <= 10
    Path("onestage.py").write_text(onestage, encoding="utf-8")
    Path("saves.py").write_text(saves, encoding="utf-8")
    torch.manual_seed(0)
    names = runpy.run_path("onestage.py")
    assert names["upper_loss"].isfinite()
    assert all(parameter.grad.abs().sum() > 0 for parameter in names["upper"].parameters())
    assert runpy.run_path("saves.py")["genotype"].normal
    assert Path("my-cell.json").is_file()


def test_the_version_and_the_number_of_wrong_calls_are_right():
    assert f"| {len(CALLS)} of {len(CALLS)} | `python -m pytest -k a_bad_call` |" in PAGES["docs/resuming.md"]
    assert f"\n## [{VERSION}]" in text_of("CHANGELOG.md")
    assert f"\nversion: {VERSION}\n" in text_of("CITATION.cff")
