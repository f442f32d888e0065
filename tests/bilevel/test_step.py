"""One step of the search, seen from inside: its learning rate, who moves what, and what the textbook computes."""

import itertools

import pytest
import torch

from benchmarks.baseline import TextbookSupernet, copy_weights, textbook_loss, textbook_step
from benchmarks.search_step import peak_bytes, take_step
from nas.bilevel import step as bilevel_step
from nas.bilevel.hypergradient import Onestage
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.errors import InputError
from nas.training.steps import cosine
from tests.in_process import TWO, call

ARGUMENTS = ["--dataset=digits", "--train-limit=40", "--batch-size=10", "--epochs=2", "--init-channels=2"]
ARGUMENTS += ["--num-cells=1", "--num-nodes=1", "--lower-lr=0.1", "--name=recorded", *TWO]


def test_an_epoch_moves_weights_and_alphas_in_each_of_its_steps_at_its_learning_rate(tmp_path, monkeypatch):
    rates, weights, alphas = [], [], []

    class Recording(Onestage):
        def compute_gradients(self, validate_data, validate_target, auxiliary_model, train_data, train_target):
            assert len(train_data) == len(validate_data) == 10
            rates.append(self.lower_learning_rate)
            for model, values in ((self.lower_model, weights), (self.upper_model, alphas)):
                values.append(torch.cat([tensor.detach().flatten() for tensor in model.parameters()]))
            return super().compute_gradients(validate_data, validate_target, auxiliary_model, train_data, train_target)

    monkeypatch.setattr(bilevel_step, "Onestage", Recording)
    assert call("search", tmp_path, *ARGUMENTS) == 0
    assert rates == [cosine(epoch, 2, 0.1, 0.001) for epoch in (0, 0, 1, 1)]
    for before, after in itertools.pairwise(weights):
        assert not torch.equal(before, after)
    for before, after in itertools.pairwise(alphas):
        # Adam moves an alpha by about its learning rate.
        assert 1e-5 < (after - before).abs().max() < 1e-3


def both_forms(*flags):
    """The product's bilevel, and arguments for the textbook's step from the same weights and alphas."""
    config = parse(SearchConfig, ["--init-channels=2", "--num-cells=3", "--num-nodes=1", *flags])
    bilevel = bilevel_step.build(config, 3, 10, torch.device("cpu"))
    textbook = TextbookSupernet(3, 2, 3, 10, config.supernet.num_nodes)
    copy_weights(bilevel.supernet, textbook)
    alphas = [torch.nn.Parameter(alpha.detach().clone()) for alpha in bilevel.alphas.parameters()]
    lower, upper = config.lower, config.upper
    sgd = torch.optim.SGD(textbook.parameters(), lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay)
    adam = torch.optim.Adam(alphas, upper.alpha_lr, (0.5, 0.999), weight_decay=upper.alpha_weight_decay)
    return bilevel, (textbook, alphas, sgd, adam)


def batches(size=8, image_size=8):
    return [Batch.whole(torch.randn(size, 3, image_size, image_size), torch.randint(10, (size,))) for _ in range(2)]


