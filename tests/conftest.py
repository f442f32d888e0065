import os

# Two test processes share two cores. It is said before torch is imported, and to all that a test starts, so that no run
# asks first which cores are free.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

# A case takes as long as the machine lets it.
hypothesis.settings.register_profile("test", deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=3000)


def pytest_configure(config):
    hypothesis.settings.load_profile(config.getoption("--hypothesis-profile") or "test")


@pytest.fixture
def float64_and_seed():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def restored_determinism():
    yield
    torch.use_deterministic_algorithms(False)
