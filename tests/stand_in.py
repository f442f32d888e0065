"""A device that stands for a GPU: torch's `meta`, which computes shapes alone, made to refuse what a GPU refuses.

What is read back from it is plausible (numbers are 1, the rows of a matrix add up to 1) and means nothing. On a GPU a
read waits for all that was started, so each is counted here, by the line of the project that reads.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train_final
from nas.training import run

DEVICE = torch.device("meta")
PROJECT = Path(train_final.__file__).parent
aten = torch.ops.aten
INDEXING = {aten.index.Tensor, aten.index_put_.default}  # a GPU takes indices that lie on the CPU


class StandIn(TorchDispatchMode):
    """The device, as a context; `reads` says how often each line has read from it, such as {"search.py:120": 2}."""

    def __init__(self):
        super().__init__()
        self.reads: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and args[0].is_meta:
            return self._read(args[0]).item()
        if func is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device")) == "cpu":
            return self._read(args[0]).to(kwargs.get("dtype"))
        if func is aten.copy_.default:  # the one operator that goes between devices
            return args[0].copy_(self._read(args[1])) if args[1].is_meta and args[0].is_cpu else func(*args, **kwargs)
        if func not in INDEXING:
            for several in (arg for arg in args if isinstance(arg, list | tuple)):
                _refuse_mixing(func, [leaf for leaf in several if isinstance(leaf, Tensor)])
            # A GPU takes a single number from the CPU.
            leaves = (leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
            _refuse_mixing(func, [leaf for leaf in leaves if leaf.dim() > 0])
        return func(*args, **kwargs)

    def _read(self, tensor: Tensor) -> Tensor:
        self.reads[_line_of_the_project()] += 1
        value = 1 / tensor.shape[-1] if tensor.dim() > 1 and tensor.is_floating_point() else 1
        return torch.full(tensor.shape, value, dtype=tensor.dtype)


def _refuse_mixing(func: Any, tensors: list[Tensor]) -> None:
    devices = {tensor.device.type for tensor in tensors}
    if len(devices) > 1:
        raise RuntimeError(f"{_line_of_the_project()}: {func} got tensors on {' and '.join(sorted(devices))}")


def _line_of_the_project() -> str:
    frame = sys._getframe(1)
    while frame.f_back is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent == PROJECT or path.is_relative_to(PROJECT / "nas"):
            return f"{path.relative_to(PROJECT)}:{frame.f_lineno}"
        frame = frame.f_back
    return "outside the project"


class HostGenerator(torch.Generator):
    """A generator of the CPU, whichever device is asked for: `meta` has none."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return super().__new__(cls, "cpu")


@pytest.fixture
def stand_in(monkeypatch):
    """Let both scripts compute on the stand-in device."""
    for module in (run, train_final):
        monkeypatch.setattr(module, "pick_device", lambda *_: DEVICE)
    monkeypatch.setattr(torch, "Generator", HostGenerator)
    with StandIn() as device:
        yield device
