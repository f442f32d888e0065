import atexit
import functools
import gc
import os

# Two test processes share two cores. It is said before torch is imported, and to all that a test
# starts, so that no run asks first which cores are free.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest

# What takes seconds to import is imported by the fixtures: the process that hands out the tests reads this file too,
# before the others can start.

# At its end a process would look for garbage among all that it has imported, which takes seconds.
atexit.register(gc.freeze)

# A case takes as long as the machine lets it. `make fuzz` tries many.
hypothesis.settings.register_profile("test", deadline=None, max_examples=50)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=3000)


def pytest_configure(config):
    hypothesis.settings.load_profile(config.getoption("--hypothesis-profile") or "test")


@pytest.fixture
def float64_and_seed():
    import torch

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def no_pictures():
    """A process for each picture of a cell takes longer than a small run."""
    from nas.search_space import pictures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_render", lambda source, suffix: None)
        yield


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    """The test runs in an empty folder, where the published cells are known by name."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def restored_determinism():
    import torch

    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session", autouse=True)
def nothing_twice():
    """The runs in this process read, draw and measure the same things again and again, and wait for no disk."""
    from tyro._parsers import ParserSpecification

    from nas.data import datasets
    from nas.report import search_log
    from nas.search_space import pictures
    from nas.training import forecast

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # no test cuts the power
        patch.setattr(pictures, "_render", functools.cache(pictures._render))
        patch.setattr(datasets, "_load_digits", functools.cache(datasets._load_digits))
        patch.setattr(search_log, "network_size", functools.cache(search_log.network_size))
        patch.setattr(forecast, "bytes_of_step", once_for_each_shape(forecast.bytes_of_step))
        parser = once_for_each_default(ParserSpecification.from_callable_or_type)
        patch.setattr(ParserSpecification, "from_callable_or_type", staticmethod(parser))
        yield


def once_for_each_shape(bytes_of_step):
    """The memory of a step, which is computed once for each pass over modules of the same text and shapes."""
    from torch import nn

    known = {}

    def shape(part):
        return (str(part), [weight.shape for weight in part.parameters()]) if isinstance(part, nn.Module) else part

    def computed_or_known(forward, batch_size):
        parts = [shape(cell.cell_contents) for cell in forward.__closure__]
        key = f"{forward.__code__} {parts} {batch_size}"
        if key not in known:
            known[key] = bytes_of_step(forward, batch_size)
        return known[key]

    return computed_or_known


def once_for_each_default(from_callable_or_type):
    """What tyro finds out about all flags. For each command line anew it would be a sixth of the time of all tests."""
    known = {}

    def found_or_known(kind, **options):
        if options["parent_classes"]:  # a part, which tyro links to the whole
            return from_callable_or_type(kind, **options)
        key = repr((kind, options))
        if key not in known:
            known[key] = from_callable_or_type(kind, **options)
        return known[key]

    return found_or_known


@pytest.fixture(scope="session")
def whole_path(tmp_path_factory, nothing_twice):
    """The folder of a run that went from the images to a network. Tests spoil copies of it."""
    from nas.selection import protocol
    from tests.in_process import WHOLE_PATH, call, in_this_process

    folder = tmp_path_factory.mktemp("path")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "runner", in_this_process(folder))
        assert call("search", folder, *WHOLE_PATH) == 0
    return folder
