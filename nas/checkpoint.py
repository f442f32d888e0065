"""Weights on disk as safetensors: tensors without code in them."""

from pathlib import Path

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
