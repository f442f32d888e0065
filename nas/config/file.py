"""A config that comes from outside, checked: of a command line, or of a run's config.json."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nas import files
from nas.config.flags import MOST_THREADS, SEEDS, Data, FinalConfig, SearchConfig, Several, TrainedOn, is_several
from nas.errors import InputError

CONFIG_VERSION = 1

Config = TypeVar("Config", SearchConfig, FinalConfig, TrainedOn)


# What may be given anew with --resume: nothing that changes the mathematics.
MAY_CHANGE = (
    *("epochs", "data_dir", "device", "threads", "checkpoint_minutes", "max_bad_steps", "deterministic", "resume"),
    *("ray", "devices_per_search"),
)


def _iso_date(environment: dict[str, Any]) -> dict[str, Any]:
    try:
        datetime.fromisoformat(environment["date"])
    except (KeyError, TypeError, ValueError):
        raise ValueError("date: missing, or not a date of ISO 8601") from None
    return environment


def _number_of_threads(environment: dict[str, Any]) -> dict[str, Any]:
    number = environment.get("num_threads")
    if number is not None and (type(number) is not int or not 1 <= number <= MOST_THREADS):
        raise ValueError(f"num_threads: must be a whole number from 1 to {MOST_THREADS}")
    return environment


class ConfigFile(BaseModel):
    """The content of a run's config.json.

    Attributes:
        config: the flags, still to be validated.
        trained_on: of a final network alone: the images, still to be validated.
        environment: when, how and where the run was begun.
        resumed: the same of each time it went on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Annotated[int, Field(ge=1, le=CONFIG_VERSION)]
    config: dict[str, Any]
    trained_on: dict[str, Any] | None = None
    environment: Annotated[dict[str, Any], AfterValidator(_iso_date), AfterValidator(_number_of_threads)]
    resumed: list[Annotated[dict[str, Any], AfterValidator(_number_of_threads)]] = []

    @property
    def script(self) -> str:
        """That made the run."""
        return "search.py" if self.trained_on is None else "train_final.py"

    @property
    def num_threads(self) -> int | None:
        """Threads of a process when the run was last at work; None where the file does not say so."""
        return (self.resumed or [self.environment])[-1].get("num_threads")


def read_config(folder: Path) -> ConfigFile:
    """The config.json of a run folder, which may be named itself.

    Raises:
        InputError: there is none, or not such a one; it names file and field.
    """
    path = folder if folder.is_file() else folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: no run folder, as it holds no config.json.")
    try:
        return ConfigFile.model_validate_json(files.read_json(path, "config", CONFIG_VERSION))
    except ValidationError as error:
        raise InputError(_complaint(error, path)) from None


def validate(kind: type[Config], content: Any, path: Path | None = None) -> Config:
    """The config in a nested dictionary.

    Args:
        path: of the file that it comes from; none for the command line.

    Raises:
        InputError: a field is missing, unknown, of the wrong type or out of range; it names flag, or file and field.
    """
    try:
        config = TypeAdapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        raise InputError(_complaint(error, path)) from None
    if isinstance(config, SearchConfig | FinalConfig):
        _check_data(config.data)
        size = config.supernet if isinstance(config, SearchConfig) else config.network
        if size.stem == "imagenet" and size.init_channels < 2:
            raise InputError("--init-channels: must be at least 2 with --stem imagenet, got 1.")
    if isinstance(config, SearchConfig):
        _check_search(config)
    if isinstance(config, FinalConfig):
        _check_final(config)
    return config


def _check_data(data: Data) -> None:
    if data.image_size is not None and data.dataset != "folder":
        raise InputError(
            f"--image-size {data.image_size}: goes with --dataset folder; {data.dataset} has a size of its own."
        )
    if data.skip_bad_images and data.dataset != "folder":
        raise InputError(f"--skip-bad-images: goes with --dataset folder; {data.dataset} is read as a whole.")
    if data.resize != "crop" and data.dataset != "folder":
        raise InputError(f"--resize {data.resize}: needs --dataset folder; images of {data.dataset} are squares.")
    if data.test_fraction and data.dataset != "folder":
        raise InputError(
            f"--test-fraction {data.test_fraction}: needs --dataset folder; {data.dataset} has a test set."
        )


def _check_final(config: FinalConfig) -> None:
    network, skip_test = config.network, config.training.skip_test
    if network.evaluate and config.run.resume:
        raise InputError("--evaluate: goes without --resume; the one measures a trained network, the other trains on.")
    if network.evaluate and network.genotype:
        raise InputError("--evaluate: goes without --genotype; the run folder holds the genotype of its network.")
    if skip_test and network.evaluate:
        raise InputError("--skip-test: goes without --evaluate, which measures the test accuracy and nothing else.")
    if skip_test and not config.training.holdout_fraction:
        raise InputError("--skip-test: goes with --holdout-fraction above 0; else no accuracy would be measured.")


def _check_search(config: SearchConfig) -> None:
    lower, upper, several, seed = config.lower, config.upper, config.several, config.run.seed
    if upper.share_lower_step and upper.hypergradient != "onestage":
        raise InputError("--share-lower-step: goes with --hypergradient onestage; first-order has no virtual step.")
    if lower.lower_lr_min > lower.lower_lr:
        raise InputError(f"--lower-lr-min: must be at most --lower-lr, {lower.lower_lr}, got {lower.lower_lr_min}.")
    share = several.devices_per_search
    if several.ray is not None and not is_several(config):
        raise InputError("--ray: goes with --searches above 1, or --random-baseline above 0.")
    if several.ray is None and share != Several.devices_per_search:
        raise InputError("--devices-per-search: goes with --ray; without it there is one search at a time.")
    if share > 1 and not share.is_integer():
        raise InputError(f"--devices-per-search: must be a whole number where it is above 1, got {share}.")
    if seed + max(several.searches, several.random_baseline) > SEEDS:
        raise InputError(f"--seed {seed}: too large, as the seeds that follow it must be less than {SEEDS}.")
    if is_several(config) and len(config.run.name or "") > 80:
        raise InputError("--name: must be up to 80 characters, as the seed of each search is added to it.")


def _complaint(error: ValidationError, path: Path | None) -> str:
    """Its first problem, as one sentence that names the flag, or the file and the field."""
    problem = error.errors(include_url=False)[0]
    # A file may have chosen these names: one that is no identifier may hold a line break, or orders to a terminal.
    names = [part if str(part).isidentifier() else repr(part) for part in problem["loc"]]
    field = ".".join(f"{name:.60}" for name in map(str, names))
    where = f"config {path}: {field}" if path else flag_of(field.rpartition(".")[2])
    return f"{where}: {_requirement(problem)}, got {problem['input']!r:.60}."


def flag_of(name: str) -> str:
    """The flag that sets a field."""
    return "--" + name.replace("_", "-")


def _requirement(problem: Any) -> str:
    if problem["type"] == "string_pattern_mismatch":
        return "must be up to 100 letters, digits, '.', '_' or '-', and begin with a letter or digit"
    if problem["type"] == "value_error":
        return str(problem["ctx"]["error"])
    return problem["msg"].replace("Input should be", "must be").replace("Unexpected keyword argument", "unknown field")
