"""The values that flags may have: types with their ranges, and how --help shows them."""

import re
from typing import Annotated, Any, Literal

import tyro
from pydantic import AfterValidator, ConfigDict, Field

SEEDS = 2**32
MOST_THREADS = 1024


def in_float32(given: float) -> float:
    if given > 3e38:
        raise ValueError("must be at most 3e38")
    return given


Channels = Annotated[int, Field(ge=1, le=1024)]
Cells = Annotated[int, Field(ge=1, le=200)]
Epochs = Annotated[int, Field(ge=1, le=100_000)]
BatchSize = Annotated[int, Field(ge=2, le=100_000)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(in_float32)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(in_float32)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
BetweenZeroAndOne = Annotated[float, Field(gt=0, lt=1)]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Stem = Literal["cifar", "imagenet"]
Resize = Literal["crop", "squeeze", "pad"]
Preset = Literal[
    "darts", "darts-first-order", "robust", "pc-darts", "darts-pt", "beta-darts", "drnas", "sdarts-rs", "gaea", "quick"
]
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]


def optional(metavar: str, default: str) -> Any:
    """Return what --help shows for a flag whose default is worked out later."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


def run_name(given: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", given):
        raise ValueError("must be up to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit")
    return given


def time_span(given: str) -> str:
    if not 60 <= seconds_of(given) <= 60 * 24 * 3600:
        raise ValueError("must be a time from 1m to 60d, such as 90m, 8h or 1h30m")
    return given


def seconds_of(given: str) -> float:
    """Return the seconds of a time such as 90m, 8h or 1h30m; 0 for what is none."""
    found = re.fullmatch(r"(?:(\d{1,3}(?:\.\d+)?)d)?(?:(\d{1,4}(?:\.\d+)?)h)?(?:(\d{1,5}(?:\.\d+)?)m)?", given)
    parts = found.groups() if found else ()
    return sum(float(part or 0) * unit for part, unit in zip(parts, (86400, 3600, 60), strict=False))


def address(given: str) -> str:
    if not re.fullmatch(r"local|auto|[A-Za-z0-9][A-Za-z0-9.-]{0,199}:[0-9]{1,5}", given):
        raise ValueError("must be local, auto or the HOST:PORT of a cluster")
    return given


# tyro has no flag whose value may be left out.
ADDRESS_OR_LOCAL = tyro.constructors.PrimitiveConstructorSpec[str | None](
    nargs="*",
    metavar="[ADDRESS]",
    instance_from_str=lambda given: " ".join(given) or "local",
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [] if value is None else [value],
)

RayAddress = Annotated[
    Annotated[str, AfterValidator(address)] | None,
    ADDRESS_OR_LOCAL,
    tyro.conf.arg(help_behavior_hint="(default: no Ray, one after another)"),
]

# Strict: a config that is read back from a file must hold exactly these types. `validate` checks objects as well.
STRICT = ConfigDict(extra="forbid", strict=True, revalidate_instances="always")
