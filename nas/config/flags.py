"""The flags of the two scripts: each with its unit, its source and its range."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, ConfigDict, Field

SEEDS = 2**32
MOST_THREADS = 1024


def _in_float32(given: float) -> float:
    if given > 3e38:
        raise ValueError("must be at most 3e38")
    return given


Channels = Annotated[int, Field(ge=1, le=1024)]
Cells = Annotated[int, Field(ge=1, le=200)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
BatchSize = Annotated[int, Field(ge=2, le=100_000)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_in_float32)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_in_float32)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
BetweenZeroAndOne = Annotated[float, Field(gt=0, lt=1)]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Stem = Literal["cifar", "imagenet"]
Resize = Literal["crop", "squeeze", "pad"]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


def _optional(metavar: str, default: str) -> Any:
    """How --help shows a flag whose default is to be worked out."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def _address(given: str) -> str:
    if not re.fullmatch(r"local|auto|[A-Za-z0-9][A-Za-z0-9.-]{0,199}:[0-9]{1,5}", given):
        raise ValueError("must be local, auto or the HOST:PORT of a cluster")
    return given


# tyro has no value that may be left out.
_ADDRESS_OR_LOCAL = tyro.constructors.PrimitiveConstructorSpec[str | None](
    nargs="*",
    metavar="[ADDRESS]",
    instance_from_str=lambda given: " ".join(given) or "local",
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [] if value is None else [value],
)

# Strict: a config that is read back from a file must hold the very types.
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Data:
    """Images"""

    __pydantic_config__ = _STRICT

    dataset: Literal["cifar10", "cifar100", "mnist", "kmnist", "fashion-mnist", "svhn", "digits", "folder", "npz"] = (
        "cifar10"
    )
    """Data set. digits is embedded and works offline.
    folder reads DATA_DIR/train/CLASS/** and DATA_DIR/test/CLASS/**, or val where there is no test.
    npz reads DATA_DIR/train.npz and test.npz: the arrays images, labels and, if you like, classes and mirror.
    Files of other tools are read as well where their meaning is plain, and a line says how."""
    data_dir: str = "data"
    """Folder of the images. The sets that torchvision knows are unpacked there from their archives, if these are there
    (cifar-10-python.tar.gz and the like), and else downloaded."""
    image_size: Annotated[Annotated[int, Field(ge=8, le=1024)] | None, _optional("INT", "32")] = None
    """Pixels a side, for folder alone: images become RGB, and are scaled to squares.
    The other sets have their own size."""
    resize: Resize = "crop"
    """How an oblong image of folder becomes a square. crop: both ends are cut off. squeeze: its proportions change.
    pad: it stands between black bars."""
    test_fraction: BelowOne = 0.0
    """Where folder has no test set: hold back this share of each class for it, the same images whatever the seed.
    Give the search and the training the same value. Then DATA_DIR/CLASS/** may also be all there is."""
    train_limit: Annotated[Annotated[int, Field(ge=4)] | None, _optional("INT", "all")] = None
    """Use so many training images, drawn by the seed."""
    skip_bad_images: Flag = False
    """Leave out files of folder that cannot be read as images, and say how many, where they would end the run."""
    balanced: Flag = False
    """Draw each class as often as any other in training; images of small classes come again sooner."""
    no_flip: Flag = False
    """Do not mirror training images, as with letters; otherwise half of them are, except in digits and svhn."""
    crop_padding: Annotated[
        Annotated[int, Field(ge=0)] | None, _optional("INT", "an eighth of the image: 4 for CIFAR-10")
    ] = None
    """Pixels by which training images are shifted at most to each side; 0 for no shift (DARTS, appendix A.2.1)."""


