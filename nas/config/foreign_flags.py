"""Answers to the flags of other programs (DARTS, PC-DARTS, P-DARTS, DrNAS, NNI, pt.darts, PyTorch's examples).

Each answer is the flag of the same meaning here, or a sentence. In a sentence {gpus}, {name} and {rest} stand for the
given value: as numbers of GPUs, as the last part of a path, and as 1 minus the value.
"""

import dataclasses
import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from nas.config.file import flag_of
from nas.config.flags import FinalConfig, SearchConfig

_GPU = "write CUDA_VISIBLE_DEVICES={gpus} before the command; torchrun --nproc-per-node N {script} uses N GPUs."
_PROCESSES = "torchrun --nproc-per-node N {script} uses N processes, each with its own GPU."
_NO_WORKERS = "all images are in memory, so no workers load them; leave the flag out."
_RECORDS = "every tenth step is recorded; leave the flag out."
_SECOND_ORDER = "second order is the default; leave the flag out. First order is --hypergradient first-order."
_HEAD_IS_ON = "the auxiliary head is on unless you give --auxiliary-weight 0; leave the flag out."
_NO_HEAD = "the supernet has no auxiliary head; leave the flag out."
_NO_CUTOUT = "a search does not use cutout, as in the authors' own runs; leave the flag out."
_NO_DROP_PATH = "a search drops no paths, as in the authors' code; leave the flag out."
_ONLY_COSINE = "the learning rate falls along a cosine, and there is no other schedule; leave the flag out."
_STAGES = "it belongs to the stages of P-DARTS, but there is only one stage here; leave the flag out."
_FLOAT32 = "everything is computed in float32; leave the flag out."
_GOES_ON = "--resume RUN_DIR resumes a run from its last checkpoint."
_MEASURES = "--evaluate RUN_DIR measures the test accuracy of a trained network."

_BOTH = {
    **dict.fromkeys(("layers", "n-layers", "num-layers"), "--num-cells"),
    **dict.fromkeys(("channels", "channel", "init-ch"), "--init-channels"),
    **dict.fromkeys(("data", "data-path", "data-root", "datapath", "root", "tmp-data-dir"), "--data-dir"),
    **dict.fromkeys(("output-dir", "save-dir", "log-dir", "logdir", "out", "output"), "--run-dir"),
    **dict.fromkeys(("manual-seed", "manualseed", "rand-seed", "random-seed"), "--seed"),
    **dict.fromkeys(("num-epochs", "n-epochs", "max-epochs"), "--epochs"),
    **dict.fromkeys(("save", "note", "exp-name"), "the name of the run is --name {name}."),
    **dict.fromkeys(("gpu", "gpus", "gpu-id", "gpu-ids"), _GPU),
    **dict.fromkeys(("parallel", "multi-gpu", "world-size", "distributed", "multiprocessing-distributed"), _PROCESSES),
    **dict.fromkeys(("workers", "num-workers", "n-workers"), _NO_WORKERS),
    **dict.fromkeys(("report-freq", "print-freq", "log-frequency", "log-interval"), _RECORDS),
    **dict.fromkeys(("checkpoint", "load", "load-checkpoint"), _GOES_ON),
    **dict.fromkeys(("amp", "fp16", "half"), _FLOAT32),
    **dict.fromkeys(("gamma", "decay-period", "lr-scheduler", "scheduler"), _ONLY_COSINE),
    **dict.fromkeys(("add-layers", "add-width", "dropout-rate"), _STAGES),
    "wd": "--weight-decay",
    "set": "--dataset",
    "cifar100": "it is --dataset cifar100.",
    "cuda": "a GPU is used if there is one; --device cuda requires one.",
    "no-cuda": "it is --device cpu.",
    "cpu": "it is --device cpu.",
    "label-smooth": "the loss has no label smoothing; leave the flag out.",
}
_SEARCH = {
    **dict.fromkeys(("learning-rate", "lr", "w-lr"), "--lower-lr"),
    **dict.fromkeys(("learning-rate-min", "lr-min", "min-lr", "w-lr-min"), "--lower-lr-min"),
    **dict.fromkeys(("arch-learning-rate", "arch-lr", "alpha-learning-rate"), "--alpha-lr"),
    **dict.fromkeys(("arch-weight-decay", "arch-wd"), "--alpha-weight-decay"),
    **dict.fromkeys(("nodes", "steps", "max-nodes"), "--num-nodes"),
    **dict.fromkeys(("unrolled", "second-order"), _SECOND_ORDER),
    **dict.fromkeys(("auxiliary", "auxiliary-weight", "aux-weight"), _NO_HEAD),
    **dict.fromkeys(("cutout", "cutout-length"), _NO_CUTOUT),
    **dict.fromkeys(("drop-path-prob", "drop-path"), _NO_DROP_PATH),
    "w-momentum": "--momentum",
    "w-weight-decay": "--weight-decay",
    "w-grad-clip": "--grad-clip",
    "first-order": "it is --hypergradient first-order.",
    "train-portion": "the share of the images for the alphas is --upper-fraction {rest}; the weights get the rest.",
    "model-path": "checkpoints are in the run folder, which --run-dir and --name set; leave the flag out.",
    "k": "all channels pass through the operations, as in DARTS; leave the flag out.",
}
_FINAL = {
    **dict.fromkeys(("arch", "arc-checkpoint"), "--genotype"),
    **dict.fromkeys(("learning-rate", "w-lr"), "--lr"),
    **dict.fromkeys(("learning-rate-min", "lr-min", "min-lr"), "the learning rate falls to 0; leave the flag out."),
    **dict.fromkeys(("auxiliary", "aux"), _HEAD_IS_ON),
    **dict.fromkeys(("aux-weight", "aux-loss-weight"), "--auxiliary-weight"),
    **dict.fromkeys(("cutout-length", "cutout-size"), "--cutout"),
    **dict.fromkeys(("model-path", "test", "eval"), _MEASURES),
    "drop-path-prob": "--drop-path",
}
# Flags that take a value here, but none in other programs.
_WITHOUT_VALUE = {
    "cutout": "cutout is on, with a square of half the image (16 pixels for CIFAR-10); leave the flag out, or add the "
    "side in pixels.",
    "resume": _GOES_ON,
    "evaluate": _MEASURES,
}
_CELLS = {"DARTS": "DARTS_V2"}  # cells whose name here differs from that in the authors' code


