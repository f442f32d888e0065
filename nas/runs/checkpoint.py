"""Tensors on disk as safetensors, a format that cannot hold code: weights of a network, and the state of a run."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from nas import files
from nas.errors import InputError, first_problem, printable

FORMAT_VERSION = 1
CURRENT, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
MAX_HEADER_BYTES = 8 << 20  # manifest, and name, dtype and shape of each tensor: some hundred KB
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Count = Annotated[int, Field(ge=0, le=10**15)]
FlagValue = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str | tuple[str, ...] | None


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's parameters and buffers, replacing the file at `path` in one step."""
    content = safetensors.torch.save(_on_cpu(network.state_dict()))
    files.replace(path, lambda aside: aside.write_bytes(content))


def load_weights(path: Path, network: nn.Module) -> None:
    """Read what `save_weights` wrote into a network of the same size, which may be without storage (device meta).

    Raises:
        InputError: the file cannot be read, or does not hold the tensors of this network, by name, shape and dtype.
    """
    if not path.is_file():
        raise InputError(f"weights {path}: no such file; the run may not have been finished.")
    wanted = network.state_dict()
    try:
        with _open(path) as file:
            _check_header(f"weights {path}", file, wanted)
            # Cloned to where torch puts a tensor: at an odd address matrix products differ in their last bits.
            found = {name: file.get_tensor(name).clone() for name in wanted}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"weights {path}: not a safetensors file, or a damaged one ({printable(error, 200)})."
        ) from None
    network.load_state_dict(found, assign=True)


# The state of a run


@dataclass
class LoopState:
    """LoopState says where a run is: its counts, and the sums of its current epoch.

    Attributes:
        epochs: finished, with all that an epoch ends with.
        steps: taken since the start, those that were not applied included; the batches follow from it and the seed.
        bad_steps: those that were not applied, as something in them was not finite.
        bad_steps_in_a_row: the last ones of these.
        loss, num_correct, num_images: sums over the epoch so far.
        peaks: largest values since the last record, by name.
        epoch_began_s: of the run's seconds.
        cell, same_cell_epochs: the genotype at the end of the last epoch as text, and for how many epochs it was that.
        eigenvalues: that --end-eigenvalue has measured so far.
        ended_early: whether the run ends with this epoch, before its last one.
    """

    __pydantic_config__ = _STRICT

    epochs: Count = 0
    steps: Count = 0
    bad_steps: Count = 0
    bad_steps_in_a_row: Count = 0
    loss: float = 0.0
    num_correct: float = 0.0
    num_images: Count = 0
    peaks: dict[str, float] = field(default_factory=dict)
    epoch_began_s: Annotated[float, Field(ge=0)] = 0.0
    cell: str = ""
    same_cell_epochs: Count = 0
    eigenvalues: list[float] = field(default_factory=list)
    ended_early: bool = False

    def begin_epoch(self, elapsed_s: float) -> None:
        """Start the sums of an epoch."""
        self.loss, self.num_correct, self.num_images, self.epoch_began_s = 0.0, 0.0, 0, elapsed_s

    def good_step(self, loss: float, num_correct: float, num_images: int) -> None:
        """Count a step that was applied; `loss` is the mean over its images."""
        self.steps += 1
        self.bad_steps_in_a_row = 0
        self.loss += loss * num_images
        self.num_correct += num_correct
        self.num_images += num_images

    def bad_step(self) -> None:
        """Count a step that was not applied."""
        self.steps += 1
        self.bad_steps += 1
        self.bad_steps_in_a_row += 1

    def end_epoch(self, cell: str) -> None:
        """Note the genotype at the end of an epoch, as text."""
        self.same_cell_epochs = self.same_cell_epochs + 1 if cell == self.cell else 0
        self.cell = cell

    def track_max(self, values: Mapping[str, float]) -> None:
        """Keep the largest values by name."""
        for name, value in values.items():
            self.peaks[name] = max(value, self.peaks.get(name, value))

    def pop_max(self) -> dict[str, float]:
        """Return the largest values since the last call, and how many steps were not applied."""
        peaks, self.peaks = self.peaks, {}
        return peaks | {"steps/bad": self.bad_steps}

    def means(self) -> tuple[float, float] | None:
        """Return loss and accuracy over the images of the epoch so far; None if no step was applied."""
        if not self.num_images:
            return None
        return self.loss / self.num_images, self.num_correct / self.num_images

    def scalars(self, name: str) -> dict[str, float]:
        """Return the means by the names that they are recorded by, such as lower/loss; empty if no step was applied."""
        return dict(zip((f"{name}/loss", f"{name}/accuracy"), self.means() or (), strict=False))

    def line(self, name: str = "") -> str:
        """Return loss and accuracy in words, after the name of the level."""
        means = self.means()
        return "no step was applied" if means is None else f"{name}loss {means[0]:.3f}, accuracy {means[1]:.1%}"

    def status(self, name: str) -> str:
        """Return the accuracy in words, as it stands beside the bar."""
        means = self.means()
        return "no step was applied" if means is None else f"{name} {means[1]:.1%}"


