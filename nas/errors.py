"""The two ways in which a script ends early, each with one sentence for who runs it; and how to quote others in it."""


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
