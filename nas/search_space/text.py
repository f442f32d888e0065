"""Cells in the texts in which people keep them: papers, logs, Python modules. The texts are parsed, and never run.

Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=[…], reduce_concat=range(2, 6))

A text is scanned once for `Genotype(…)` and `{…}`, and each of these alone is given to `ast.parse`, which takes minutes
and a gigabyte for a megabyte that is made for it.
"""

import ast
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nas.errors import InputError, count, printable
from nas.files import each_key_once

MAX_TEXT = 100_000  # characters of one genotype, which takes about 600
MAX_GENOTYPES = 5000  # in one text: no megabyte has more
FIELDS = ("normal", "normal_concat", "reduce", "reduce_concat")
OTHER_NAMES = {"reduction": "reduce", "reduction_concat": "reduce_concat"}  # as AdvRush has them

_HEAD = re.compile(r"\bGenotype\s*\(|\{")
_TOKEN = re.compile(r"""\bGenotype\s*\(|[\[({]|[\])}]|'[^'\n]*'|"[^"\n]*"|\#[^\n]*""")
_COMMENT = re.compile(r"[ \t]*#")
# A string that begins a line is not given to anything: a docstring, or a part of a module that is switched off.
_UNUSED_STRING = re.compile(r"""^[ \t]*('{3}|"{3}).*?\1""", re.MULTILINE | re.DOTALL)
# What stands before a genotype: NAME =, NAME: Genotype =, x['NAME'] =, 'NAME':, and perhaps a quote or a module.
_NAME = re.compile(r"""(?:(\w+)['"\]]*(?:[ \t]*:[ \t]*[\w.]+)?\s*=|['"](\w+)['"]\s*:)\s*[('"]*\s*(?:\w+\.)*$""")
_USED = re.compile(r"\.[A-Za-z_]|\[")  # behind it: Genotype(…)._replace(…), Genotype(…)[0]
_ALIAS = re.compile(r"[ \t]*(\w{1,100})[ \t]*=[ \t]*(\w{1,100})[ \t\r]*(?:#.*)?")
_QUOTE = re.compile("['\"]")  # without one it is no cell: "the Genotype (of DARTS)"
# A megabyte of these takes `ast.parse` minutes.
_FORMATTED_STRING = re.compile(r"""\b[rR]?[fF][rR]?['"]""")
# Around the value that is their first argument: np.int64(0), array([2, 3]), tensor(1), list(range(2, 6)).
_WRAPPER = re.compile(r"list|tuple|set|frozenset|array|tensor|(?:u?int|float)\d{0,2}|str_")


class Fields(dict):
    """The arguments of one `Genotype(…)`, by their names."""


@dataclass(frozen=True)
class Found:
    """One genotype of a text.

    Attributes:
        name: the name to which it is assigned, or its key in a dictionary; empty if there is none.
        line: the line in which it begins, from 1; in JSON the line of the whole content.
        value: `Fields`, or the dictionary, whatever it holds.
        problem: why there is no value; else empty.
        is_code: whether the problem is that it is part of a program, and so no genotype at all.
    """

    name: str
    line: int
    value: Any
    problem: str = ""
    is_code: bool = False


class _CodeError(Exception):
    """A text has names or calls where a value is expected."""


def find_all(text: str) -> list[Found]:
    """Find all genotypes and dictionaries in a text, in order, also those with a second name (`DARTS = DARTS_V2`)."""
    if text.lstrip()[:1] == "[" and not (whole := _read(text.strip(), False, "", 1, False)).problem:
        return [whole]
    text = _UNUSED_STRING.sub(lambda string: "\n" * string[0].count("\n"), text)
    found = list(_pieces(text))
    named = {item.name: item for item in found if item.name}
    if named:
        for line, content in enumerate(text.split("\n"), 1):
            alias = _ALIAS.fullmatch(content)
            if alias and alias[2] in named:
                item = named[alias[2]]
                named[alias[1]] = Found(alias[1], line, item.value, item.problem, item.is_code)
                found.append(named[alias[1]])
        found.sort(key=lambda item: item.line)
    return found


