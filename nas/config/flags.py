"""The flags of the two scripts: each with its unit, its source and its range."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nas.config.selection import Selection
from nas.config.values import (
    MOST_THREADS,
    STRICT,
    BatchSize,
    BelowOne,
    BetweenZeroAndOne,
    Cells,
    Channels,
    Epochs,
    Flag,
    NotNegative,
    Positive,
    Preset,
    Resize,
    Seed,
    Stem,
    optional,
    run_name,
)


@dataclass(frozen=True)
class Data:
    """The data set, and how its images are read and augmented."""

    __pydantic_config__ = STRICT

    dataset: Literal["cifar10", "cifar100", "mnist", "kmnist", "fashion-mnist", "svhn", "digits", "folder", "npz"] = (
        "cifar10"
    )
    """Data set. digits is embedded and works offline.
    folder reads DATA_DIR/train/CLASS/** and DATA_DIR/test/CLASS/**; without test it reads val.
    npz reads DATA_DIR/train.npz and test.npz: the arrays images and labels, optionally classes and mirror.
    It also reads what other tools write if the meaning is clear, and prints how."""
    data_dir: str = "data"
    """Folder of the images. torchvision's data sets are unpacked there from their archives, such as
    cifar-10-python.tar.gz. If the archives are not there, they are downloaded."""
    image_size: Annotated[Annotated[int, Field(ge=8, le=1024)] | None, optional("INT", "32")] = None
    """Pixels per side, only for folder, whose images become RGB and square. The others have their own size."""
    resize: Resize = "crop"
    """How an image of folder that is not square becomes a square. crop: cut off both ends.
    squeeze: change its proportions. pad: add black bars."""
    test_fraction: BelowOne = 0.0
    """If folder has no test set: hold back this share of each class as the test set, independent of the seed.
    Give the search and the training the same value. The images may then also be DATA_DIR/CLASS/**."""
    train_limit: Annotated[Annotated[int, Field(ge=4)] | None, optional("INT", "all")] = None
    """Use this many training images, drawn by the seed."""
    skip_bad_images: Flag = False
    """Leave out files of folder that are no readable images, and print how many. Otherwise such a file ends the run."""
    balanced: Flag = False
    """Draw all classes equally often in training; images of small classes are repeated."""
    no_flip: Flag = False
    """Do not mirror images, such as letters. Otherwise half are mirrored, except in digits, mnist, kmnist and svhn."""
    data_seed: Annotated[Seed | None, optional("INT", "--seed")] = None
    """Determines which images --train-limit draws, and which ones are held out. Weights and batches follow --seed."""
    crop_padding: Annotated[
        Annotated[int, Field(ge=0)] | None, optional("INT", "an eighth of the image: 4 for CIFAR-10")
    ] = None
    """Largest shift of training images to each side, in pixels; 0: no shift (DARTS, appendix A.2.1)."""


@dataclass(frozen=True)
class Run:
    """Seed, device and run folder."""

    __pydantic_config__ = STRICT

    seed: Seed = 0
    """Determines everything random: the same seed and --threads give the same bits on the same machine."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute. auto takes cuda if there is a GPU, otherwise mps, otherwise cpu."""
    threads: Annotated[
        Annotated[int, Field(ge=1, le=MOST_THREADS)] | None, optional("INT", "as many as cores are free")
    ] = None
    """CPU threads of each process. The default is OMP_NUM_THREADS, or else the cores that are free at the start.
    A resumed run keeps its number, because bits depend on it."""
    run_dir: str = "runs"
    """Folder that holds the run folders."""
    name: Annotated[
        Annotated[str, AfterValidator(run_name)] | None,
        optional("STR", "search-<dataset> or final-<genotype>, then -seed<N>-<time>"),
    ] = None
    """Name of the run folder: letters, digits, '.', '_', '-'."""
    config: Annotated[str | None, optional("FILE", "none")] = None
    """Begin with the flags of another run: its config.json, or its folder. Other flags given here override them.
    With --resume, only the flags that may change in a resumed run are taken from it."""
    dry_run: Flag = False
    """Take a few steps, print what a run would do and how long it would take, and start nothing.
    The images are downloaded or read as in a run, and kept."""
    resume: Annotated[str | None, optional("RUN_DIR", "none")] = None
    """Resume a run from its last checkpoint, bit for bit, with its flags.
    --epochs may be larger. These may change: --data-dir, --device, --threads, --checkpoint-minutes,
    --max-bad-steps, --deterministic."""
    checkpoint_minutes: NotNegative = 5.0
    """Minutes between checkpoints within an epoch; 0: after every step. Each epoch also ends with a checkpoint."""
    max_bad_steps: Annotated[int, Field(ge=1)] = 10
    """A step whose loss, gradient or weights are NaN or infinite is undone. End the run after this many in a row."""
    deterministic: Flag = False
    """Refuse operations whose bits may differ from run to run. A CPU has none."""
    sync_batch_norm: Flag = False
    """With torchrun: batch norms use the whole batch, not only the part of their own process."""


@dataclass(frozen=True)
class SearchRun(Run):
    """Seed, device and run folder."""

    preset: Preset = "darts"
    """Defaults of the other flags: those of a paper; or robust, first order with β-decay that grows slowly.
    quick: a small supernet, which takes minutes on the digits and hours on CIFAR-10."""


@dataclass(frozen=True)
class SupernetSize:
    """The search space, and the size of the supernet."""

    __pydantic_config__ = STRICT

    space: Literal["darts", "nas-bench-201"] = "darts"
    """Search space; other defaults follow it. nas-bench-201: each epoch ends with the true accuracy of its cell."""
    init_channels: Channels = 16
    """Channels of the first cell (DARTS, appendix A.1.1)."""
    num_cells: Cells = 8
    """Cells, two of them reduction cells (DARTS, appendix A.1.1); with nas-bench-201 cells per stage, by default 5."""
    num_nodes: Annotated[int, Field(ge=1, le=8)] = 4
    """Nodes per cell (DARTS, appendix A.1.1); with nas-bench-201 always 3."""
    primitives: Annotated[tuple[str, ...] | None, optional("NAME [NAME ...]", "all of the space")] = None
    """Search among these primitives alone, such as skip_connect sep_conv_3x3 (the space S2 of RobustDARTS)."""
    partial_channels: Annotated[int, Field(ge=1, le=64)] = 1
    """Faster: one of this many channels goes through the mixed operations, and edges are weighed too (PC-DARTS: 4)."""
    max_skip_connections: Annotated[Annotated[int, Field(ge=0)] | None, optional("INT", "any number")] = None
    """Derive cells with at most this many skip connections each (P-DARTS: 2)."""
    stem: Stem = "cifar"
    """First layers, as in the final network. imagenet divides the sides of the images by eight; it is for 224 × 224."""


@dataclass(frozen=True)
class LowerLevel:
    """Lower level: SGD on the weights."""

    __pydantic_config__ = STRICT

    epochs: Epochs = 50
    """Passes over the images of the lower level (DARTS, appendix A.1.1)."""
    batch_size: BatchSize = 64
    """Images per batch, at each level (DARTS, appendix A.1.1)."""
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
    """Upper level: Adam on the alphas, with betas (0.5, 0.999)."""

    __pydantic_config__ = STRICT

    alpha_lr: Positive = 3e-4
    """Learning rate (DARTS, appendix A.1.1)."""
    alpha_weight_decay: NotNegative = 1e-3
    """Weight decay (DARTS, appendix A.1.1)."""
    upper_fraction: BetweenZeroAndOne = 0.5
    """Share of the training images that the alphas learn from; the weights learn from the rest (DARTS, section 3.1)."""
    hypergradient: Literal["onestage", "exact", "first-order"] = "onestage"
    """onestage: DARTS, equation 7, by finite differences. exact: the same by a second backward pass, which is slower.
    first-order: without the virtual step, which is faster."""
    share_lower_step: Flag = False
    """Faster, not as published: the weights keep the virtual step w′, so a step takes four passes, not five."""
    r: Positive = 0.01
    """Euclidean norm of the perturbation of the weights in the finite differences (DARTS, section 2.3)."""
    fidelity_every: Annotated[Annotated[int, Field(ge=1)] | None, optional("STEPS", "never")] = None
    """Every so many steps, record the cosine of the angle between the second term of onestage and the exact one."""
    alpha_warmup: Annotated[int, Field(ge=0)] = 0
    """Epochs before the alphas move (PC-DARTS: 15)."""
    derivation: Literal["argmax", "perturbation"] = "argmax"
    """How the cell follows from the supernet. argmax: by the largest edge weights (DARTS, section 2.4).
    perturbation: after --epochs, edge by edge, by what the supernet misses most when it is taken away (DARTS-PT)."""
    tuning_epochs: Annotated[int, Field(ge=1)] = 5
    """With --derivation perturbation: epochs in which the weights are tuned after each decision (DARTS-PT)."""
    relaxation: Literal["softmax", "dirichlet", "simplex"] = "softmax"
    """How alphas become edge weights. softmax: DARTS. dirichlet: drawn in each pass (DrNAS).
    simplex: the alphas are the edge weights and move by exponentiated gradient (GAEA, with --alpha-lr 0.1)."""
    beta_decay: NotNegative = 0.0
    """Growth per epoch of the weight of β-decay in the upper objective (β-DARTS: 0.5)."""
    smoothing: Literal["none", "random", "adversarial"] = "none"
    """Move the edge weights in the step of the weights, which flattens the loss around the alphas (SDARTS).
    random: by noise. adversarial: against the loss, in seven steps, each a further pass."""
    smoothing_max: BetweenZeroAndOne = 0.3
    """Largest change of an edge weight by --smoothing; it grows from 0.03 over the epochs (SDARTS)."""


@dataclass(frozen=True)
class EarlyEnd:
    """When a search ends before its last epoch."""

    __pydantic_config__ = STRICT

    end_same_cell: Annotated[Annotated[int, Field(ge=1)] | None, optional("EPOCHS", "never")] = None
    """End the search when the derived cell has not changed for this many epochs."""
    end_skips: Annotated[Annotated[int, Field(ge=0)] | None, optional("INT", "never")] = None
    """End the search when one of its derived cells has more skip connections than this (DARTS+: 1)."""
    end_eigenvalue: Annotated[Annotated[float, Field(gt=1)] | None, optional("FACTOR", "never")] = None
    """End the search when the largest eigenvalue of the Hessian of the upper loss in the alphas has grown by this
    factor within 8 epochs, with the alphas that were there before (RobustDARTS: 1.3)."""


@dataclass(frozen=True)
class SearchConfig:
    """Search a cell: weights and alphas of a supernet learn in turn.

    Example: python search.py --dataset digits --preset quick
    """

    __pydantic_config__ = STRICT

    data: Data = field(default_factory=Data)
    supernet: SupernetSize = field(default_factory=SupernetSize)
    lower: LowerLevel = field(default_factory=LowerLevel)
    upper: UpperLevel = field(default_factory=UpperLevel)
    early_end: EarlyEnd = field(default_factory=EarlyEnd)
    selection: Selection = field(default_factory=Selection)
    run: SearchRun = field(default_factory=SearchRun)


def is_several(config: SearchConfig) -> bool:
    """Return whether the config asks for more than one search: for several, other cells, or what comes after them."""
    selection = config.selection
    several = selection.searches > 1 or selection.random_baseline > 0 or selection.derive_top > 1
    return several or bool(selection.candidates) or selection.train_final or selection.time_budget is not None


def selection_fraction(config: SearchConfig) -> float:
    """Return the share of the training images on which cells are compared and that no search sees."""
    given = config.selection.selection_fraction
    return given if given is not None else 0.2 * is_several(config)


@dataclass(frozen=True)
class Network:
    """The cell, and the size of the final network."""

    __pydantic_config__ = STRICT

    genotype: Annotated[str | None, optional("PATH_OR_NAME", "none")] = None
    """The cell: a name such as DARTS_V2, a run folder, a file (FILE:NAME if it holds several), or its text."""
    evaluate: Annotated[str | None, optional("RUN_DIR", "none")] = None
    """Measure the test accuracy of a trained network again, instead of training: its run folder.
    It keeps its flags; --device, --threads, --data-dir and --test-fraction may change."""
    init_channels: Annotated[Channels | None, optional("INT", "36, or 16 for NAS-Bench-201")] = None
    """Channels of the first cell (DARTS, appendix A.2.1)."""
    num_cells: Annotated[Cells | None, optional("INT", "20, or 5 for NAS-Bench-201")] = None
    """Cells, two of them reduction cells (DARTS, appendix A.2.1); for a cell of NAS-Bench-201 the cells per stage."""
    stem: Stem = "cifar"
    """First layers. imagenet divides the sides of the images by eight; it is for 224 × 224 (the authors' code)."""
    auxiliary_weight: NotNegative = 0.4
    """Weight of the loss of the auxiliary head (DARTS, appendix A.2.1); 0: no such head. NAS-Bench-201 has none."""
    drop_path: BelowOne = 0.2
    """Probability of dropping an operation; it rises linearly from 0 over the epochs (DARTS, appendix A.2.1)."""


@dataclass(frozen=True)
class Training:
    """Training by SGD."""

    __pydantic_config__ = STRICT

    epochs: Epochs = 600
    """Passes over the training images (DARTS, appendix A.2.1)."""
    batch_size: BatchSize = 96
    """Images per batch (DARTS, appendix A.2.1)."""
    lr: Positive = 0.025
    """Learning rate at the start; it falls to 0 along a cosine over the epochs (DARTS, appendix A.2.1)."""
    momentum: BelowOne = 0.9
    """Momentum (DARTS, appendix A.2.1)."""
    weight_decay: NotNegative = 3e-4
    """Weight decay (DARTS, appendix A.2.1)."""
    grad_clip: Positive = 5.0
    """Largest Euclidean norm of the gradient (the authors' code)."""
    cutout: Annotated[Annotated[int, Field(ge=0)] | None, optional("INT", "half the image: 16 for CIFAR-10")] = None
    """Side of the square that is cut out, in pixels; 0: no cutout (DARTS, appendix A.2.1)."""
    holdout_fraction: BelowOne = 0.0
    """Share of the training images that is held out; the accuracy on it is reported each epoch."""
    skip_test: Flag = False
    """Do not read the test set. Report the accuracy on the held-out images instead, to choose among cells."""


@dataclass(frozen=True)
class FinalConfig:
    """Train the network of a genotype from scratch, and report its test accuracy.

    Example: python train_final.py --genotype DARTS_V2
    """

    __pydantic_config__ = STRICT

    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    run: Run = field(default_factory=Run)


def data_seed(config: SearchConfig | FinalConfig) -> int:
    """Return the seed that determines which images are drawn and held out."""
    return config.run.seed if config.data.data_seed is None else config.data.data_seed


@dataclass(frozen=True)
class TrainedOn:
    """What a final network needs to know of its training images to classify others."""

    __pydantic_config__ = STRICT

    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=10_000)]
    in_channels: Annotated[int, Field(ge=1, le=3)]
    image_size: Annotated[int, Field(ge=8, le=1024)]
    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    std: Annotated[tuple[float, ...], Field(min_length=1, max_length=3)]
    resize: Resize = "crop"
    bits: Annotated[int, Field(ge=8, le=16)] = 16  # range of grey images that have 16 bits per pixel
    num_images: Annotated[int, Field(ge=0)] = 0  # 0: a run of an earlier version, which did not keep it
