"""The one reader of all forms in which people keep cells, for all commands."""

import codecs
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nas import files
from nas.errors import InputError, first_problem, printable
from nas.search_space import conversions
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import FORMAT_VERSION, GenotypeFile, Provenance, find, known_names, texts_of_spaces
from nas.search_space.space import SearchSpace
from nas.search_space.text import Found, choose, find_all

FORMS = (
    "What can be read: a genotype file; Genotype(normal=…, …), also in a log or a Python module; "
    "|nor_conv_3x3~0|+… of NAS-Bench-201; JSON or a printed dictionary of NNI or NAS-Bench-301; a run folder; a name"
)
_IS_TEXT = re.compile(r".*\bGenotype\s*\(|\s*(?:\w+\s*=\s*)?[{\[|]", re.DOTALL)


@dataclass(frozen=True)
class Read:
    """A genotype that was read.

    Attributes:
        where: the place it was read from, in words.
        name: a name for what is made of it, such as a run.
        file: its cells, and where they come from.
        notes: sentences about what was chosen or left out, to be printed.
    """

    where: str
    name: str
    file: GenotypeFile
    notes: list[str]

    @property
    def genotype(self) -> Genotype:
        """The cells of the file."""
        return Genotype(**self.file.cells())


def read(source: str) -> Read:
    """Read the genotype that a user means.

    Args:
        source: the path of a file in any form, `PATH:NAME` or `PATH:LINE` for one of several genotypes, a run folder,
            the name of a cell, the text itself, or "-" for standard input.

    Raises:
        InputError: there is none, or it is wrong; the sentence lists what can be read.
    """
    if source == "-":
        return _read(sys.stdin.buffer.read(files.MAX_JSON_BYTES + 1), "standard input", "genotype", "")
    if _IS_TEXT.match(source) and not os.path.exists(source):
        return _read(source.encode(errors="surrogatepass"), "text", "genotype", "")
    path, _, name = source.rpartition(":")
    if os.path.exists(source) or not os.path.isfile(path):
        path, name = source, ""
    own = os.path.join(path, "genotype.json")
    if os.path.isfile(own):
        path, stem = own, Path(path).resolve().name
    elif os.path.isdir(path) and path not in known_names():  # a folder of images may be called like a cell
        raise InputError(f"genotype {printable(path, 400)}: not a run folder: genotype.json is missing.")
    else:
        path = find(path)
        stem = path.stem
    stem = re.sub(r"[^\w.-]", "-", name if name and not name.isdigit() else stem)
    return _read(files.read_small(Path(path), "genotype"), printable(path, 400), stem, name)


def _read(data: bytes, where: str, stem: str, name: str) -> Read:
    try:
        if len(data) > files.MAX_JSON_BYTES:
            raise InputError("larger than 1 MiB, which is too large for a genotype.")
        file, notes = _file_in(data, name)
    except ValidationError as error:
        raise InputError(f"genotype {where}: {first_problem(error)}") from None
    except InputError as error:
        raise InputError(f"genotype {where}: {error}") from None
    except UnicodeDecodeError:
        raise InputError(f"genotype {where}: not a text in UTF-8 or UTF-16. {FORMS}.") from None
    except RecursionError:
        raise InputError(f"genotype {where}: nested too deeply.") from None
    return Read(where, stem, file, notes)


def _file_in(data: bytes, name: str) -> tuple[GenotypeFile, list[str]]:
    is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # the > of PowerShell writes it
    text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    content, not_json = None, ""
    if text.lstrip()[:1] in ("{", "["):
        try:
            content = json.loads(text, object_pairs_hook=files.each_key_once)
        except (ValueError, RecursionError) as error:
            not_json = f"not JSON ({printable(error, 200)}), and "
    if isinstance(content, dict) and "format_version" in content:
        if problem := files.too_new(content, FORMAT_VERSION):
            raise InputError(problem)
        if name:
            raise InputError(f"a genotype file holds one genotype without a name: leave out {name!r:.60}.")
        return GenotypeFile.parse(text), []
    found = _found_in(text, content)
    if not found:
        raise InputError(f"{not_json}there is no genotype in it. {FORMS}.")
    chosen, notes = choose(found, name)
    if chosen.problem:
        raise InputError(chosen.problem)
    if isinstance(chosen.value.get("space"), SearchSpace):
        return GenotypeFile.of(Genotype(**chosen.value), Provenance()), notes
    genotype, further = conversions.genotype_of(chosen.value)
    if further:
        notes.append(f"these fields are left out: {printable(', '.join(further), 200)}.")
    return GenotypeFile.of(genotype, Provenance()), notes


def _found_in(text: str, content: Any) -> list[Found]:
    """Find all cells in a text, or in the JSON in it."""
    if content is not None:
        return list(conversions.cells_in(content, "", 1))
    found = []
    for item in find_all(text):
        found += [item] if item.problem else conversions.cells_in(item.value, item.name, item.line)
    if not found:
        line, position = 1, 0
        for start, fields in texts_of_spaces(text):
            line, position = line + text.count("\n", position, start), start
            found.append(Found("", line, fields))
    return found