@dataclass(frozen=True)
class Run:
    """Run"""

    __pydantic_config__ = _STRICT

    seed: Seed = 0
    """Everything random follows from it: the same seed and --threads on the same machine give the same bits."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute. auto takes cuda, else mps, else cpu."""
    threads: Annotated[
        Annotated[int, Field(ge=1, le=MOST_THREADS)] | None, _optional("INT", "as many as cores are free")
    ] = None
    """CPU threads of each process. Without the flag OMP_NUM_THREADS counts, else the cores that are free at the start.
    A run that goes on keeps its number, as bits depend on it."""
    run_dir: str = "runs"
    """Folder of the run folders."""
    name: Annotated[Annotated[str, Field(pattern=_NAME)] | None, _optional("STR", "what it is, seed and time")] = None
    """Name of the run folder: letters, digits, '.', '_', '-'."""
    config: Annotated[str | None, _optional("FILE", "none")] = None
    """Begin with the flags of another run: its config.json, or its folder. Flags given beside it win."""
    dry_run: Flag = False
    """Say what would happen and how long it would take, by a few steps, and begin nothing.
    Images are downloaded, or read and kept for the next time, as they would be."""
    resume: Annotated[str | None, _optional("RUN_DIR", "none")] = None
    """Go on with a run from its last checkpoint, bit for bit, with its flags.
    Of these --epochs may grow; --data-dir, --device, --threads and the three below may be others."""
    checkpoint_minutes: NotNegative = 5.0
    """Minutes between checkpoints within an epoch; each epoch ends with one. 0: after every step."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 10
    """So many steps in a row whose loss, gradient or weights are not finite end the run. None of them is applied."""
    deterministic: Flag = False
    """Refuse operations that may give other bits the next time. On a CPU there are none."""
    sync_batch_norm: Flag = False
    """Under torchrun: batch norms see the whole batch, as one process does, not the part of their own process."""


@dataclass(frozen=True)
class SearchRun(Run):
    """Run"""

    preset: Literal["paper", "paper-first-order", "quick"] = "paper"
    """What the other flags are where they are not given.
    quick is a small supernet, which takes minutes on the digits and hours on CIFAR-10."""


@dataclass(frozen=True)
class SupernetSize:
    """Supernet"""

    __pydantic_config__ = _STRICT

    init_channels: Channels = 16
    """Channels of the first cell (DARTS, appendix A.1.1)."""
    num_cells: Cells = 8
    """Cells, two of which reduce (DARTS, appendix A.1.1)."""
    num_nodes: Annotated[int, Field(ge=1, le=8)] = 4
    """Nodes a cell (DARTS, appendix A.1.1)."""
    stem: Stem = "cifar"
    """First layers, as in the final network. imagenet divides the sides of the images by eight, for 224 × 224."""


@dataclass(frozen=True)
class LowerLevel:
    """Lower level: weights, by SGD"""

    __pydantic_config__ = _STRICT

    epochs: Epochs = 50
    """Passes over the images of the lower level (DARTS, appendix A.1.1)."""
    batch_size: BatchSize = 64
    """Images a batch, at either level (DARTS, appendix A.1.1)."""
    lower_lr: Positive = 0.025
    """Learning rate at the start; it falls along a cosine over the epochs (DARTS, appendix A.1.1)."""
    lower_lr_min: NotNegative = 0.001
    """Learning rate at the end (the authors' code)."""
    momentum: BelowOne = 0.9
    """Momentum (DARTS, appendix A.1.1)."""
    weight_decay: NotNegative = 3e-4
    """Weight decay (DARTS, appendix A.1.1)."""
    grad_clip: Positive = 5.0
    """Largest Euclidean norm of the weights' gradient (the authors' code)."""


@dataclass(frozen=True)
class UpperLevel:
    """Upper level: alphas, by Adam with betas (0.5, 0.999)"""

    __pydantic_config__ = _STRICT

    alpha_lr: Positive = 3e-4
    """Learning rate (DARTS, appendix A.1.1)."""
    alpha_weight_decay: NotNegative = 1e-3
    """Weight decay (DARTS, appendix A.1.1)."""
    upper_fraction: BetweenZeroAndOne = 0.5
    """Share of the training images that the alphas learn from, not the weights (DARTS, section 3.1)."""
    hypergradient: Literal["onestage", "first-order"] = "onestage"
    """onestage: DARTS, equation 7, by finite differences. first-order: the same for a virtual step of 0, quicker."""
    share_lower_step: Flag = False
    """Quicker, not as published: w′ is the step that the weights keep, so that four passes make a step, not five."""
    r: Positive = 0.01
    """Length of the weights' perturbation in the finite differences (DARTS, section 2.3)."""


@dataclass(frozen=True)
class Several:
    """Several searches, from which the best cell is chosen"""

    __pydantic_config__ = _STRICT

    searches: Annotated[int, Field(ge=1, le=200)] = 1
    """Search so often, with seeds from --seed on (DARTS, section 3.2: four times).
    Then train each distinct cell shortly, the images of the first seed's alphas held out, and export the best one."""
    random_baseline: Annotated[int, Field(ge=0, le=200)] = 0
    """Train so many cells drawn at random in the same way: what the searches have to beat."""
    selection_epochs: Epochs = 100
    """Epochs of each such training (DARTS, section 3.2)."""
    selection_channels: Channels = 36
    """Channels of its first cell: those of the final network (DARTS, appendix A.2.1)."""
    selection_cells: Cells = 20
    """Cells, two of which reduce: those of the final network (DARTS, appendix A.2.1)."""
    ray: Annotated[
        Annotated[str, AfterValidator(_address)] | None,
        _ADDRESS_OR_LOCAL,
        tyro.conf.arg(help_behavior_hint="(default: without Ray, one after another)"),
    ] = None
    """Run them side by side as tasks of Ray: without a value on this machine, else on the cluster at ADDRESS.
    This is HOST:PORT, or auto for the cluster of this machine. Its nodes have this folder at the same place."""
    devices_per_search: Annotated[float, Field(ge=0.0001, le=1024, allow_inf_nan=False)] = 1.0
    """With --ray: GPUs that a search or training takes, or CPU cores where there are no GPUs. 0.5: two share one."""


@dataclass(frozen=True)
class SearchConfig:
    """Search a cell: weights and alphas of a supernet learn in turn.

    Example: python search.py --dataset digits --preset quick
    """

    __pydantic_config__ = _STRICT

    data: Data = field(default_factory=Data)
    supernet: SupernetSize = field(default_factory=SupernetSize)
    lower: LowerLevel = field(default_factory=LowerLevel)
    upper: UpperLevel = field(default_factory=UpperLevel)
    several: Several = field(default_factory=Several)
    run: SearchRun = field(default_factory=SearchRun)


PRESETS = {
    "paper": SearchConfig(),
    "paper-first-order": SearchConfig(upper=UpperLevel(hypergradient="first-order")),
    "quick": SearchConfig(
        supernet=SupernetSize(init_channels=8, num_cells=3),
        lower=LowerLevel(epochs=8, batch_size=96),
        upper=UpperLevel(alpha_lr=0.01),
        several=Several(selection_epochs=10, selection_channels=16, selection_cells=3),
    ),
}


def is_several(config: SearchConfig) -> bool:
    """Whether it takes more than one search, or cells to compare it with."""
    return config.several.searches > 1 or config.several.random_baseline > 0


@dataclass(frozen=True)
class Network:
    """Final network"""

    __pydantic_config__ = _STRICT

    genotype: Annotated[str | None, _optional("PATH_OR_NAME", "none")] = None
    """The cell: a name such as DARTS_V2, its text, a file with it (FILE:NAME for one of several), or a run folder."""
    evaluate: Annotated[str | None, _optional("RUN_DIR", "none")] = None
    """Instead of training: the run folder of a trained network, whose test accuracy is measured again.
    Its flags hold, but for --device, --threads and, where its images have been moved, --data-dir."""
    init_channels: Channels = 36
    """Channels of the first cell (DARTS, appendix A.2.1)."""
    num_cells: Cells = 20
    """Cells, two of which reduce (DARTS, appendix A.2.1)."""
    stem: Stem = "cifar"
    """First layers. imagenet divides the sides of the images by eight, for 224 × 224 (the authors' code)."""
    auxiliary_weight: NotNegative = 0.4
    """Weight of the auxiliary head's loss (DARTS, appendix A.2.1); 0 for no head."""
    drop_path: BelowOne = 0.2
    """Probability of dropping an operation, reached linearly over the epochs (DARTS, appendix A.2.1; others: 0.3)."""


@dataclass(frozen=True)
class Training:
    """Training, by SGD"""

    __pydantic_config__ = _STRICT

    epochs: Epochs = 600
    """Passes over the training images (DARTS, appendix A.2.1)."""
    batch_size: BatchSize = 96
    """Images a batch (DARTS, appendix A.2.1)."""
    lr: Positive = 0.025
    """Learning rate at the start; it falls to 0 along a cosine over the epochs (DARTS, appendix A.2.1)."""
    momentum: BelowOne = 0.9
    """Momentum (DARTS, appendix A.2.1)."""
    weight_decay: NotNegative = 3e-4
    """Weight decay (DARTS, appendix A.2.1)."""
    grad_clip: Positive = 5.0
    """Largest Euclidean norm of the gradient (the authors' code)."""
    cutout: Annotated[Annotated[int, Field(ge=0)] | None, _optional("INT", "half the image: 16 for CIFAR-10")] = None
    """Side of the square that is cut out, in pixels; 0 for none (DARTS, appendix A.2.1)."""
    holdout_fraction: BelowOne = 0.0
    """Share of the training images kept back, whose accuracy is reported each epoch for whoever wants to choose."""
    skip_test: Flag = False
    """Leave the test set alone, neither read nor measured: for choosing among cells by --holdout-fraction."""


@dataclass(frozen=True)
class FinalConfig:
    """Train the network of a genotype from scratch, and report its test accuracy.

    Example: python train_final.py --genotype DARTS_V2
    """

    __pydantic_config__ = _STRICT

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class TrainedOn:
    """The images that a final network was trained on, as far as it takes to classify others."""

    __pydantic_config__ = _STRICT

    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=10_000)]
    in_channels: Annotated[int, Field(ge=1, le=3)]
    image_size: Annotated[int, Field(ge=8, le=1024)]
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    resize: Resize = "crop"
    bits: Annotated[int, Field(ge=8, le=16)] = 16  # range of grey images that have 16 bits per pixel
