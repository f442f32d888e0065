"""The text in which papers and repositories exchange cells, read by a scanner: nothing in it is run.

Genotype(normal=[('sep_conv_3x3', 1), …], normal_concat=range(2, 6), reduce=[…], reduce_concat=range(2, 6))
"""

import re
from collections.abc import Sequence
from typing import Any

from nas.errors import InputError

MAX_TEXT = 100_000  # characters; a genotype takes about 600

_NUMBER = r"[0-9]{1,4}"
_RANGE = rf"range\(\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\)"
_PAIR = re.compile(rf"""(?:(\[)|\()\s*(?:'(\w{{1,40}})'|"(\w{{1,40}})")\s*,\s*({_NUMBER})\s*(?(1)\]|\))""")
_HEAD = re.compile(r"\s*(?:\w+\s*=\s*)?Genotype\s*\(")
_FIELD = re.compile(r"\s*(normal|normal_concat|reduce|reduce_concat)\s*=\s*")
_GAP = re.compile(r"\s*(,?)\s*")


def parse(text: str) -> dict[str, Any]:
    """The fields `normal`, `normal_concat`, `reduce`, `reduce_concat` of a genotype text, as far as they are given.

    Raises:
        InputError: the text is not of that form; the character is named.
    """
    if len(text) > MAX_TEXT:
        raise InputError(f"genotype text: longer than {MAX_TEXT:,} characters.")
    position = 0

    def take(pattern: str | re.Pattern) -> re.Match | None:
        nonlocal position
        match = re.compile(pattern).match(text, position)
        position = match.end() if match else position
        return match

    def take_items(pattern: str | re.Pattern) -> list[re.Match]:
        closing = {"[": r"\]", "(": r"\)"}[must(r"\s*([\[(])\s*", "'['")[1]]
        items = []
        while not take(rf"\s*{closing}"):
            items.append(must(pattern, "an item of the list"))
            if not must(_GAP, "")[1]:
                must(closing, "',' or the end of the list")
                break
        return items

    def must(pattern: str | re.Pattern, wanted: str) -> re.Match:
        match = take(pattern)
        if match is None:
            raise InputError(f"genotype text, character {position}: expected {wanted}, found {text[position:][:20]!r}.")
        return match

    must(_HEAD, "'Genotype('")
    fields: dict[str, Any] = {}
    while not take(r"\s*\)\s*\Z"):
        name = must(_FIELD, "normal=, normal_concat=, reduce= or reduce_concat=")[1]
        if name in fields:
            raise InputError(f"genotype text: {name} is given twice.")
        if not name.endswith("_concat"):
            fields[name] = tuple((pair[2] or pair[3], int(pair[4])) for pair in take_items(_PAIR))
        elif span := take(_RANGE) or take(rf"list\(\s*{_RANGE}\s*\)"):
            fields[name] = tuple(range(int(span[1]), int(span[2])))
        else:
            fields[name] = tuple(int(number[0]) for number in take_items(_NUMBER))
        if not must(_GAP, "")[1]:
            must(r"\)\s*\Z", "',' or ')' and the end of the text")
            break
    return fields


def write(
    normal: Sequence[tuple[str, int]],
    normal_concat: Sequence[int],
    reduce: Sequence[tuple[str, int]],
    reduce_concat: Sequence[int],
) -> str:
    """The text of two cells; a concatenation of successive nodes is written as a range."""
    fields = []
    for name, edges, concat in (("normal", normal, normal_concat), ("reduce", reduce, reduce_concat)):
        span = range(concat[0], concat[-1] + 1)
        fields += [f"{name}={list(edges)}", f"{name}_concat={span if list(span) == list(concat) else list(concat)}"]
    return f"Genotype({', '.join(fields)})"
