"""The two ways in which a script ends early, each with one sentence for who runs it; quoting and counting in it."""


class InputError(ValueError):
    """What was wrong, where (flag, file, field), and what to do, in one sentence.

    Raised where input enters: command line, files, folders. The scripts print it and exit with code 2.
    """


class Stopped(Exception):  # noqa: N818, as it is no mistake of anybody's
    """Why a run ends before its end, and how to go on, in one sentence.

    Args:
        code: exit code of the script.
    """

    def __init__(self, sentence: str, code: int = 1):
        super().__init__(sentence)
        self.code = code


def printable(value: object, limit: int) -> str:
    """One line of at most `limit` characters that gives a terminal no orders, whoever wrote it."""
    text = "".join(part if part.isprintable() else ascii(part)[1:-1] for part in str(value)[: limit + 1])
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def count(number: int, noun: str, form: str = "") -> str:
    """Such as 1 step, 2 steps, 3 classes; `form` is how the number is written, such as "," for 1,000."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "rch", "tch")) else "s"
    return f"{number:{form}} {noun}{ending}"