class Manifest(BaseModel):
    """Manifest is what a checkpoint holds beside tensors. Random numbers need no place: they follow from seed and step.

    Attributes:
        config: of the run: by group, its flags.
        data: fingerprint of the images.
        genotype: the derived or trained one, as text.
        progress: where the run is.
        elapsed_s: seconds that the run has taken.
        sizes: of the files in the run folder that only grow, in bytes.
        finished: whether nothing is left to do.
    """

    model_config = _STRICT

    format_version: Annotated[int, Field(ge=1, le=FORMAT_VERSION)] = FORMAT_VERSION
    config: dict[str, dict[str, FlagValue]]
    data: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    genotype: Annotated[str, Field(max_length=100_000)]
    progress: LoopState
    elapsed_s: Annotated[float, Field(ge=0)]
    sizes: dict[
        Annotated[str, Field(pattern=r"^(metrics\.jsonl|tensorboard/events\.out\.tfevents\.[0-9.]{1,40})$")], Count
    ]
    finished: bool

    def is_done(self, epochs: int) -> bool:
        """Return whether nothing is left to do in a run of this many epochs."""
        return self.finished and (self.progress.epochs >= epochs or self.progress.ended_early)


def state_tensors(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Return all tensors that the steps of a run move, by name and not copied.

    They are named `<module>.<name in its state_dict>` and `<optimizer>.<number of the parameter>.<name>`.
    """
    tensors = {f"{part}.{name}": tensor for part in modules for name, tensor in modules[part].state_dict().items()}
    for part, optimizer in optimizers.items():
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            tensors |= {f"{part}.{index}.{name}": value for name, value in optimizer.state[parameter].items()}
    return tensors


def save(folder: Path, tensors: Mapping[str, Tensor], manifest: Manifest) -> None:
    """Write the state of a run into its folder; the checkpoint that was there is kept as the previous one."""
    on_cpu, text = _on_cpu(tensors), manifest.model_dump_json()
    content = safetensors.torch.save(on_cpu, {"manifest": text, "checksum": _checksum(on_cpu, text)})
    files.replace(folder / CURRENT, lambda aside: aside.write_bytes(content), folder / PREVIOUS)


def load(path: Path, tensors: Mapping[str, Tensor]) -> Manifest:
    """Read a checkpoint into the tensors of a run; if it cannot be read they keep their values.

    Raises:
        InputError: no checkpoint, a damaged one, of a newer version, or of another run's tensors.
    """
    try:
        with _open(path) as file:
            manifest = _manifest(path, file)
            _check_header(f"checkpoint {path}", file, tensors)
            found = {name: file.get_tensor(name) for name in tensors}
            metadata = file.metadata()
    except (SafetensorError, OSError) as error:
        raise InputError(f"checkpoint {path}: damaged ({printable(error, 200)}).") from None
    if metadata.get("checksum") != _checksum(found, metadata["manifest"]):
        raise InputError(f"checkpoint {path}: damaged (its checksum does not match).")
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(found[name])
    return manifest


def load_newest(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Manifest | None, list[str]]:
    """Read the last checkpoint of a run, or the one before it where that is damaged.

    Returns:
        Its manifest, None where the run was stopped before its first checkpoint; and what was wrong with the last one.

    Raises:
        InputError: there are some, but none that can be read.
    """
    problems: list[str] = []
    for path in (folder / CURRENT, folder / PREVIOUS):
        if path.exists():
            try:
                return load(path, tensors), problems
            except InputError as error:
                problems.append(str(error))
    if problems:
        raise InputError(" ".join(problems) + " There is no other checkpoint: start a new run.")
    return None, []


def finished(folder: Path) -> Manifest | None:
    """Return the manifest of a run's last checkpoint, if the run is finished and the file can be read."""
    manifest = _manifest_alone(folder / CURRENT)
    return manifest if manifest and manifest.finished else None


def newest(folder: Path) -> Manifest | None:
    """Return the manifest of the newest checkpoint of a run that can be read, without reading its tensors."""
    return _manifest_alone(folder / CURRENT) or _manifest_alone(folder / PREVIOUS)


def _manifest_alone(path: Path) -> Manifest | None:
    try:
        with _open(path) as file:
            return _manifest(path, file)
    except (SafetensorError, OSError, InputError):
        return None


def _open(path: Path) -> Any:
    """Open a safetensors file, after a check of the length of its header."""
    if path.exists() and not path.is_file():  # to open a pipe would be to wait
        raise SafetensorError("no regular file")
    with path.open("rb") as file:
        if int.from_bytes(file.read(8), "little") > MAX_HEADER_BYTES:
            raise SafetensorError("its header is too long")
    try:
        return safe_open(path, framework="pt")
    except RuntimeError as error:  # torch's, where the run has just exchanged the file for a newer one
        raise SafetensorError(str(error)) from None


def _manifest(path: Path, file: Any) -> Manifest:
    text = (file.metadata() or {}).get("manifest", "")
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"checkpoint {path}: its manifest cannot be read; {first_problem(error)}") from None


def _check_header(what: str, file: Any, wanted: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and dtypes with what is wanted, before any tensor is read."""
    difference = sorted(set(wanted) ^ set(file.keys()))
    if difference:
        raise InputError(f"{what}: of another network: only one of the two has {difference[0]!r:.100}.")
    for name, tensor in wanted.items():
        header = file.get_slice(name)
        shape, dtype = tuple(header.get_shape()), header.get_dtype()
        if shape != tuple(tensor.shape):
            raise InputError(f"{what}: {name} has the shape {shape!s:.60}, not {tuple(tensor.shape)}.")
        if dtype != _DTYPES[tensor.dtype]:
            raise InputError(f"{what}: {name} is of dtype {dtype}, not {_DTYPES[tensor.dtype]}.")


_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return a checksum of names and values of the tensors, and of a text."""
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous().reshape(-1)
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensor.dtype}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()
