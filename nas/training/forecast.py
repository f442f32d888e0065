"""The memory that a step will take, computed before it takes it."""

import copy
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nas.distributed import SINGLE, World
from nas.errors import InputError
from nas.machine.memory import free_bytes
from nas.models.batch_norm import synchronise

Module = TypeVar("Module", bound=nn.Module)

# Beyond what a pass keeps for its way back a step holds gradients and what is being computed: a fiftieth, measured.
STEP_THROUGH_PASS = 1.03


def memory_of_step(
    forward: Callable[[int], Tensor], batch_size: int, device: torch.device, world: World = SINGLE
) -> str:
    """Return a line for the log: the memory that a step needs at its peak, and the memory that is free.

    Args:
        forward: see `bytes_of_step`.
        batch_size: images of a step in all processes together.
        device: where the step will run. On a CPU the processes of this machine share the memory.

    Raises:
        InputError: there is too little; the message names the batch size that would fit.
    """
    rows = -(-batch_size // world.size)
    step_bytes, bytes_an_image = bytes_of_step(forward, rows)
    here = world.local_size if device.type == "cpu" else 1
    return require_memory(here * step_bytes, here * bytes_an_image, batch_size, free_memory(device), world.size)


def bytes_of_step(forward: Callable[[int], Tensor], batch_size: int) -> tuple[int, int]:
    """Return the bytes that a step needs at its peak, and the bytes that each image adds to them.

    Args:
        forward: a pass over this many images on the device `meta`, which computes shapes and takes no memory. Its
            result has a graph. What it keeps for the way back grows linearly, so it is called with 2 and 4 images.
        batch_size: images of a step.
    """

    def kept(num_images: int) -> int:
        storages: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage  # several saved tensors may be views of one
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            forward(num_images)
        return sum(storage.nbytes() for storage in storages.values())

    few, more = kept(2), kept(4)
    an_image = STEP_THROUGH_PASS * (more - few) / 2
    return round(STEP_THROUGH_PASS * few + (batch_size - 2) * an_image), round(an_image)


def on_meta(module: Module) -> Module:
    """Return a copy of a module on the device `meta`, made without memory for its tensors; one process computes it."""
    memo: dict[int, Any] = {id(buffer): buffer.to("meta") for buffer in module.buffers()}
    memo |= {id(parameter): nn.Parameter(parameter.detach().to("meta")) for parameter in module.parameters()}
    copied = copy.deepcopy(module, memo)
    synchronise(copied, None)
    return copied


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take on a device; None where nobody tells."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return free_bytes() if device.type == "cpu" else None


def require_memory(step_bytes: int, bytes_a_row: int, batch_size: int, free: int | None, count: int = 1) -> str:
    """Return a line for the log: the memory that a step needs on a machine, and the memory that is free.

    Args:
        bytes_a_row: what one image more in each process takes.
        count: of the processes that share the batch.

    Raises:
        InputError: there is too little; the batch size that would fit is named.
    """
    if free is None:
        return f"a step takes about {step_bytes / 1e9:.2f} GB of memory"
    if step_bytes <= free:
        return f"a step takes about {step_bytes / 1e9:.2f} GB of memory, of {free / 1e9:.2f} GB that are free"
    rows = -(-batch_size // count) - -(-(step_bytes - free) // max(bytes_a_row, 1))
    advice = f"--batch-size {count * rows} would fit" if count * rows >= 2 else "not even two images would fit"
    raise InputError(
        f"--batch-size {batch_size}: a step takes about {step_bytes / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB "
        f"are free; {advice}."
    )
