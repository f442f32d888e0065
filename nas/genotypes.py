"""The library of genotypes: python -m nas.genotypes {list,show,diff,convert,random,validate} (see --help).

Exit codes: 0; 1 if `diff` found a difference, or `list` a file that cannot be read; 2 after a wrong call or input, with
one sentence on standard error, and if `validate` found a file that is not valid.
"""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nas import files
from nas.config.cli import run_tyro
from nas.entry import exit_code
from nas.errors import InputError, printable
from nas.report import cells
from nas.search_space import conversions
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import SHIPPED, SPACES, GenotypeFile, Provenance, known_names
from nas.search_space.reader import Read, read

SEEDS = 2**32

Form = Literal["json", "text", "nni", "nasbench301"]

# tyro joins the lines of the docstrings below, except those that begin with a space or a sign.
DESCRIPTION = """List, show, compare, convert, draw and check cells.

For example:
  python -m nas.genotypes show DARTS_V2
"""

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class List:
    """List all known cells: the published ones, and those in ./genotypes.

    The columns:
    - weights, mult-adds: of a network of the published size (DARTS: 36 channels
      and 20 cells) for images of CIFAR-10, without the auxiliary head
    - reported test error, weights: as the authors of the cell report
    - supernet accuracy: of the search that found the cell

    Exit code: 0, or 1 if a file cannot be read; its row says why.

    For example:
      python -m nas.genotypes list
    """

    def run(self) -> int:
        paths = {path.stem: path for folder in (SHIPPED, Path("genotypes")) for path in folder.glob("*.json")}
        found = {name: _file_or_problem(paths[name]) for name in sorted(paths)}
        for line in cells.table(found):
            print(line, flush=True)
        return int(any(isinstance(file, str) for file in found.values()))


@dataclass(frozen=True)
class Show:
    """Show the cells of a genotype, its provenance and the size of its network; how good it truly is, if that is known.

    For example:
      python -m nas.genotypes show DARTS_V2 --svg pictures
    """

    source: Source
    """A name such as DARTS_V2, a file, or anything else that convert reads."""
    svg: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: no pictures)")] = None
    """Also draw the cells into this folder, as .gv, .svg and .png; the pictures need Graphviz."""

    def run(self) -> int:
        found = _read(self.source)
        print(found.where)
        for line in cells.description(found.genotype, found.file.provenance):
            print(line)
        if self.svg is not None:
            from nas.search_space.pictures import HOW_TO_GET_PICTURES  # here, as it takes a while

            drawn = found.genotype.draw(self.svg)
            names = ", ".join(f"{kind}.gv" for kind in found.genotype.space.cells)
            print(f"\nwrote {names}" + drawn * ", .svg and .png", "to", self.svg)
            if not drawn:
                print(HOW_TO_GET_PICTURES)
        return 0


@dataclass(frozen=True)
class Diff:
    """Show the edges that two genotypes do not have in common, per cell and node.

    The order of a node's edges does not matter.

    Exit code: 0 if they are equal, 1 if they differ, 2 after an error.

    For example:
      python -m nas.genotypes diff DARTS_V1 DARTS_V2
    """

    one: Source
    """A name such as DARTS_V2, a file, or anything else that convert reads."""
    two: Source
    """The genotype to compare it with, given in the same way."""

    def run(self) -> int:
        one, two = _read(self.one), _read(self.two)
        lines = cells.difference(one.genotype, two.genotype)
        if lines:
            print(f"--- {one.where}", f"+++ {two.where}", *lines, sep="\n")
        return int(bool(lines))


@dataclass(frozen=True)
class Convert:
    """Write a genotype in another form.

    The forms:
    - json: a genotype file, the only form that keeps the provenance.
    - text: the form in papers, Genotype(normal=...) or |nor_conv_3x3~0|+...
    - nni: the DARTS space of NNI.
    - nasbench301: the configuration of NAS-Bench-301 and NASLib.

    For example:
      python -m nas.genotypes convert DARTS_V2 --to nni
    """

    source: Source
    """A name such as DARTS_V2, the text itself, a run folder, - for standard input, or a file in one of these forms.
    The file may be a log, a Python module or a printed dictionary. FILE:NAME chooses one of several genotypes."""
    to: Annotated[Form, tyro.conf.arg(metavar="FORM")]
    """The form to write. A genotype that it cannot express is an error."""
    output: Output = None
    """File to write, which must not exist. (default: standard output)"""

    def run(self) -> int:
        found = _read(self.source)
        try:
            text = written_as(self.to, found.genotype, found.file.provenance)
        except InputError as error:
            raise InputError(f"{found.where}: {error}") from None
        write(text, self.output)
        return 0


