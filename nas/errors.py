"""The two ways in which a script ends early, each with one sentence for its user; and how sentences quote and count."""

import html
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError


class InputError(ValueError):
    """One sentence that says what was wrong, where (flag, file, field), and what to do.

    Raised where input enters: command line, files, folders. The scripts print it and exit with code 2.
    """


class Stopped(Exception):  # noqa: N818, as it is no mistake of anybody's
    """One sentence that says why a run ends early, and how to resume it.

    Args:
        code: exit code of the script.
    """

    def __init__(self, sentence: str, code: int = 1):
        super().__init__(sentence)
        self.code = code


def printable(value: object, limit: int) -> str:
    """Return one line of at most `limit` characters, with control characters escaped."""
    text = "".join(part if part.isprintable() else ascii(part)[1:-1] for part in str(value)[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def markdown(value: object, limit: int = 60) -> str:
    """Return what `printable` does, for a Markdown file, where it is text and nothing else."""
    text = re.sub(r"(?i)([\\`*_\[\]|~!$#@^]|:(?=//)|(?<=www)\.)", r"\\\1", printable(value, limit))
    return html.escape(text, quote=False)


def count(number: int, noun: str, form: str = "") -> str:
    """Return a number and its noun, such as 1 step or 3 classes; the format `form` writes the number."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "rch", "tch")) else "s"
    return f"{number:{form}} {noun}{ending}"


def field_at(location: tuple[int | str, ...]) -> str:
    """Return a field's place in a file in words, such as progress.peaks[3]."""
    # The file chose these names: one that is no identifier may hold a line break, or a terminal's control characters.
    parts = (f".{part:.40}" if str(part).isidentifier() else f"[{part!r:.40}]" for part in location)
    return "".join(parts).removeprefix(".")


def first_problem(error: "ValidationError", name: Callable[[tuple[int | str, ...]], str] = field_at) -> str:
    """Return one sentence on the first problem that pydantic found: the field, what it must be, and what it is.

    Args:
        name: turns the location of a field into what the sentence calls it.
    """
    problem = error.errors(include_url=False)[0]
    field = name(problem["loc"]) if problem["loc"] else "content"
    match problem["type"]:
        case "value_error":
            field, what = field.removesuffix("content"), str(problem["ctx"]["error"])
        case "missing":
            what = "missing."
        case "extra_forbidden" | "unexpected_keyword_argument":
            what = "unknown field."
        case _:
            what = problem["msg"].replace(" should ", " must ").removeprefix("Input ")
    if not what.endswith("."):  # a sentence of our own may be complete
        what = f"{what}, got {problem['input']!r:.60}."
    return f"{field}: {what}" if field else what
