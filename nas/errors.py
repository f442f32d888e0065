"""The one exception that stands for a mistake of the user."""


class InputError(ValueError):
    """What was wrong, where (flag, file, field), and what to do, in one sentence.

    Raised where input enters: command line, files, folders. The scripts print it and exit with code 2.
    """