SENTENCES: dict[type, dict[str, str]] = {SearchConfig: _BOTH | _SEARCH, FinalConfig: _BOTH | _FINAL}
SCRIPTS: dict[type, str] = {SearchConfig: "search.py", FinalConfig: "train_final.py"}


def advice(kind: type, arguments: Sequence[str]) -> str:
    """Return sentences on flags of other programs, and of the other script, among the arguments of a script.

    Args:
        kind: the config of the script.
    """
    own, table = flags_of(kind), SENTENCES[kind]
    elsewhere = {flag: f"it is a flag of {script}." for other, script in SCRIPTS.items() for flag in flags_of(other)}
    found: dict[str, str] = {}
    for argument, following in itertools.pairwise([*arguments, "--"]):
        flag, equals, value = argument.partition("=")
        name = flag[2:].lower().replace("_", "-")
        if not flag.startswith("--"):
            continue
        if not equals and not following.startswith("--"):
            value = following
        if name in own:
            sentence = None if value else _WITHOUT_VALUE.get(name)
        else:
            sentence = table.get(name, elsewhere.get(name))
        if sentence is not None:
            found[flag] = f"{flag}: {_filled(sentence, value, SCRIPTS[kind])}"
    return " ".join(found.values())


def flags_of(kind: type) -> set[str]:
    """Return the flags of a script, without the dashes in front of them."""
    config = kind()
    groups = (getattr(config, group.name) for group in dataclasses.fields(config))
    return {flag_of(field.name)[2:] for group in groups for field in dataclasses.fields(group)}


def _filled(sentence: str, value: str, script: str) -> str:
    if re.fullmatch(r"--[a-z-]+", sentence):
        value = _CELLS.get(value, value) if sentence == "--genotype" else value
        return f"here it is {sentence}{value and ' '}{value and shlex.quote(value)}."
    return sentence.format(
        script=script,
        gpus=value if re.fullmatch(r"\d[\d,]*", value) else "0",
        name=shlex.quote(Path(value).name or "NAME"),
        rest=f"{1 - float(value):g}" if re.fullmatch(r"0?\.\d{1,9}", value) else "0.5",
    )