def choose(found: Sequence[Found], name: str) -> tuple[Found, list[str]]:
    """Choose the genotype that is meant, and say in sentences what the user should know about the choice.

    Args:
        found: the genotypes of a text, at least one.
        name: a name or a line; empty for the only one. Of several without names or with the same name, as in a log,
            the last one is meant.

    Raises:
        InputError: there is no genotype of this name; or there are several names, and none is given.
    """
    found = [item for item in found if not item.is_code] or found
    names = printable(", ".join(dict.fromkeys(item.name or f"line {item.line}" for item in found)), 300)
    if name:
        by_line = [item for item in found if name == str(item.line)]
        found = [item for item in found if f".{item.name}".endswith(f".{name}")] or by_line
        if not found:
            raise InputError(f"no genotype is named {name!r:.60}; the names are {names}.")
    last = found[-1]
    if all((item.value, item.problem) == (last.value, last.problem) for item in found):
        return last, []
    if len({item.name for item in found}) > 1:
        raise InputError(f"{len(found)} genotypes; choose one by FILE:NAME or FILE:LINE; the names are {names}.")
    return last, [f"the last of {len(found)} genotypes is used, in line {last.line}."]


def parse(text: str) -> dict[str, Any]:
    """Read the fields of the one genotype in a text.

    Raises:
        InputError: there is none, or more than one, or it is not of that form; the line is named.
    """
    found = [item for item in find_all(text) if isinstance(item.value, Fields) or item.problem]
    if not found:
        raise InputError("genotype text: there is no Genotype(…) in it.")
    chosen, notes = choose(found, "")
    if notes or chosen.problem:
        raise InputError(f"genotype text: {chosen.problem or f'{len(found)} genotypes.'}")
    try:
        fields, further = fields_of(chosen.value)
    except InputError as error:
        raise InputError(f"genotype text: {error}") from None
    return fields | dict.fromkeys(further)


