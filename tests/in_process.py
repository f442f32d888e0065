"""The two scripts run in this process, as starting torch takes longer than a small run."""

import sys

import pytest

import search
import train_final
from nas.config.flags import FinalConfig, SearchConfig
from nas.entry import run_script

# A step of a search in which an edge has two primitives takes a fifth of the time.
TWO = ["--primitives", "skip_connect", "sep_conv_3x3"]
MAINS = {"search": (search.main, SearchConfig), "train_final": (train_final.main, FinalConfig)}


def call(script, folder, *arguments):
    """The exit code of a script that is called in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        return run_script(*MAINS[script])
