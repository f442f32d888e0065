"""The library of genotypes: python -m nas.genotypes {list,show,diff,convert,random,validate} (--help says more).

Exit codes: 0; 1 where `diff` found a difference, or `list` a file that cannot be read; 2 after a wrong call or input,
with one sentence on standard error, and where `validate` found a file that is not valid.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from nas import genotype_lines
from nas.config.cli import run_tyro
from nas.entry import exit_code
from nas.errors import InputError, printable
from nas.search_space import reader
from nas.search_space.genotype import MAX_NODES, SHIPPED, GenotypeFile, Provenance
from nas.search_space.pictures import HOW_TO_GET_PICTURES
from nas.search_space.random_cells import random_genotype

SEEDS = 2**32

# The terminal breaks lines of the docstrings below anew, except before one that begins with a space or a sign.
DESCRIPTION = """The library of cells: list them, show, compare, convert, draw and check them.

For example:
  python -m nas.genotypes show DARTS_V2
"""

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class List:
    """All known cells: the published ones, and those in ./genotypes.

    The columns:
    - weights, mult-adds: counted here, for 36 channels, 20 cells
      and images of CIFAR-10, without the auxiliary head
    - reported test error, weights: by the authors of the cell
    - supernet accuracy: of a search of your own

    Exit code: 0, or 1 where a file cannot be read, as its row then says.

    For example:
      python -m nas.genotypes list
    """

    def run(self) -> int:
        paths = {path.stem: path for folder in (SHIPPED, Path("genotypes")) for path in folder.glob("*.json")}
        files = {name: _file_or_problem(paths[name]) for name in sorted(paths)}
        for line in genotype_lines.table(files):
            print(line, flush=True)
        return int(any(isinstance(file, str) for file in files.values()))


@dataclass(frozen=True)
class Show:
    """Both cells of a genotype, with its provenance and the size of its network.

    For example:
      python -m nas.genotypes show DARTS_V2 --svg pictures
    """

    source: Source
    """A name such as DARTS_V2, a file, or what else convert reads."""
    svg: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="(default: draw none)")] = None
    """Also draw both cells into this folder, as .gv, .svg and .png; the pictures need Graphviz."""

    def run(self) -> int:
        found = _read(self.source)
        print(found.where)
        for line in genotype_lines.description(found.genotype, found.file.provenance):
            print(line)
        if self.svg is not None:
            drawn = found.genotype.draw(self.svg)
            print("\nwrote normal.gv, reduce.gv" + drawn * ", .svg and .png", "to", self.svg)
            if not drawn:
                print(HOW_TO_GET_PICTURES)
        return 0


@dataclass(frozen=True)
class Diff:
    """Which edges two genotypes do not have in common, per cell and node.

    The order of a node's edges means nothing.

    Exit code: 0 where they are equal, 1 where they differ, 2 in trouble.

    For example:
      python -m nas.genotypes diff DARTS_V1 DARTS_V2
    """

    one: Source
    """A name such as DARTS_V2, a file, or what else convert reads."""
    two: Source
    """What it is compared with, given in the same way."""

    def run(self) -> int:
        before, after = _read(self.one), _read(self.two)
        lines = genotype_lines.difference(before.genotype, after.genotype)
        if lines:
            print(f"--- {before.where}", f"+++ {after.where}", *lines, sep="\n")
        return int(bool(lines))


@dataclass(frozen=True)
class Convert:
    """Write a genotype in another form.

    The forms:
    - json: a genotype file; it alone keeps the provenance.
    - text: what the papers exchange.
    - nni: NNI's DARTS space.
    - nasbench301: the configuration of NAS-Bench-301 and NASLib.

    For example:
      python -m nas.genotypes convert DARTS_V2 --to nni
    """

    source: Source
    """A name such as DARTS_V2, the text itself, a run folder, - for standard input, or a file in any of these forms,
    also a log, a Python module or a printed dictionary (FILE:NAME for one of several)."""
    to: Annotated[reader.Form, tyro.conf.arg(metavar="FORM")]
    """What that form cannot express is an error."""
    output: Output = None
    """File to write, which must not exist. (default: standard output)"""

    def run(self) -> int:
        found = _read(self.source)
        try:
            text = reader.written_as(self.to, found.genotype, found.file.provenance)
        except InputError as error:
            raise InputError(f"{found.where}: {error}") from None
        reader.write(text, self.output)
        return 0


@dataclass(frozen=True)
class Random:
    """A cell pair drawn at random, all derived cells being equally likely.

    For example:
      python -m nas.genotypes random --seed 1 --name random-1
    """

    seed: int
    """The same seed and number of nodes give the same cells, on any machine; 0 to 4294967295."""
    nodes: int = 4
    """Nodes in each of the two cells, 1 to 32."""
    output: Output = None
    """Genotype file to write, which must not exist. (default: the text form, to standard output)"""
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Instead of --output: write genotypes/NAME.json, so that train_final.py --genotype NAME finds it."""

    def run(self) -> int:
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"--seed: must be 0 to {SEEDS - 1}, got {self.seed}.")
        if not 1 <= self.nodes <= MAX_NODES:
            raise InputError(f"--nodes: must be 1 to {MAX_NODES}, got {self.nodes}.")
        if self.name is not None and self.output is not None:
            raise InputError("--name: goes without --output; both say where to write.")
        output = self.output if self.name is None else reader.path_of_new(self.name)
        genotype = random_genotype(self.seed, self.nodes)
        provenance = Provenance(method="random", seed=self.seed)
        form = "text" if output is None else "json"
        reader.write(reader.written_as(form, genotype, provenance), output)
        return 0


@dataclass(frozen=True)
class Validate:
    """Say of each genotype whether it is valid, a line each.

    Exit code: 0 where all are valid, else 2.

    For example:
      python -m nas.genotypes validate genotypes/DARTS_V2.json
    """

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")]
    """Names, files, or what else convert reads; one at least. (required)"""

    def run(self) -> int:
        if not self.paths:
            raise InputError("validate: name one file at least.")
        code = 0
        for path in self.paths:
            try:
                verdict = " ".join(["valid", *(f"({note})" for note in reader.read(path).notes)])
            except InputError as error:
                code, verdict = 2, printable(str(error).partition(": ")[2], 400)
            print(f"{printable(path, 400)}: {verdict}")
        return code


def _read(source: str) -> reader.Read:
    """What is there; on standard error, what is to be known of it."""
    found = reader.read(source)
    for note in found.notes:
        print(f"{found.where}: {note}", file=sys.stderr)
    return found


def _file_or_problem(path: Path) -> GenotypeFile | str:
    """A genotype file, or what is wrong with it."""
    try:
        return GenotypeFile.load(path)
    except InputError as error:
        return printable(str(error).partition(": ")[2], 400)


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Random, tyro.conf.subcommand("random")]
    | Annotated[Validate, tyro.conf.subcommand("validate")]
)


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""

    def run() -> int:
        prog = "python -m nas.genotypes"
        return run_tyro(Command, arguments, prog=prog, description=DESCRIPTION, default=List()).run()

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
