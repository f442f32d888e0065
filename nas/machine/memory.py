"""The memory of this machine, the free part of it, and what this process has used."""

import math
import re
import sys
from pathlib import Path

import torch

try:
    import psutil
except (ImportError, AttributeError):  # on Linux it needs modules that an interpreter may have been built without
    psutil = None

ROOT = Path("/")


def total_bytes(root: Path = ROOT) -> int | None:
    """Return the memory of this machine, or of the container of this process; None if it is unknown."""
    found = [psutil.virtual_memory().total] if psutil else []
    found += [limit for limit, _ in _container(root)]
    return min(found, default=None)


def free_bytes(root: Path = ROOT) -> int | None:
    """Return the memory that this process can still use without swapping; None if it is unknown."""
    found = [psutil.virtual_memory().available] if psutil else []
    found += [limit - used for limit, used in _container(root)]
    return min(found, default=None)


def _container(root: Path) -> list[tuple[int, int]]:
    """Return the limit of a container and what is used of it, in bytes (Linux control groups 2); else nothing."""
    limit, used, parts = (root / f"sys/fs/cgroup/memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file()) or limit.read_text("ascii").strip() == "max":
        return []
    # It counts what was read from files as used, but the kernel gives that back when memory runs short.
    cache = re.findall(r"^(?:in)?active_file (\d+)$", parts.read_text("ascii") if parts.is_file() else "", re.MULTILINE)
    return [(int(limit.read_text("ascii")), int(used.read_text("ascii")) - sum(map(int, cache)))]


def half_of_memory() -> int:
    """Return the bytes that images may take: half of the memory, because they are copied once, and at most 64 GiB."""
    total = total_bytes()
    return 64 << 30 if total is None else min(64 << 30, total // 2)


def peak_memory_gb(device: torch.device) -> float:
    """Return the most memory that this process has held so far: GPU memory if it computes on a GPU, else its own.

    It is NaN if the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    process = psutil.Process().memory_info() if psutil else None
    if hasattr(process, "peak_wset"):  # Windows
        return process.peak_wset / 1e9
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
