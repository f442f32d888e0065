import math
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from nas.machine import memory


@pytest.mark.parametrize(
    ("files", "total", "free"),
    [
        ({}, 4000, 3000),
        ({"max": "max\n", "current": "9000\n"}, 4000, 3000),
        ({"max": "10000\n", "current": "9000\n"}, 4000, 1000),
        ({"max": "2000\n", "current": "1900\n"}, 2000, 100),
        # What was read of files is no use of it.
        ({"max": "2000", "current": "1900", "stat": "anon 7\nfile 9\ninactive_file 400\nactive_file 150\n"}, 2000, 650),
    ],
)
def test_in_a_container_its_limit_counts(tmp_path, monkeypatch, files, total, free):
    machine = psutil.virtual_memory()._replace(total=4000, available=3000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, content in files.items():
        (group / f"memory.{name}").write_text(content)
    assert (memory.total_bytes(tmp_path), memory.free_bytes(tmp_path)) == (total, free)


def test_memory_of_this_machine():
    assert 10**7 < memory.free_bytes() < memory.total_bytes()
    assert memory.half_of_memory() == min(64 << 30, memory.total_bytes() // 2)


def test_the_most_memory_that_this_process_has_held(monkeypatch):
    before = memory.peak_memory_gb(torch.device("cpu"))
    held = torch.ones(300 << 20, dtype=torch.uint8)
    assert held.nbytes / 1e9 <= memory.peak_memory_gb(torch.device("cpu")) <= before + 0.5
    monkeypatch.setitem(sys.modules, "resource", None)
    assert math.isnan(memory.peak_memory_gb(torch.device("cpu")))  # which no record takes
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(peak_wset=5 * 10**9))  # Windows
    assert memory.peak_memory_gb(torch.device("cpu")) == 5
