"""One step of the search, seen from inside: w′, its learning rate, who moves what, and what the textbook computes."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import search
from benchmarks.baseline import TextbookSupernet, copy_weights, textbook_step
from benchmarks.search_step import peak_bytes, take_step
from nas.bilevel import step as bilevel_step
from nas.bilevel.hypergradient import Onestage
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.errors import InputError
from nas.training.steps import cosine

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
            loss = F.cross_entropy(self.lower_model(train_data, self.upper_model()), train_target.classes)
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
        patch.setattr(bilevel_step, "Onestage", Recording)
        search.main(parse(SearchConfig, ARGUMENTS))
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


# Against the textbook form


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both_forms(*flags):
    """The product's bilevel, and arguments for the textbook's step from the same weights and alphas."""
    config = parse(SearchConfig, ["--init-channels=2", "--num-cells=3", *flags])
    bilevel = bilevel_step.build(config, 3, 10, torch.device("cpu"))
    textbook = TextbookSupernet(3, 2, 3, 10, config.supernet.num_nodes)
    copy_weights(bilevel.supernet, textbook)
    alphas = [torch.nn.Parameter(alpha.detach().clone()) for alpha in bilevel.alphas.parameters()]
    lower, upper = config.lower, config.upper
    weight_optimizer = torch.optim.SGD(
        textbook.parameters(), lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay
    )
    alpha_optimizer = torch.optim.Adam(alphas, upper.alpha_lr, (0.5, 0.999), weight_decay=upper.alpha_weight_decay)
    return bilevel, (textbook, alphas, weight_optimizer, alpha_optimizer)


def batches(size=8):
    return [Batch.whole(torch.randn(size, 3, 8, 8), torch.randint(10, (size,))) for _ in range(2)]


@pytest.mark.usefixtures("float64")
def test_ten_steps_are_those_of_the_textbook_form():
    torch.manual_seed(1)
    bilevel, textbook = both_forms("--alpha-lr=0.01", "--num-nodes=3")
    for _ in range(10):
        train, validate = batches()
        scalars = take_step(bilevel, train, validate)
        lower_loss, upper_loss = textbook_step(*textbook, train[:2], validate[:2])
        torch.testing.assert_close(scalars["lower/step_loss"], lower_loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(scalars["upper/step_loss"], upper_loss, rtol=1e-9, atol=0)
        for alpha, expected in zip(bilevel.alphas.parameters(), textbook[1], strict=True):
            assert (alpha.grad - expected.grad).norm() <= 1e-9 * expected.grad.norm()
            torch.testing.assert_close(alpha, expected, rtol=1e-9, atol=1e-12)


def test_a_step_holds_less_memory_than_the_textbook_form():
    bilevel, textbook = both_forms()
    train, validate = (Batch.whole(torch.randn(16, 3, 32, 32), torch.randint(10, (16,))) for _ in range(2))
    cpu = torch.device("cpu")
    product = peak_bytes(lambda: take_step(bilevel, train, validate), cpu)
    assert product <= 0.7 * peak_bytes(lambda: textbook_step(*textbook, train[:2], validate[:2]), cpu)


# The shared lower step


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("grad_clip", [5.0, 0.1], ids=["loose", "clipping"])
def test_shared_lower_step(grad_clip):
    """The weights step by SGD, the alphas along the hypergradient there, with ξ cut as the gradient was."""
    torch.manual_seed(2)
    flags = f"--grad-clip={grad_clip}", "--num-nodes=2", "--share-lower-step"
    bilevel, (textbook, alphas, weight_optimizer, _) = both_forms(*flags)
    for _ in range(3):
        train, validate = batches()
        before = [alpha.detach().clone() for alpha in bilevel.alphas.parameters()]
        textbook_before = TextbookSupernet(*textbook.arguments)
        copy_weights(bilevel.supernet, textbook_before)
        scalars = take_step(bilevel, train, validate)

        # The weights, at the old alphas.
        weights = list(textbook.parameters())
        weight_optimizer.zero_grad()
        loss_at(textbook, before, train).backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, grad_clip)
        assert (norm > grad_clip) == (grad_clip < 1)
        weight_optimizer.step()
        kept = TextbookSupernet(*textbook.arguments)
        copy_weights(bilevel.supernet, kept)
        for value, expected in zip(kept.parameters(), weights, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(scalars["lower/gradient_norm"], norm)

        # The hypergradient, at the weights before and after.
        upper = loss_at(textbook, alphas_at(before, alphas), validate)
        direct, v = split(torch.autograd.grad(upper, [*alphas, *weights]))
        epsilon = 0.01 / torch.cat([part.flatten() for part in v]).norm()
        differences = []
        for sign in (1, -1):
            moved = TextbookSupernet(*textbook.arguments)
            with torch.no_grad():
                for w, start, part in zip(moved.parameters(), textbook_before.parameters(), v, strict=True):
                    w.copy_(start + sign * epsilon * part)
            differences.append(torch.autograd.grad(loss_at(moved, alphas, train), alphas))
        rate = 0.025 * min(1.0, grad_clip / (norm + 1e-6))
        for alpha, first, plus, minus in zip(bilevel.alphas.parameters(), direct, *differences, strict=True):
            expected = first - rate * (plus - minus) / (2 * epsilon)
            assert (alpha.grad - expected).norm() <= 1e-8 * expected.norm()
        torch.testing.assert_close(scalars["upper/step_loss"], upper.detach())


def loss_at(network, alphas, batch):
    return F.cross_entropy(network(batch.images, [alpha.softmax(-1) for alpha in alphas]), batch.classes)


def alphas_at(values, alphas):
    with torch.no_grad():
        for alpha, value in zip(alphas, values, strict=True):
            alpha.copy_(value)
    return alphas


def split(gradients):
    return gradients[:2], gradients[2:]


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
