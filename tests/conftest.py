import hypothesis
import torch

# Two test processes share two cores.
torch.set_num_threads(1)

# A case takes as long as the machine lets it.
hypothesis.settings.register_profile("test", deadline=None)
hypothesis.settings.register_profile("fuzz", deadline=None, max_examples=3000)


def pytest_configure(config):
    hypothesis.settings.load_profile(config.getoption("--hypothesis-profile") or "test")
