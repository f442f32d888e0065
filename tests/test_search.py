"""What one step of the search does, seen from inside: w′, its learning rate, and who moves what."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import search
from nas.config import SearchConfig, parse
from nas.hypergradient import Onestage
from nas.training import cosine

ARGUMENTS = ["--dataset=digits", "--train-limit=40", "--batch-size=10", "--epochs=3", "--init-channels=2"]
ARGUMENTS += ["--num-cells=3", "--momentum=0.8", "--weight-decay=0.01", "--lower-lr=0.1", "--name=recorded"]


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """What each call of the hypergradient saw: weights, w′, the learning rate and the lower gradient, step by step."""
    recorded = []

    class Recording(Onestage):
        def compute_gradients(self, validate_data, validate_target, auxiliary_model, train_data, train_target):
            def flat(tensors):
                return torch.cat([tensor.detach().double().flatten() for tensor in tensors])

            weights = list(self.lower_model.parameters())
            statistics = [buffer.clone() for buffer in self.lower_model.buffers()]
            loss = F.cross_entropy(self.lower_model(train_data, self.upper_model()), train_target)
            gradient = flat(torch.autograd.grad(loss, weights))
            with torch.no_grad():
                for buffer, value in zip(self.lower_model.buffers(), statistics, strict=True):
                    buffer.copy_(value)
            recorded.append(
                {
                    "weights": flat(weights),
                    "w_prime": flat(auxiliary_model.parameters()),
                    "gradient": gradient,
                    "rate": self.lower_learning_rate,
                    "alphas": flat(self.upper_model.parameters()),
                    "batches": (train_data, validate_data),
                }
            )
            return super().compute_gradients(validate_data, validate_target, auxiliary_model, train_data, train_target)

    folder = tmp_path_factory.mktemp("search")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(search, "Onestage", Recording)
        search.search(parse(SearchConfig, ARGUMENTS))
    return recorded


def test_two_batches_an_epoch_from_disjoint_halves(steps):
    assert len(steps) == 6
    assert all(len(train) == len(validate) == 10 for train, validate in (step["batches"] for step in steps))


def test_the_learning_rate_is_that_of_the_step_not_of_the_next(steps):
    assert [step["rate"] for step in steps] == [cosine(epoch, 3, 0.1, 0.001) for epoch in (0, 0, 1, 1, 2, 2)]


def test_w_prime_is_a_step_of_sgd_with_momentum_and_weight_decay(steps):
    """The momentum buffer is read off the step that the weights took last: w ← w − ξ b."""
    buffer = torch.zeros_like(steps[0]["weights"])
    for index, step in enumerate(steps):
        if index:
            last = steps[index - 1]
            buffer = (last["weights"] - step["weights"]) / last["rate"]
        expected = step["weights"] - step["rate"] * (0.8 * buffer + step["gradient"] + 0.01 * step["weights"])
        moved = (step["w_prime"] - step["weights"]).norm()
        assert moved > 0
        assert (step["w_prime"] - expected).norm() < 1e-4 * moved


def test_weights_and_alphas_move_in_every_step(steps):
    for before, after in itertools.pairwise(steps):
        assert not torch.equal(before["weights"], after["weights"])
        # Adam moves an alpha by about its learning rate.
        moved = (after["alphas"] - before["alphas"]).abs().max()
        assert 1e-5 < moved < 1e-3
