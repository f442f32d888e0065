"""Tensors on disk as safetensors, a format without code in it: the weights of a network, the whole state of a run."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from nas import files
from nas.errors import InputError


def save_weights(path: Path, network: nn.Module) -> None:
    """Write a network's parameters and buffers, replacing the file at `path` in one step."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    files.replace(path, lambda aside: save_file(tensors, aside))


def load_weights(path: Path, network: nn.Module) -> None:
    """Read what `save_weights` wrote into a network of the same size, which may be without storage (device meta).

    Raises:
        InputError: the file cannot be read, or does not hold the tensors of this network, by name, shape and dtype.
    """
    if not path.is_file():
        raise InputError(f"weights {path}: no such file; the run may not have been finished.")
    wanted = network.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            difference = sorted(set(wanted) ^ set(file.keys()))
            if difference:
                raise InputError(f"weights {path}: another network's; {difference[0]} is in one of the two alone.")
            for name, tensor in wanted.items():
                # Looked at in the header, before anything is read.
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise InputError(f"weights {path}: {name} has the shape {shape}, not {tuple(tensor.shape)}.")
            found = {name: file.get_tensor(name) for name in wanted}
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights {path}: not a safetensors file, or a damaged one ({error}).") from None
    for name, tensor in wanted.items():
        if found[name].dtype != tensor.dtype:
            raise InputError(f"weights {path}: {name} is {found[name].dtype}, not {tensor.dtype}.")
    network.load_state_dict(found, assign=True)


def save_state(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], step: int
) -> None:
    """Write all that a run has learnt, replacing the file at `path` in one step; the previous one is kept beside it.

    Tensors are named `<module>.<name in its state_dict>` and `<optimizer>.<number of the parameter>.<name>`. What is
    random needs no place: it follows from seed and step.

    Args:
        step: steps taken, in the file's metadata.
    """
    values = {f"{part}.{name}": value for part in modules for name, value in modules[part].state_dict().items()}
    for part, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            values |= {f"{part}.{index}.{name}": value for name, value in state.items()}
    # Without momentum SGD keeps None in the place of a buffer.
    tensors = {name: value.detach().cpu().contiguous() for name, value in values.items() if value is not None}

    def write(aside: Path) -> None:
        save_file(tensors, aside, metadata={"step": str(step)})
        if path.exists():  # only now: a write that fails leaves both files as they are
            os.replace(path, path.with_stem(f"{path.stem}.previous"))

    files.replace(path, write)
