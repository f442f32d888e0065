"""The two scripts run in this process, as starting torch takes longer than a small run."""

import contextlib
import io
import sys

import pytest

import search
import train_final
from nas.config.flags import FinalConfig, SearchConfig
from nas.entry import run_script
from nas.selection.jobs import Ending, is_done

# A step of a search in which an edge has two primitives takes a fifth of the time.
TWO = ["--primitives", "skip_connect", "sep_conv_3x3"]
# From the images to a network, with each stage at its smallest.
WHOLE_PATH = ["--dataset=digits", "--train-limit=60", "--init-channels=2", "--num-cells=1", "--num-nodes=1"]
WHOLE_PATH += ["--epochs=1", "--batch-size=12", "--searches=1", "--derive-top=2", "--random-baseline=2", *TWO]
WHOLE_PATH += ["--selection-epochs=4", "--selection-halving", "--selection-seeds=2", "--selection-channels=2"]
WHOLE_PATH += ["--selection-cells=1", "--name=p", "--train-final", "--final-epochs=1", "--final-channels=2"]
WHOLE_PATH += ["--final-cells=1", "--export=safetensors"]
MAINS = {"search": (search.main, SearchConfig), "train_final": (train_final.main, FinalConfig)}


def call(script, folder, *arguments):
    """The exit code of a script that is called in a folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", [f"{script}.py", *arguments])
        return run_script(*MAINS[script])


def in_this_process(folder):
    """What stands for `protocol.runner`: it runs jobs here, one after another, in the folder of a test."""

    def run_all(jobs, tick):
        endings = []
        for job in jobs:
            which = f"--resume={job.folder}" if job.path.exists() else f"--name={job.path.name}"
            errors = io.StringIO()
            with (
                job.output.open("a") as output,
                contextlib.redirect_stdout(output),
                contextlib.redirect_stderr(errors),
            ):
                arguments = f"--config={job.config}", "--dry-run" if job.dry_run else which
                code = 0 if is_done(job) else call(job.script.stem, folder, *arguments)
            if code:
                endings.append(Ending(code, errors.getvalue().removeprefix("error: ").strip()))
        return endings

    return lambda *_: contextlib.nullcontext(run_all)