@pytest.mark.usefixtures("float64_and_seed")
def test_steps_are_those_of_the_textbook_form():
    bilevel, textbook = both_forms("--alpha-lr=0.01", "--num-nodes=2", "--weight-decay=0.01")
    for epoch, rate in enumerate((0.025, 0.05, 0.01)):
        bilevel.begin_epoch(epoch, rate)
        textbook[2].param_groups[0]["lr"] = rate
        train, validate = batches()
        scalars = take_step(bilevel, train, validate)
        lower_loss, upper_loss = textbook_step(*textbook, train[:2], validate[:2])
        torch.testing.assert_close(scalars["lower/step_loss"], lower_loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(scalars["upper/step_loss"], upper_loss, rtol=1e-9, atol=0)
        for alpha, expected in zip(bilevel.alphas.parameters(), textbook[1], strict=True):
            assert (alpha.grad - expected.grad).norm() <= 1e-9 * expected.grad.norm()
            torch.testing.assert_close(alpha, expected, rtol=1e-9, atol=1e-12)


def test_a_step_holds_less_memory_than_the_textbook_form():
    bilevel, textbook = both_forms("--num-nodes=2")
    train, validate = batches(8, 16)
    cpu = torch.device("cpu")
    product = peak_bytes(lambda: take_step(bilevel, train, validate), cpu)
    assert product <= 0.7 * peak_bytes(lambda: textbook_step(*textbook, train[:2], validate[:2]), cpu)


@pytest.mark.usefixtures("float64_and_seed")
@pytest.mark.parametrize("grad_clip", [5.0, 0.1], ids=["loose", "clipping"])
def test_shared_lower_step(grad_clip):
    """The weights step by SGD, the alphas along the hypergradient there, with ξ cut as the gradient was."""
    bilevel, (textbook, alphas, sgd, _) = both_forms(f"--grad-clip={grad_clip}", "--share-lower-step")
    weights = list(textbook.parameters())
    for _ in range(2):
        train, validate = batches()
        start = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            for alpha, value in zip(alphas, bilevel.alphas.parameters(), strict=True):
                alpha.copy_(value)
        scalars = take_step(bilevel, train, validate)

        # The weights, at the old alphas.
        sgd.zero_grad()
        textbook_loss(textbook, alphas, train[:2]).backward(inputs=weights)
        norm = torch.nn.utils.clip_grad_norm_(weights, grad_clip)
        assert (norm > grad_clip) == (grad_clip < 1)
        sgd.step()
        moved = TextbookSupernet(*textbook.arguments)
        copy_weights(bilevel.supernet, moved)
        for value, expected in zip(moved.parameters(), weights, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scalars["lower/gradient_norm"], norm)

        # The hypergradient, at the weights before and after.
        upper = textbook_loss(textbook, alphas, validate[:2])
        *direct, v = *torch.autograd.grad(upper, alphas, retain_graph=True), torch.autograd.grad(upper, weights)
        epsilon = 0.01 / torch.cat([part.flatten() for part in v]).norm()
        differences = []
        for sign in (1, -1):
            with torch.no_grad():
                for w, w_start, part in zip(moved.parameters(), start, v, strict=True):
                    w.copy_(w_start + sign * epsilon * part)
            differences.append(torch.autograd.grad(textbook_loss(moved, alphas, train[:2]), alphas))
        rate = 0.025 * min(1.0, grad_clip / (norm + 1e-6))
        for alpha, first, plus, minus in zip(bilevel.alphas.parameters(), direct, *differences, strict=True):
            expected = first - rate * (plus - minus) / (2 * epsilon)
            assert (alpha.grad - expected).norm() <= 1e-8 * expected.norm()
        torch.testing.assert_close(scalars["upper/step_loss"], upper.detach())


@pytest.mark.parametrize(("flags", "num_passes"), [([], 5), (["--share-lower-step"], 4)])
def test_passes_a_step(flags, num_passes):
    bilevel, _ = both_forms(*flags)
    calls = []
    bilevel.alphas.register_forward_hook(lambda *_: calls.append(1))  # the edge weights are computed once a pass
    take_step(bilevel, *batches())
    assert len(calls) == num_passes


def test_nothing_to_share_at_first_order():
    with pytest.raises(InputError, match="--share-lower-step: cannot be combined with first-order"):
        parse(SearchConfig, ["--share-lower-step", "--hypergradient=first-order"])


def test_convolutions_are_not_rounded_to_tf32():
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    bilevel_step.build(parse(SearchConfig, ["--init-channels=2", "--num-cells=1"]), 1, 10, torch.device("cpu"))
    assert not torch.backends.cudnn.allow_tf32