@dataclass(frozen=True)
class Random:
    """Draw cells at random; all cells of the search space are equally likely.

    For example:
      python -m nas.genotypes random --seed 1 --name random-1
    """

    seed: int
    """Seed, 0 to 4294967295. The same seed and number of nodes give the same cells on any machine."""
    nodes: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="(default: 4; nas-bench-201: 3)")] = (
        None
    )
    """Nodes in each cell; for darts 1 to 32."""
    space: Literal["darts", "nas-bench-201"] = "darts"
    """Search space of the cells."""
    output: Output = None
    """Genotype file to write, which must not exist. (default: the text form, to standard output)"""
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Write genotypes/NAME.json, which train_final.py --genotype NAME then finds. Cannot be combined with --output."""

    def run(self) -> int:
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"--seed: must be 0 to {SEEDS - 1}, got {self.seed}.")
        space = SPACES[self.space]
        if self.nodes is not None and self.nodes not in space.node_counts:
            raise InputError(f"--nodes: must be {space.nodes_in_words.removesuffix(' nodes')}, got {self.nodes}.")
        if self.name is not None and self.output is not None:
            raise InputError("--name cannot be combined with --output: both say where to write.")
        output = self.output if self.name is None else path_of_new(self.name)
        genotype = Genotype.random(self.seed, self.nodes, space)
        provenance = Provenance(method="random", seed=self.seed)
        form = "text" if output is None else "json"
        write(written_as(form, genotype, provenance), output)
        return 0


@dataclass(frozen=True)
class Validate:
    """Check genotypes, and print one line for each.

    Exit code: 0 if all are valid, else 2.

    For example:
      python -m nas.genotypes validate genotypes/DARTS_V2.json
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")]
    """Names, files, or anything else that convert reads; at least one. (required)"""

    def run(self) -> int:
        if not self.paths:
            raise InputError("validate: PATH is missing; name at least one file.")
        code = 0
        for path in self.paths:
            try:
                verdict = " ".join(["valid", *(f"({note})" for note in read(path).notes)])
            except InputError as error:
                code, verdict = 2, printable(str(error).partition(": ")[2], 400)
            print(f"{printable(path, 400)}: {verdict}")
        return code


def _read(source: str) -> Read:
    """Read a genotype, and print on standard error what the reader notes about it."""
    found = read(source)
    for note in found.notes:
        print(f"{found.where}: {note}", file=sys.stderr)
    return found


def _file_or_problem(path: Path) -> GenotypeFile | str:
    """Load a genotype file, or say what is wrong with it."""
    try:
        return GenotypeFile.load(path)
    except InputError as error:
        return printable(str(error).partition(": ")[2], 400)


def path_of_new(name: str) -> str:
    """Make the folder `genotypes`, and return the path of a new cell in it.

    Raises:
        InputError: this is not a name for a cell, or there is a cell of this name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(".json"):
        raise InputError(
            "--name: must be up to 100 letters, digits, '.', '_' or '-', start with a letter or digit, and not end in "
            f".json, got {name!r:.60}."
        )
    if name in known_names():
        raise InputError(f"--name {name}: there is already a cell of this name.")
    Path("genotypes").mkdir(exist_ok=True)
    return f"genotypes/{name}.json"


def written_as(form: Form, genotype: Genotype, provenance: Provenance) -> str:
    """Write a genotype in a form, as text.

    Raises:
        InputError: the form cannot express the cells.
    """
    match form:
        case "json":
            return files.json_text(GenotypeFile.of(genotype, provenance).content())
        case "text":
            return f"{genotype.to_text()}\n"
        case "nni":
            return files.json_text(conversions.to_nni(genotype))
        case "nasbench301":
            return files.json_text(conversions.to_nasbench301(genotype))


def write(text: str, output: str | None) -> None:
    """Write a text to a new file, whose folder is made if it is missing, or to standard output if `output` is None.

    Raises:
        InputError: the file exists already, or cannot be written; then no part of it is left.
    """
    if output is None:
        print(text, end="")
        return
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    try:
        file = open(output, "x", encoding="utf-8")  # noqa: SIM115, as only a file made here may be removed
    except FileExistsError:
        raise InputError(f"{output}: exists already and was not changed.") from None
    try:
        with file:
            file.write(text)
    except OSError as error:
        os.unlink(output)
        raise InputError(f"{output}: {error.strerror}.") from None
    print(f"wrote {output}")


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Random, tyro.conf.subcommand("random")]
    | Annotated[Validate, tyro.conf.subcommand("validate")]
)


def main(arguments: Sequence[str]) -> int:
    """Run one command, and return its exit code."""

    def run() -> int:
        prog = "python -m nas.genotypes"
        return run_tyro(Command, arguments, prog=prog, description=DESCRIPTION, default=List()).run()

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
