"""How much memory there is, how much of it is free, and how much this process has used."""

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
    """Memory of this machine, or of the container in which this process runs; None where nobody knows."""
    found = [psutil.virtual_memory().total] if psutil else []
    found += [limit for limit, _ in _container(root)]
    return min(found, default=None)


def free_bytes(root: Path = ROOT) -> int | None:
    """Memory that this process may still use without swapping; None where nobody knows."""
    found = [psutil.virtual_memory().available] if psutil else []
    found += [limit - used for limit, used in _container(root)]
    return min(found, default=None)


def _container(root: Path) -> list[tuple[int, int]]:
    """The limit of a container and what is used of it, in bytes (Linux control groups, version 2); or nothing."""
    limit, used, parts = (root / f"sys/fs/cgroup/memory.{name}" for name in ("max", "current", "stat"))
    if not (limit.is_file() and used.is_file()) or limit.read_text("ascii").strip() == "max":
        return []
    # It counts as used what was read of files, which the kernel gives back when memory runs short.
    cache = re.findall(r"^(?:in)?active_file (\d+)$", parts.read_text("ascii") if parts.is_file() else "", re.MULTILINE)
    return [(int(limit.read_text("ascii")), int(used.read_text("ascii")) - sum(map(int, cache)))]


def half_of_memory() -> int:
    """Bytes that images may take, 64 GiB at most: half of the memory, as they are copied once."""
    total = total_bytes()
    return 64 << 30 if total is None else min(64 << 30, total // 2)


def peak_memory_gb(device: torch.device) -> float:
    """The most memory that this process has held so far: of the GPU where it computes there, else its own.

    Not a number where the system does not say it.
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
