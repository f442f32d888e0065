"""What --help says: a terminal of 80 columns shows it, and its examples work; and what starts without torch."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import nas
from nas import export, genotypes
from nas.config.cli import run_tyro
from nas.report import __main__ as report_command

SUBCOMMANDS = ["list", "show", "diff", "convert", "random", "validate"]
KINDS = {genotypes: genotypes.Command, report_command: report_command.Arguments, export: export.Export}
CALLS = [(genotypes, []), *[(genotypes, [name]) for name in SUBCOMMANDS], (report_command, []), (export, [])]


@pytest.mark.parametrize(("module", "subcommand"), CALLS)
def test_a_help_has_a_sentence_and_an_example_that_is_understood(module, subcommand, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        module.main([*subcommand, "--help"])
    assert stop.value.code == 0
    usage, _, about = capsys.readouterr().out.partition("\n\n")
    assert len(usage) <= 80 or (module, subcommand) == (genotypes, ["random"])  # whose last flag is on the next line
    command = f"python -m {' '.join([module.__name__.removesuffix('.__main__'), *subcommand])}"
    assert usage.startswith(f"usage: {command} ")
    lines = [line.strip("│ ") for line in about.splitlines()]
    assert re.match(r"[A-Z].*\.", lines[0])
    # The lowest tyro makes one line of the first two paragraphs.
    assert max(map(len, about.splitlines()[1:])) <= 80
    examples = [line for line in lines if line.startswith("python -m nas.")]
    for example in examples:
        assert run_tyro(KINDS[module], shlex.split(example)[3:])
    if (module, subcommand) == (genotypes, []):  # its own, and one of each subcommand, none of them on two lines
        assert [example.split()[3] for example in examples] == ["show", *SUBCOMMANDS]
        assert all(len(example.split()) > 4 for example in examples if not example.endswith(" list"))
    else:
        assert len(examples) == 1
        assert examples[0].startswith(command)


START = """
import contextlib, io, sys
import nas
from nas import export, genotypes
from nas.report import __main__ as report_command

assert {*nas.__all__} <= {*dir(nas)}
calls = {genotypes: {"list", "show NASNet", "diff DARTS_V1 DARTS_V2", "validate DARTS_V2", "random --seed 1"}}
calls[genotypes] |= {f"convert DARTS_V2 --to {form}" for form in ("json", "text", "nni", "nasbench301")}
calls[genotypes] |= {f"{name} --help" for name in ("", "list", "show", "diff", "convert", "random", "validate")}
for module, lines in (calls | {export: {"--help"}, report_command: {"--help"}}).items():
    for line in lines:
        with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
            module.main(line.split())
        assert out.getvalue(), line
print(sorted({"torch", "numpy", "PIL", "graphviz", "rich"} & {*sys.modules}))
"""


def test_commands_on_genotypes_and_every_help_start_without_torch():
    command = [sys.executable, "-c", START]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_public_names_are_what_they_say():
    assert [getattr(nas, name).__name__ for name in nas.__all__] == nas.__all__
    with pytest.raises(AttributeError, match="no attribute 'Phenotype'"):
        _ = nas.Phenotype
