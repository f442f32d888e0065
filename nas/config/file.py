"""A config that comes from outside, checked: from a command line, or from a run's config.json."""

import dataclasses
import functools
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nas import files
from nas.config.flags import (
    Data,
    EarlyEnd,
    FinalConfig,
    SearchConfig,
    Selection,
    SupernetSize,
    TrainedOn,
    UpperLevel,
    is_several,
)
from nas.config.values import MOST_THREADS, SEEDS
from nas.errors import InputError, first_problem
from nas.search_space.genotype_file import MAX_CANDIDATES, SPACES
from nas.search_space.space import SKIP, SearchSpace

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
        raise ValueError("date: must be a date of ISO 8601") from None
    return environment


def _number_of_threads(environment: dict[str, Any]) -> dict[str, Any]:
    number = environment.get("num_threads")
    if number is not None and (type(number) is not int or not 1 <= number <= MOST_THREADS):
        raise ValueError(f"num_threads: must be a whole number from 1 to {MOST_THREADS}")
    return environment


class ConfigFile(BaseModel):
    """The content of a config.json: that of a run, or one with which a run is to begin.

    Attributes:
        config: the flags, still to be validated.
        trained_on: the images of a trained network, still to be validated; None for a search.
        environment: when, how and where the run began.
        resumed: the same for each time that it was resumed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format_version: Annotated[int, Field(ge=1, le=CONFIG_VERSION)]
    config: dict[str, Any]
    trained_on: dict[str, Any] | None = None
    environment: Annotated[dict[str, Any], AfterValidator(_iso_date), AfterValidator(_number_of_threads)]
    resumed: list[Annotated[dict[str, Any], AfterValidator(_number_of_threads)]] = []

    @property
    def script(self) -> str:
        """The script that takes these flags."""
        return "search.py" if "supernet" in self.config else "train_final.py"

    @property
    def num_threads(self) -> int | None:
        """Threads of each process when the run last started; None where the file does not say so."""
        return (self.resumed or [self.environment])[-1].get("num_threads")


def read_config(folder: Path) -> ConfigFile:
    """Read the config.json of a run folder; the file itself may be named instead.

    Raises:
        InputError: there is no such file, or it has another format; the file and the field are named.
    """
    path = folder if folder.is_file() else folder / "config.json"
    if not path.exists():
        raise InputError(f"{folder}: not a run folder, because it has no config.json.")
    try:
        return ConfigFile.model_validate_json(files.read_json(path, "config", CONFIG_VERSION))
    except ValidationError as error:
        raise InputError(f"config {path}: {first_problem(error)}") from None


def validate(kind: type[Config], content: Any, path: Path | None = None) -> Config:
    """Check a config, each field by itself and together with the others, and return it.

    Args:
        content: a config, as the command line gives it; or the dictionary of a config file.
        path: that file; None for the command line.

    Raises:
        InputError: a field is missing, unknown, of the wrong type or out of range, or does not fit another one; the
            flag, or the file and the field, are named.
    """
    try:
        if dataclasses.is_dataclass(content):
            config = _adapter(kind).validate_python(content)
        else:  # by the rules of JSON, where a list stands for a tuple and nothing else stands for anything else
            config = _adapter(kind).validate_json(json.dumps(content))
    except ValidationError as error:
        sentence = f"config {path}: {first_problem(error)}" if path else first_problem(error, _flag_at)
        raise InputError(sentence) from None
    if isinstance(config, SearchConfig | FinalConfig):
        _check_data(config.data)
        size = config.supernet if isinstance(config, SearchConfig) else config.network
        if size.stem == "imagenet" and size.init_channels == 1:
            raise InputError("--init-channels: must be at least 2 with --stem imagenet, got 1.")
    if isinstance(config, SearchConfig):
        _check_search(config)
    if isinstance(config, FinalConfig) and config.training.skip_test and not config.training.holdout_fraction:
        raise InputError("--skip-test: needs --holdout-fraction above 0; otherwise no accuracy would be measured.")
    return config


def searched_space(size: SupernetSize) -> SearchSpace:
    """Return the space of a search: that of --space, as --primitives and --max-skip-connections change it.

    Raises:
        InputError: the space has no such primitive, one is named twice, or nothing but skips can be derived.
    """
    space = SPACES[size.space]
    try:
        space = space if size.primitives is None else space.with_primitives(size.primitives)
    except ValueError as error:
        raise InputError(f"--primitives: {error}") from None
    if size.max_skip_connections is not None and not {*space.derived_primitives} - {SKIP}:
        raise InputError("--max-skip-connections: needs another primitive to derive, but skip_connect is the only one.")
    return dataclasses.replace(space, max_skip_connections=size.max_skip_connections)


def search_epochs(config: SearchConfig) -> int:
    """Return the epochs of a search: those of --epochs, and those in which the weights are tuned between decisions."""
    upper, size = config.upper, config.supernet
    if upper.derivation == "argmax":
        return config.lower.epochs
    return config.lower.epochs + upper.tuning_epochs * (searched_space(size).num_decisions(size.num_nodes) - 1)


def to_json(config: SearchConfig | FinalConfig) -> str:
    """Return a valid config as text for another process, which reads it by `from_json`."""
    return _adapter(type(config)).dump_json(config).decode()


def from_json(kind: type[Config], text: str) -> Config:
    """Return the config that another process has validated and sent."""
    return _adapter(kind).validate_json(text)


@functools.cache
def _adapter(kind: type[Config]) -> TypeAdapter[Config]:
    return TypeAdapter(kind)


def _check_data(data: Data) -> None:
    needs_folder = {
        f"--image-size {data.image_size}": (data.image_size is not None, "has images of one size"),
        "--skip-bad-images": (data.skip_bad_images, "is read as a whole"),
        f"--resize {data.resize}": (data.resize != "crop", "has square images"),
        f"--test-fraction {data.test_fraction}": (data.test_fraction > 0, "has its own test set"),
    }
    for flag, (is_given, why) in needs_folder.items():
        if is_given and data.dataset != "folder":
            raise InputError(f"{flag}: needs --dataset folder; {data.dataset} {why}.")


def _check_search(config: SearchConfig) -> None:
    lower, upper, selection, seed = config.lower, config.upper, config.selection, config.run.seed
    share = selection.devices_per_search
    space, num_nodes = searched_space(config.supernet), config.supernet.num_nodes
    if num_nodes not in space.node_counts:
        raise InputError(f"--num-nodes {num_nodes}: cells of --space {space.name} have {space.nodes_in_words}.")
    if config.supernet.init_channels % config.supernet.partial_channels:
        raise InputError(
            f"--partial-channels {config.supernet.partial_channels}: must divide --init-channels, "
            f"{config.supernet.init_channels}."
        )
    if config.supernet.partial_channels > 1 and upper.smoothing != "none":
        raise InputError("--smoothing: cannot be combined with --partial-channels, whose edges have weights too.")
    if upper.share_lower_step and upper.hypergradient == "first-order":
        raise InputError("--share-lower-step: cannot be combined with first-order, which has no virtual step.")
    if upper.fidelity_every is not None and upper.hypergradient != "onestage":
        raise InputError("--fidelity-every: needs --hypergradient onestage, whose second term it compares.")
    if upper.derivation == "argmax" and upper.tuning_epochs != UpperLevel.tuning_epochs:
        raise InputError("--tuning-epochs: needs --derivation perturbation.")
    if upper.derivation == "perturbation" and config.early_end != EarlyEnd():
        raise InputError("--derivation perturbation: cannot be combined with a flag that ends a search early.")
    if upper.derivation == "perturbation" and config.supernet.max_skip_connections is not None:
        raise InputError("--max-skip-connections: needs --derivation argmax, which ranks the edges by their weights.")
    if upper.relaxation == "simplex" and upper.beta_decay:
        raise InputError("--beta-decay: does nothing with --relaxation simplex, whose rows always add up to 1.")
    if upper.relaxation == "simplex" and upper.alpha_weight_decay != UpperLevel.alpha_weight_decay:
        raise InputError("--alpha-weight-decay: does nothing with --relaxation simplex, which has no weight decay.")
    if upper.smoothing == "none" and upper.smoothing_max != UpperLevel.smoothing_max:
        raise InputError("--smoothing-max: needs --smoothing random or adversarial.")
    if upper.alpha_warmup >= lower.epochs:
        raise InputError(f"--alpha-warmup {upper.alpha_warmup}: must be less than --epochs, {lower.epochs}.")
    if lower.lower_lr_min > lower.lower_lr:
        raise InputError(f"--lower-lr-min: must be at most --lower-lr, {lower.lower_lr}, got {lower.lower_lr_min}.")
    _check_selection(config)
    if selection.ray is None and share != Selection.devices_per_search:
        raise InputError("--devices-per-search: needs --ray; without it the searches run one after another.")
    if share > 1 and not share.is_integer():
        raise InputError(f"--devices-per-search: must be a whole number where it is above 1, got {share}.")
    if seed + max(selection.searches, selection.random_baseline, selection.selection_seeds) > SEEDS:
        raise InputError(f"--seed {seed}: too large; the seeds that follow it must also be less than {SEEDS}.")
    if is_several(config) and len(config.run.name or "") > 80:
        raise InputError("--name: must have at most 80 characters, because each search adds its seed to it.")


def _check_selection(config: SearchConfig) -> None:
    selection = config.selection

    def given(*names: str) -> list[str]:
        return [flag_of(name) for name in names if getattr(selection, name) != getattr(Selection, name)]

    of_several = given("ray", "export_searched", "selection_halving", "selection_seeds")
    if of_several and not is_several(config):
        raise InputError(
            f"{of_several[0]}: needs --searches above 1, --random-baseline above 0, --derive-top above 1, "
            "--candidates, --train-final or --time-budget."
        )
    cells = selection.searches * selection.derive_top + selection.random_baseline + len(selection.candidates or ())
    if cells > MAX_CANDIDATES:
        raise InputError(
            f"--searches {selection.searches}: with --derive-top, --random-baseline and --candidates up to {cells:,} "
            f"cells would be compared, but at most {MAX_CANDIDATES} can be."
        )
    of_final = given("export", "final_epochs")
    if (selection.final_channels, selection.final_cells) != SPACES[config.supernet.space].final_network:
        of_final += given("final_channels", "final_cells")
    if of_final and not selection.train_final:
        raise InputError(f"{of_final[0]}: needs --train-final.")
    if selection.time_budget is not None and config.upper.derivation == "perturbation":
        raise InputError("--time-budget: needs --derivation argmax, whose searches have no further epochs.")
    if selection.derive_top > 1 and config.upper.derivation == "perturbation":
        raise InputError("--derive-top: needs --derivation argmax, which ranks cells by their edge weights.")
    if selection.derive_top > 1 and config.supernet.max_skip_connections is not None:
        raise InputError("--derive-top: cannot be combined with --max-skip-connections.")


def _flag_at(location: tuple[int | str, ...]) -> str:
    return flag_of(str(location[-1]))


def flag_of(name: str) -> str:
    """Return the flag that sets a field, such as --batch-size for batch_size."""
    return "--" + name.replace("_", "-")