def fields_of(content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a genotype, all edges of a cell in one list, and the names of the fields left out.

    Raises:
        InputError: a field is given twice, or a node does not have two edges.
    """
    fields: dict[str, Any] = {}
    further = []
    for key, value in content.items():
        name = OTHER_NAMES.get(key, key)
        if name not in FIELDS:
            further.append(str(key))
        elif name in fields:
            raise InputError(f"{name} is given twice.")
        else:
            fields[name] = value if name.endswith("_concat") else _flat(name, value, further)
    return fields, further


def _flat(field: str, items: Any, further: list[str]) -> Any:
    """Put edges into one list, without GDAS's third item of an edge, its weight."""
    if not isinstance(items, list | tuple):
        return items
    if items and all(isinstance(item, list | tuple) and item and isinstance(item[0], list | tuple) for item in items):
        for index, item in enumerate(items):
            if len(item) != 2:
                raise InputError(f"{field}[{index}]: {count(len(item), 'edge')}, but a node has two.")
        items = [edge for item in items for edge in item]
    if any(isinstance(edge, list | tuple) and len(edge) == 3 and type(edge[2]) is float for edge in items):
        further.append(f"the weights in {field}")
        items = [edge[:2] if isinstance(edge, list | tuple) and len(edge) == 3 else edge for edge in items]
    return items


def _pieces(text: str) -> Iterator[Found]:
    """Read each `Genotype(…)` and `{…}` by itself, except those in a line that is a comment.

    Raises:
        InputError: there are too many.
    """
    line, is_comment, position, num_found = 1, _COMMENT.match(text) is not None, 0, 0
    head = _HEAD.search(text)
    while head:
        start, end, depth, inner = head.start(), head.end(), 1, None
        newline = text.rfind("\n", position, start)
        if newline >= 0:
            line += text.count("\n", position, start)
            is_comment = _COMMENT.match(text, newline + 1) is not None
        position = start
        while depth and not inner and (token := _TOKEN.search(text, end)):
            end = token.end()
            inner = token if token[0][0] == "G" else None  # one begins, so that the one before was cut off
            depth += (token[0] in "[({") - (token[0] in "])}")
        if not is_comment and (head[0] != "{" or "normal" in text[start:end]):
            num_found += 1
            if num_found > MAX_GENOTYPES:
                raise InputError(f"more than {MAX_GENOTYPES:,} genotypes.")
            before = _NAME.search(text[max(0, start - 120) : start])
            name = (before[1] or before[2]) if before else ""
            item = _read(text[start:end], depth > 0, name, line, _USED.match(text, end) is not None)
            if head[0] != "{" or not item.problem:
                yield item
        head = inner or _HEAD.search(text, end)


def _read(piece: str, is_cut_off: bool, name: str, line: int, is_used: bool) -> Found:
    """Read the value of one `Genotype(…)` or `{…}`."""
    is_code = False
    try:
        if is_used or not _QUOTE.search(piece) or _FORMATTED_STRING.search(piece):
            raise _CodeError
        if is_cut_off:
            raise ValueError("the genotype is cut off")
        if len(piece) > MAX_TEXT:
            raise ValueError(f"longer than {MAX_TEXT:,} characters")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Found(name, line, _value(ast.parse(piece, mode="eval").body))
    except _CodeError:
        problem, is_code = f"names or calls where values are expected, in {piece[:40]!r}; nothing is run", True
    except SyntaxError as error:
        near = (error.text or "")[max(0, (error.offset or 1) - 1) :].strip()
        problem = f"{error.msg}, at {near[:20]!r}" if near else error.msg
    except (RecursionError, MemoryError):
        problem = "nested too deeply"
    except ValueError as error:
        problem = str(error)
    return Found(name, line, None, f"line {line}: {printable(problem, 160)}.", is_code)


def _value(node: ast.expr | None) -> Any:
    """Return what `ast.literal_eval` would, but lists for all sequences, and `Fields` for `Genotype(…)`."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
            return [_value(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return each_key_once([(_value(key), _value(value)) for key, value in zip(keys, values, strict=True)])
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=arguments, keywords=keywords):
            if name == "Genotype":
                return _arguments(arguments, keywords)
            if name == "range":
                return _range([_value(argument) for argument in arguments])
            if _WRAPPER.fullmatch(name) and arguments:
                return _value(arguments[0])
    raise _CodeError


def _arguments(positional: list[ast.expr], keywords: list[ast.keyword]) -> Fields:
    names = [*FIELDS, *(f"argument {number}" for number in range(len(FIELDS) + 1, len(positional) + 1))]
    given = list(zip(names, positional, strict=False)) + [(keyword.arg or "**", keyword.value) for keyword in keywords]
    if any(name == "**" for name, _ in given):
        raise _CodeError
    known = {*FIELDS, *OTHER_NAMES}
    return Fields(each_key_once([(name, _value(node) if name in known else None) for name, node in given]))


def _range(numbers: list[Any]) -> list[int]:
    if not all(type(number) is int and abs(number) < 10_000 for number in numbers) or not 1 <= len(numbers) <= 3:
        raise ValueError(f"range of {numbers!r:.40}")
    return list(range(*numbers))


def write(cells: Mapping[str, tuple[Sequence[tuple[str, int]], Sequence[int]]]) -> str:
    """Write the edges and outputs of each cell as text; a concatenation of successive nodes is written as a range."""
    fields = []
    for name, (edges, concat) in cells.items():
        span = range(concat[0], concat[-1] + 1)
        fields += [f"{name}={list(edges)}", f"{name}_concat={span if list(span) == list(concat) else list(concat)}"]
    return f"Genotype({', '.join(fields)})"
