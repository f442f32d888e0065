"""One step of the search, seen from inside: w′, its learning rate, who moves what, and what the textbook computes."""

import itertools

import pytest
import torch
import torch.nn.functional as F

import search
from benchmarks.baseline import TextbookSupernet, copy_weights, textbook_step
from benchmarks.search_step import peak_bytes
from nas.bilevel import step as search_step
from nas.bilevel.hypergradient import Onestage
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.errors import InputError
from nas.training.steps import Target, cosine

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
        patch.setattr(search_step, "Onestage", Recording)
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


# Against the textbook form


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def both_forms(*flags):
    """The product's models, and arguments for the textbook's step from the same weights and alphas."""
    config = parse(SearchConfig, ["--init-channels=2", "--num-cells=3", *flags])
    models = search_step.build(config, 3, 10, torch.device("cpu"))
    textbook = TextbookSupernet(3, 2, 3, 10, config.supernet.num_nodes)
    copy_weights(models.supernet, textbook)
    alphas = [torch.nn.Parameter(alpha.detach().clone()) for alpha in models.alphas.parameters()]
    lower, upper = config.lower, config.upper
    weight_optimizer = torch.optim.SGD(
        textbook.parameters(), lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay
    )
    alpha_optimizer = torch.optim.Adam(alphas, upper.alpha_lr, (0.5, 0.999), weight_decay=upper.alpha_weight_decay)
    return models, (textbook, alphas, weight_optimizer, alpha_optimizer)


def batches(size=8):
    return [(torch.randn(size, 3, 8, 8), Target(torch.randint(10, (size,)), 1.0, size)) for _ in range(2)]


def plain(*pairs):
    return [(images, target.classes) for images, target in pairs]


@pytest.mark.usefixtures("float64")
def test_ten_steps_are_those_of_the_textbook_form():
    torch.manual_seed(1)
    models, textbook = both_forms("--alpha-lr=0.01", "--num-nodes=3")
    for _ in range(10):
        train, validate = batches()
        result = search_step.exact_step(models, train, validate, 0.025)
        lower_loss, upper_loss = textbook_step(*textbook, *plain(train, validate))
        torch.testing.assert_close(result.lower_loss, lower_loss, rtol=1e-9, atol=0)
        torch.testing.assert_close(result.upper_loss, upper_loss, rtol=1e-9, atol=0)
        for alpha, expected in zip(models.alphas.parameters(), textbook[1], strict=True):
            assert (alpha.grad - expected.grad).norm() <= 1e-9 * expected.grad.norm()
            torch.testing.assert_close(alpha, expected, rtol=1e-9, atol=1e-12)


def test_a_step_holds_less_memory_than_the_textbook_form():
    models, textbook = both_forms()
    train, validate = ((torch.randn(16, 3, 32, 32), Target(torch.randint(10, (16,)), 1.0, 16)) for _ in range(2))
    cpu = torch.device("cpu")
    product = peak_bytes(lambda: search_step.exact_step(models, train, validate, 0.025), cpu)
    assert product <= 0.7 * peak_bytes(lambda: textbook_step(*textbook, *plain(train, validate)), cpu)


# The shared lower step


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("grad_clip", [5.0, 0.1], ids=["loose", "clipping"])
def test_shared_lower_step(grad_clip):
    """The weights step by SGD, the alphas along the hypergradient there, with ξ cut as the gradient was."""
    torch.manual_seed(2)
    models, (textbook, alphas, weight_optimizer, _) = both_forms(f"--grad-clip={grad_clip}", "--num-nodes=2")
    for _ in range(3):
        train, validate = batches()
        before = [alpha.detach().clone() for alpha in models.alphas.parameters()]
        textbook_before = TextbookSupernet(*textbook.arguments)
        copy_weights(models.supernet, textbook_before)
        result = search_step.shared_step(models, train, validate, 0.025)

        # The weights, at the old alphas.
        weights = list(textbook.parameters())
        weight_optimizer.zero_grad()
        loss_at(textbook, before, train).backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, grad_clip)
        assert (norm > grad_clip) == (grad_clip < 1)
        weight_optimizer.step()
        kept = TextbookSupernet(*textbook.arguments)
        copy_weights(models.supernet, kept)
        for value, expected in zip(kept.parameters(), weights, strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(result.lower_gradient_norm, norm)

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
        for alpha, first, plus, minus in zip(models.alphas.parameters(), direct, *differences, strict=True):
            expected = first - rate * (plus - minus) / (2 * epsilon)
            assert (alpha.grad - expected).norm() <= 1e-8 * expected.norm()
        torch.testing.assert_close(result.upper_loss, upper.detach())


def loss_at(network, alphas, batch):
    return F.cross_entropy(network(batch[0], [alpha.softmax(-1) for alpha in alphas]), batch[1].classes)


def alphas_at(values, alphas):
    with torch.no_grad():
        for alpha, value in zip(alphas, values, strict=True):
            alpha.copy_(value)
    return alphas


def split(gradients):
    return gradients[:2], gradients[2:]


@pytest.mark.parametrize(("step", "num_passes"), [("exact_step", 5), ("shared_step", 4)])
def test_passes_a_step(step, num_passes):
    models, _ = both_forms()
    calls = []
    models.alphas.register_forward_hook(lambda *_: calls.append(1))  # the edge weights are computed once a pass
    getattr(search_step, step)(models, *batches(), 0.025)
    assert len(calls) == num_passes


def test_nothing_to_share_at_first_order():
    with pytest.raises(InputError, match="--share-lower-step: goes with --hypergradient onestage"):
        parse(SearchConfig, ["--share-lower-step", "--hypergradient=first-order"])


@pytest.mark.parametrize(
    ("quantity", "name"),
    [
        ("lower_loss", "lower/step_loss"),
        ("lower_gradient_norm", "lower/gradient_norm"),
        ("upper_loss", "upper/step_loss"),
        ("upper_gradient_norm", "upper/gradient_norm"),
    ],
)
def test_a_quantity_that_is_not_finite_is_named(quantity, name):
    models, _ = both_forms()
    result = search_step.StepResult(*(torch.tensor(value) for value in (1.0, 2.0, 3, 4.0, 5.0)))
    state = dict(models.supernet.named_parameters())
    scalars, num_correct = search_step.read(result, models, state)
    assert (scalars["lower/step_loss"], num_correct, scalars["upper/gradient_norm"]) == (1.0, 3.0, 5.0)
    with pytest.raises(FloatingPointError, match=f"^{name} is nan"):
        search_step.read(result._replace(**{quantity: torch.tensor(float("nan"))}), models, state)


def test_weights_and_alphas_that_are_not_finite_are_named():
    models, _ = both_forms()
    result = search_step.StepResult(*(torch.tensor(value) for value in (1.0, 2.0, 3, 4.0, 5.0)))
    for model, name in ((models.alphas, "upper/alphas_norm"), (models.supernet, "lower/weights_norm")):
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] = torch.inf
        with pytest.raises(FloatingPointError, match=f"^{name} is inf"):
            search_step.read(result, models, dict(models.supernet.named_parameters()))
