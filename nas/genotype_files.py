"""Where the commands on genotypes read from and write to: names, files, standard input and output."""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from nas import genotype_forms
from nas.errors import InputError, printable
from nas.files import MAX_JSON_BYTES, write_json
from nas.genotype import Genotype, GenotypeFile, Provenance, find, known_names

Form = Literal["json", "text", "nni", "nasbench301"]


def read(source: str) -> tuple[str, Genotype, Provenance]:
    """Where it is, for people to read, and what is there.

    Args:
        source: a name, a file in any form, or "-" for standard input.

    Raises:
        InputError: there is no such file or name, or no genotype in it.
        OSError: it cannot be read.
    """
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


def file_or_problem(path: Path) -> GenotypeFile | str:
    """A genotype file, or what is wrong with it."""
    try:
        return GenotypeFile.load(path)
    except InputError as error:
        return printable(str(error).removeprefix(f"genotype {path}: "), 400)


def path_of_new(name: str) -> str:
    """Where a cell of that name belongs, in a folder that is there.

    Raises:
        InputError: it is no name, or that of another cell.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(".json"):
        raise InputError(
            "--name: must be up to 100 letters, digits, '.', '_' or '-', begin with a letter or digit, and not end in "
            f".json, got {name!r:.60}."
        )
    if name in known_names():
        raise InputError(f"--name {name}: there is a cell of that name already.")
    Path("genotypes").mkdir(exist_ok=True)
    return f"genotypes/{name}.json"


def written_as(form: Form, genotype: Genotype, provenance: Provenance) -> str:
    """What a file in that form holds.

    Raises:
        InputError: the form cannot express the cells.
    """
    match form:
        case "json":
            return _written_by(lambda path: genotype.save(path, provenance))
        case "text":
            return f"{genotype.to_text()}\n"
        case "nni":
            return _written_by(lambda path: write_json(path, genotype_forms.to_nni(genotype)))
        case "nasbench301":
            return _written_by(lambda path: write_json(path, genotype_forms.to_nasbench301(genotype)))


def write(text: str, output: str | None) -> None:
    """To a new file, or without one to standard output.

    Raises:
        InputError: the file exists, or cannot be written; nothing of it is left.
    """
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


def _written_by(write: Callable[[Path], None]) -> str:
    """What `write` puts into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "cells.json")
        try:
            write(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}.") from None
        return path.read_text(encoding="utf-8")
