"""The library of genotypes: python -m nas.genotypes {list,show,diff,convert,random,validate} (--help says more).

Exit codes: 0; 1 where `diff` found a difference, or `list` a file that cannot be read; 2 after a wrong call or input,
with one sentence on standard error, and where `validate` found a file that is not valid.
"""

import itertools
import os
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from nas import genotype_forms
from nas.command_line import exit_code, understand
from nas.draw import HOW_TO_GET_PICTURES
from nas.errors import InputError, printable
from nas.files import MAX_JSON_BYTES, write_json
from nas.genotype import MAX_NODES, SHIPPED, Genotype, GenotypeFile, Provenance, find, known_names
from nas.network_size import network_size
from nas.search_space import EDGES_PER_NODE, NUM_INPUTS, PRIMITIVES

CELLS = {"normal": "normal cell", "reduce": "reduction cell"}
SEEDS = 2**32

Source = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
Output = Annotated[str | None, tyro.conf.arg(aliases=["-o"], metavar="FILE", help_behavior_hint="")]


@dataclass(frozen=True)
class List:
    """All known cells: the published ones, and those in ./genotypes.

    Params and mult-adds are counted here, for 36 channels, 20 cells and images of CIFAR-10, without the auxiliary head.
    The authors of a cell report test error and params; a search of your own reports the accuracy of its supernet.
    A file that cannot be read says so in its row, and makes the exit code 1.
    """

    def run(self) -> int:
        paths = {path.stem: path for folder in (SHIPPED, Path("genotypes")) for path in folder.glob("*.json")}
        files = {name: _genotype_file(paths[name]) for name in sorted(paths)}
        width = max([4, *(len(printable(name, 40)) for name in files)])
        row = f"{{:<{width}}}  {{:>5}}  {{:>6}}  {{:>9}}  {{:>13}}  {{:>8}}  {{:>8}}"
        print(row.format("", "", "", "", "reported", "reported", "supernet"))
        print(row.format("name", "nodes", "params", "mult-adds", "test error", "params", "accuracy"))
        for name, file in files.items():
            if isinstance(file, str):
                print(f"{printable(name, 40):<{width}}  {file}", flush=True)
                continue
            genotype, provenance = Genotype(**file.cells()), file.provenance
            size = network_size(genotype)
            nodes = dict.fromkeys(str(len(edges) // EDGES_PER_NODE) for edges in (genotype.normal, genotype.reduce))
            error, params = provenance.reported_cifar10_test_error_percent, provenance.reported_params_millions
            accuracy = provenance.supernet_accuracy
            columns = (
                "/".join(nodes),
                f"{size.weights / 1e6:.2f} M",
                f"{size.multiply_adds / 1e6:.0f} M",
                "-" if error is None else f"{printable(error, 20)} %",
                "-" if params is None else f"{params:g} M",
                "-" if accuracy is None else f"{printable(round(100 * accuracy, 1), 6)} %",
            )
            print(row.format(printable(name, 40), *columns), flush=True)  # now, as the sizes take seconds
        return int(any(isinstance(file, str) for file in files.values()))


@dataclass(frozen=True)
class Show:
    """Draw both cells of a genotype on the terminal, with its provenance and the size of its network.

    Example: python -m nas.genotypes show DARTS_V2
    """

    source: Source
    """A name such as DARTS_V2, a file in any of the forms of convert, or - for standard input."""
    svg: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Also write both cells to a folder, as .gv, .svg and .png; the pictures need Graphviz."""

    def run(self) -> int:
        where, genotype, provenance = _read(self.source)
        print(where)
        for cell, name in CELLS.items():
            edges, concat = getattr(genotype, cell), getattr(genotype, f"{cell}_concat")
            width = len(_state(NUM_INPUTS + len(edges) // EDGES_PER_NODE - 1))
            print(f"\n{name}")
            for node, ((left, one), (right, two)) in enumerate(zip(edges[::2], edges[1::2], strict=True), NUM_INPUTS):
                print(f"  {_state(one):>7} --{left}--> {_state(node):>{width}} <--{right}-- {_state(two)}")
            print(f"  {', '.join(map(_state, concat))} --concatenated--> c_{{k}}")
        known = provenance.model_dump(exclude_none=True, exclude={"candidates"})
        if known:
            print("\nprovenance")
        for field, value in known.items():
            value = ", ".join(f"{key} {version}" for key, version in value.items()) if field == "versions" else value
            print(f"  {field}: {printable(value, 400)}")
        if provenance.candidates:
            print(f"  candidates: {len(provenance.candidates)} cells, of which this is the best searched one")
        size = network_size(genotype)
        print("\nsize with 36 channels, 20 cells and images of CIFAR-10")
        print(f"  {size.weights:,} parameters, {size.weights_with_head:,} with the auxiliary head")
        print(f"  {size.multiply_adds:,} multiply-adds an image")
        if self.svg is not None:
            drawn = genotype.draw(self.svg)
            print(f"\nwrote {', '.join(f'{cell}.gv' for cell in CELLS)}" + drawn * ", .svg and .png", "to", self.svg)
            if not drawn:
                print(HOW_TO_GET_PICTURES)
        return 0


@dataclass(frozen=True)
class Diff:
    """Which edges two genotypes do not have in common, per cell and node. The order of a node's edges means nothing.

    Exit code: 0 where they are equal, 1 where they differ, 2 in trouble.
    """

    one: Source
    """A name, a file in any of the forms of convert, or - for standard input."""
    two: Source
    """The same."""

    def run(self) -> int:
        (old_name, before, _), (new_name, after, _) = _read(self.one), _read(self.two)
        lines = []
        for cell, name in CELLS.items():
            old, new = _edges_of_nodes(before, cell), _edges_of_nodes(after, cell)
            for node in sorted(old | new):
                gone, come = old.get(node, Counter()), new.get(node, Counter())
                if gone != come:
                    lines.append(f"{name}, {_state(node)}")
                    for sign, edges in (("-", gone - come), ("+", come - gone)):
                        lines += [
                            f"{sign} {_state(source):>7} --{kind}-->" for source, kind in sorted(edges.elements())
                        ]
            gone, come = getattr(before, f"{cell}_concat"), getattr(after, f"{cell}_concat")
            if gone != come:
                lines.append(f"{name}, c_{{k}}")
                lines += [f"{sign} {', '.join(map(_state, nodes))}" for sign, nodes in (("-", gone), ("+", come))]
        if lines:
            print(f"--- {old_name}", f"+++ {new_name}", *lines, sep="\n")
        return int(bool(lines))


@dataclass(frozen=True)
class Convert:
    """Write a genotype in another form: to a file that does not exist yet, or to standard output.

    json: a genotype file; it alone keeps the provenance. text: what the papers exchange. nni: NNI's DARTS space.
    nasbench301: NAS-Bench-301's and NASLib's configuration. A source may be in any of them; its content tells which.

    Example: python -m nas.genotypes convert DARTS_V2 --to nni
    """

    source: Source
    """A name such as DARTS_V2, a file, or - for standard input."""
    to: Literal["json", "text", "nni", "nasbench301"]
    """The form. What it cannot express is an error."""
    output: Output = None
    """The file to write; standard output without it."""

    def run(self) -> int:
        where, genotype, provenance = _read(self.source)
        try:
            match self.to:
                case "json":
                    text = _written_by(lambda path: genotype.save(path, provenance))
                case "text":
                    text = f"{genotype.to_text()}\n"
                case "nni":
                    text = _written_by(lambda path: write_json(path, genotype_forms.to_nni(genotype)))
                case "nasbench301":
                    text = _written_by(lambda path: write_json(path, genotype_forms.to_nasbench301(genotype)))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        _write(text, self.output)
        return 0


@dataclass(frozen=True)
class Random:
    """A cell pair drawn at random, all derived cells being equally likely.

    Example: python -m nas.genotypes random --seed 1 --name random-1
    """

    seed: int
    """The same seed and number of nodes give the same cells, on any machine."""
    nodes: int = 4
    """Nodes a cell."""
    output: Output = None
    """Write a genotype file here; without it and --name, the text form goes to standard output."""
    name: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Write genotypes/NAME.json, so that train_final.py --genotype NAME finds it."""

    def run(self) -> int:
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"--seed: must be 0 to {SEEDS - 1}, got {self.seed}.")
        if not 1 <= self.nodes <= MAX_NODES:
            raise InputError(f"--nodes: must be 1 to {MAX_NODES}, got {self.nodes}.")
        if self.name is not None and self.output is not None:
            raise InputError("--name: goes without --output; both say where to write.")
        genotype = random_genotype(self.seed, self.nodes)
        if self.name is None and self.output is None:
            print(genotype.to_text())
            return 0
        output = self.output
        if self.name is not None:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
                raise InputError(f"--name: must be up to 100 letters, digits, '.', '_' or '-', got {self.name!r:.60}.")
            if self.name in known_names():
                raise InputError(f"--name {self.name}: there is a cell of that name already.")
            Path("genotypes").mkdir(exist_ok=True)
            output = f"genotypes/{self.name}.json"
        provenance = Provenance(method="random", seed=self.seed)
        _write(_written_by(lambda path: genotype.save(path, provenance)), output)
        return 0


@dataclass(frozen=True)
class Validate:
    """Say of each genotype file whether it is valid, a line each. Exit code: 0 where all are, else 2."""

    paths: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH...", help_behavior_hint="")]
    """Genotype files, or names."""

    def run(self) -> int:
        if not self.paths:
            raise InputError("validate: name one file at least.")
        files = {path: _genotype_file(Path(path)) for path in self.paths}
        for path, file in files.items():
            print(f"{printable(path, 400)}: {file if isinstance(file, str) else 'valid'}")
        return 2 if any(isinstance(file, str) for file in files.values()) else 0


Command = (
    Annotated[List, tyro.conf.subcommand("list")]
    | Annotated[Show, tyro.conf.subcommand("show")]
    | Annotated[Diff, tyro.conf.subcommand("diff")]
    | Annotated[Convert, tyro.conf.subcommand("convert")]
    | Annotated[Random, tyro.conf.subcommand("random")]
    | Annotated[Validate, tyro.conf.subcommand("validate")]
)


def random_genotype(seed: int, num_nodes: int = 4) -> Genotype:
    """A cell pair drawn uniformly from the derived cells of that many nodes.

    Each node takes one of the pairs of distinct earlier states, every pair being equally likely, and on each of the two
    edges one of the seven primitives other than none, equally likely as well; all draws are independent. The normal
    cell is drawn first, nodes in order, and a node's edges are by rising source. All concatenate all their nodes.

    Args:
        seed: of a generator of its own. Only its `random()` is used, which Python keeps the same between versions.
    """
    draw = random.Random(seed).random
    cells = []
    for _ in CELLS:
        edges: list[tuple[str, int]] = []
        for node in range(NUM_INPUTS, NUM_INPUTS + num_nodes):
            pairs = list(itertools.combinations(range(node), EDGES_PER_NODE))
            for source in pairs[int(draw() * len(pairs))]:
                edges.append((PRIMITIVES[1:][int(draw() * len(PRIMITIVES[1:]))], source))
        cells.append(tuple(edges))
    concat = tuple(range(NUM_INPUTS, NUM_INPUTS + num_nodes))
    return Genotype(normal=cells[0], normal_concat=concat, reduce=cells[1], reduce_concat=concat)


def _state(state: int) -> str:
    return ("c_{k-2}", "c_{k-1}")[state] if state < NUM_INPUTS else f"node {state - NUM_INPUTS}"


def _edges_of_nodes(genotype: Genotype, cell: str) -> dict[int, Counter]:
    """How often each node has an edge of a source and a primitive."""
    edges = getattr(genotype, cell)
    pairs = enumerate(zip(edges[::2], edges[1::2], strict=True), NUM_INPUTS)
    return {node: Counter((source, primitive) for primitive, source in pair) for node, pair in pairs}


def _genotype_file(path: Path) -> GenotypeFile | str:
    """A genotype file, or what is wrong with it."""
    try:
        return GenotypeFile.load(path)
    except InputError as error:
        return printable(str(error).removeprefix(f"genotype {path}: "), 400)


def _read(source: str) -> tuple[str, Genotype, Provenance]:
    """Where it is, for people to read, and what is there."""
    if source == "-":
        where, data = "standard input", sys.stdin.buffer.read(MAX_JSON_BYTES + 1)
    else:
        path = find(source)
        where = printable(path, 400)
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise InputError(f"{where}: larger than 1 MiB, so it is no genotype.")
    try:
        return where, *genotype_forms.read(data)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _written_by(write: Callable[[Path], None]) -> str:
    """What `write` puts into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cells.json")
        try:
            write(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}.") from None
        return path.read_text(encoding="utf-8")


def _write(text: str, output: str | None) -> None:
    if output is None:
        print(text, end="")
        return
    try:
        file = open(output, "x", encoding="utf-8")  # noqa: SIM115, as only a file made here may be removed
    except FileExistsError:
        raise InputError(f"{output}: exists already, and is left as it is.") from None
    try:
        with file:
            file.write(text)
    except OSError as error:
        os.unlink(output)
        raise InputError(f"{output}: {error.strerror}.") from None
    print(f"wrote {output}")


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns its exit code."""

    def run() -> int:
        try:
            command = understand(Command, arguments, prog="python -m nas.genotypes", default=List())
            code = command.run()
            sys.stdout.flush()
            return code
        except InputError as error:
            raise InputError(printable(error, 1000)) from None
        except OSError as error:
            if error.filename is None:  # it was standard output; what Python still flushes at its exit goes nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # whoever reads has seen enough, as `head` has
                return 141  # what shells say of a command that SIGPIPE ended
            where = printable(error.filename or "standard output", 400)
            raise InputError(f"{where}: {error.strerror}.") from None

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
