"""Onestage and FirstOrder in float64: against independent references, and without a trace on the lower model."""

import copy
import math
import re

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas import Exact, FirstOrder, Onestage, State

XI = 0.3


pytestmark = pytest.mark.usefixtures("float64_and_seed")


class Problem:
    """A bilevel problem, and the calls that a search makes on it."""

    def __init__(self, upper, lower, objective, train, validate, **sgd):
        self.upper, self.lower, self.objective, self.train, self.validate = upper, lower, objective, train, validate
        self.optimizer = torch.optim.SGD(lower.parameters(), lr=XI, **sgd)

    def virtual_step(self, track_higher_grads=False):
        auxiliary = wrapped(self.lower)
        optimizer = higher.get_diff_optim(
            self.optimizer, self.lower.parameters(), fmodel=auxiliary, track_higher_grads=track_higher_grads
        )
        optimizer.step(self.objective(State(*self.train, self.upper, auxiliary)))
        return auxiliary

    def make(self, method=Onestage, **changes):
        arguments = {
            "upper_objective": self.objective,
            "upper_model": self.upper,
            "lower_objective": self.objective,
            "lower_model": self.lower,
            "lower_learning_rate": XI,
        }
        return method(**arguments | changes)

    def call(self, hypergradient, auxiliary=None):
        """Add a hypergradient to `.grad`; the upper loss."""
        return hypergradient.compute_gradients(*self.validate, auxiliary or self.virtual_step(), *self.train)

    def hypergradient(self, method=Onestage, auxiliary=None, **changes):
        """A hypergradient alone, as one vector."""
        self.upper.zero_grad()
        self.call(self.make(method, **changes), auxiliary)
        return flat(parameter.grad for parameter in self.upper.parameters())


def wrapped(module, track_higher_grads=False):
    return higher.monkeypatch(module, copy_initial_weights=True, track_higher_grads=track_higher_grads)


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


class Vector(nn.Module):
    """Two parameters as one vector."""

    def __init__(self, first=2, second=3):
        super().__init__()
        self.first = nn.Parameter(torch.randn(first))
        self.second = nn.Parameter(torch.randn(second))

    def forward(self):
        return torch.cat([self.first, self.second])


def quadratic(q, mixed, s):
    """½ wᵀQw + wᵀMα + ½ αᵀSα + wᵀ data + αᵀ target."""

    def objective(state):
        w, alpha = state.lower_model(), state.upper_model()
        return 0.5 * (w @ q @ w + alpha @ s @ alpha) + w @ mixed @ alpha + w @ state.data + alpha @ state.target

    return objective


def symmetric(n):
    matrix = torch.randn(n, n)
    return matrix + matrix.T


def quadratic_problem():
    objective = quadratic(symmetric(5), torch.randn(5, 5), symmetric(5))
    return Problem(Vector(), Vector(), objective, *((torch.randn(5), torch.randn(5)) for _ in range(2)))


class Branches(nn.Module):
    """Weights of the branches of `SmoothNetwork`'s two blocks."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.randn(2, 3))

    def forward(self):
        return self.logits.softmax(dim=-1)


class SmoothNetwork(nn.Module):
    """Two blocks of three weighted branches each; batch norm everywhere, no kinks."""

    def __init__(self, channels=8, dropout=0.0):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Sequential(
                        nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.Tanh()
                    ),
                    nn.Sequential(
                        nn.Softplus(), nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)
                    ),
                    nn.AvgPool2d(3, 1, 1),
                ]
            )
            for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, 3)

    def forward(self, images, weights):
        x = self.stem(images)
        for branches, row in zip(self.blocks, weights, strict=True):
            x = self.dropout(sum(weight * branch(x) for weight, branch in zip(row, branches, strict=True)))
        return self.classifier(x.mean(dim=(2, 3)))


def cross_entropy(state):
    return F.cross_entropy(state.lower_model(state.data, state.upper_model()), state.target)


def image_problem(dropout=0.0, **sgd):
    batches = [(torch.randn(8, 2, 6, 6), torch.randint(3, (8,))) for _ in range(2)]
    problem = Problem(Branches(), SmoothNetwork(dropout=dropout), cross_entropy, *batches, **sgd)
    for _ in range(2):  # moves batch norm's statistics and fills the momentum buffers and .grad
        problem.optimizer.zero_grad()
        cross_entropy(State(*problem.train, problem.upper, problem.lower)).backward()
        problem.optimizer.step()
    problem.upper.zero_grad()
    return problem


def vector(problem, auxiliary):
    """∇_w′ L_upper(w′, α)."""
    loss = problem.objective(State(*problem.validate, problem.upper, auxiliary))
    return flat(torch.autograd.grad(loss, list(auxiliary.parameters())))


def unrolled(problem):
    """The exact hypergradient: double backward through PyTorch's SGD step, written out."""
    (group,) = problem.optimizer.param_groups
    parameters = dict(problem.lower.named_parameters())
    w = {name: parameter.detach().clone().requires_grad_() for name, parameter in parameters.items()}

    def loss(w, batch):
        tensors = w | {name: buffer.clone() for name, buffer in problem.lower.named_buffers()}

        def lower(*inputs):
            return torch.func.functional_call(problem.lower, tensors, inputs)

        return problem.objective(State(*batch, problem.upper, lower))

    gradients = torch.autograd.grad(loss(w, problem.train), list(w.values()), create_graph=True)
    w_prime = {}
    for (name, weight), gradient in zip(w.items(), gradients, strict=True):
        gradient = gradient + group["weight_decay"] * weight
        if group["momentum"]:
            gradient = group["momentum"] * problem.optimizer.state[parameters[name]]["momentum_buffer"] + gradient
        w_prime[name] = weight - group["lr"] * gradient
    return flat(torch.autograd.grad(loss(w_prime, problem.validate), list(problem.upper.parameters())))


def numerical(problem, step=1e-5):
    """The hypergradient by central differences of the loss after a real SGD step: for few upper parameters."""

    def loss_after_step():
        lower = copy.deepcopy(problem.lower)
        problem.objective(State(*problem.train, problem.upper, lower)).backward()
        torch.optim.SGD(lower.parameters(), lr=XI).step()
        return problem.objective(State(*problem.validate, problem.upper, lower)).item()

    problem.lower.zero_grad()
    entries = []
    for parameter in problem.upper.parameters():
        for index in range(parameter.numel()):
            losses = []
            for sign in (1, -1):
                kept = parameter.detach().clone()
                parameter.data.view(-1)[index] += sign * step
                losses.append(loss_after_step())
                parameter.data.copy_(kept)
            entries.append((losses[0] - losses[1]) / (2 * step))
    return torch.tensor(entries)


# The value


@pytest.mark.parametrize("r", [1e-3, 1e-2, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_closed_form_of_a_quadratic_problem(seed, r):
    torch.manual_seed(seed)
    upper, lower = Vector(1, 3), Vector(2, 4)
    a, b, c, d, e = symmetric(6), torch.randn(6, 4), symmetric(6), torch.randn(6, 4), symmetric(4)
    train, (y, z) = ((torch.randn(6), torch.randn(4)) for _ in range(2))
    problem = Problem(upper, lower, quadratic(a, b, symmetric(4)), train, (y, z))
    value = problem.hypergradient(upper_objective=quadratic(c, d, e), r=r)

    w, alpha = lower().detach(), upper().detach()
    w_prime = w - XI * (a @ w + b @ alpha + train[0])
    v = c @ w_prime + d @ alpha + y
    expected = d.T @ w_prime + e @ alpha + z - XI * b.T @ v
    assert relative_error(value, expected) <= 1e-9
    assert relative_error(problem.hypergradient(FirstOrder, upper_objective=quadratic(c, d, e)), expected) > 0.1


@pytest.mark.parametrize("sgd", [{}, {"momentum": 0.9, "weight_decay": 0.05}], ids=["plain", "momentum"])
@pytest.mark.parametrize("seed", [0, 3, 4])
def test_exact_gradient_through_the_unrolled_step(seed, sgd):
    torch.manual_seed(seed)
    problem = image_problem(**sgd)
    exact = unrolled(problem)
    error = relative_error(problem.hypergradient(), exact)
    assert error <= 1e-4
    assert relative_error(problem.hypergradient(Exact), exact) <= 1e-12
    # What is left is the error of central differences, of order r².
    assert error / relative_error(problem.hypergradient(r=1e-3), exact) == pytest.approx(100, rel=0.1)

    # The second term is large enough that each known mistake in it would show: ξ = 0, lost, `/ 2 * ε`, sign, no 2.
    first = problem.hypergradient(FirstOrder)
    epsilon = 1e-2 / vector(problem, problem.virtual_step()).norm()
    for mistake in (0.0, epsilon**2, -1.0, 2.0):
        assert relative_error(first + mistake * (exact - first), exact) > 0.02


def test_first_order_is_the_partial_derivative_at_the_virtual_weights():
    problem = image_problem(momentum=0.9)
    auxiliary = problem.virtual_step()
    expected = torch.autograd.grad(
        cross_entropy(State(*problem.validate, problem.upper, auxiliary)), problem.upper.logits
    )
    assert torch.equal(problem.hypergradient(FirstOrder, auxiliary), flat(expected))
    assert torch.equal(problem.hypergradient(auxiliary=auxiliary, lower_learning_rate=0.0), flat(expected))


def test_learning_rate_is_the_one_set_last():
    problem = image_problem()
    auxiliary = problem.virtual_step()
    onestage = problem.make()
    second = {}
    for rate in (XI, 2 * XI, XI / 10):
        onestage.lower_learning_rate = rate
        problem.upper.zero_grad()
        problem.call(onestage, auxiliary)
        second[rate] = problem.upper.logits.grad - problem.hypergradient(FirstOrder, auxiliary).view(2, 3)
    assert second[XI].norm() > 1e-3
    first = problem.hypergradient(FirstOrder, auxiliary)
    assert onestage.ratio == pytest.approx((second[XI / 10].norm() / first.norm()).item())
    torch.testing.assert_close(second[2 * XI], 2 * second[XI])
    torch.testing.assert_close(second[XI / 10], second[XI] / 10)


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
def test_upper_loss_comes_back_without_a_graph(method):
    problem = image_problem()
    auxiliary = problem.virtual_step()
    loss = problem.call(problem.make(method), auxiliary)
    assert loss.shape == ()
    assert not loss.requires_grad
    assert loss.grad_fn is None
    assert torch.equal(loss, cross_entropy(State(*problem.validate, problem.upper, auxiliary)))


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
def test_gradients_are_added(method):
    problem = image_problem()
    auxiliary = problem.virtual_step()
    images, labels = problem.validate
    halves = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    alone = []
    for half in halves:
        problem.validate = half
        alone.append(problem.hypergradient(method, auxiliary))
    assert relative_error(alone[0], alone[1]) > 0.1

    already_there = torch.randn(2, 3)
    problem.upper.logits.grad = already_there.clone()
    hypergradient = problem.make(method)
    for half in halves:
        problem.validate = half
        problem.call(hypergradient, auxiliary)
    torch.testing.assert_close(problem.upper.logits.grad, already_there + sum(alone).view(2, 3))


def test_computes_under_no_grad():
    problem = image_problem()
    auxiliary = problem.virtual_step()
    expected = problem.hypergradient(auxiliary=auxiliary)
    with torch.no_grad():
        assert torch.equal(problem.hypergradient(auxiliary=auxiliary), expected)
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
def test_gradients_are_tensors_of_their_own(method):
    """autograd may give two parameters one gradient, of stride 0: clipping it in place would fail, or clip twice."""
    upper, lower = Vector(3, 3), Vector()
    problem = Problem(upper, lower, lambda state: (upper.first + upper.second).sum(), (0, 0), (0, 0))
    problem.call(problem.make(method), wrapped(lower))
    upper.first.grad.mul_(0.5)
    assert upper.first.grad.tolist() == [0.5, 0.5, 0.5]
    assert upper.second.grad.tolist() == [1, 1, 1]


# What the objectives see


class Recorder:
    """An objective that keeps what each call saw."""

    def __init__(self, objective):
        self.objective = objective
        self.states, self.weights, self.random_states = [], [], []

    def __call__(self, state):
        self.states.append(state)
        self.weights.append([weight.detach().clone() for weight in state.lower_model.parameters()])
        self.random_states.append(torch.get_rng_state())
        return self.objective(state)


def test_each_objective_sees_its_batch_and_its_model():
    problem = image_problem()
    auxiliary = problem.virtual_step()
    upper_objective, lower_objective = Recorder(cross_entropy), Recorder(cross_entropy)
    problem.hypergradient(auxiliary=auxiliary, upper_objective=upper_objective, lower_objective=lower_objective)
    assert len(upper_objective.states) == 1
    assert len(lower_objective.states) == 2
    for states, batch, lower_model in (
        (upper_objective.states, problem.validate, auxiliary),
        (lower_objective.states, problem.train, problem.lower),
    ):
        for state in states:
            assert state.data is batch[0]
            assert state.target is batch[1]
            assert state.upper_model is problem.upper
            assert state.lower_model is lower_model


@pytest.mark.parametrize("r", [1e-2, 0.5])
def test_lower_objective_sees_perturbed_weights(r):
    problem = image_problem()
    auxiliary = problem.virtual_step()
    v = vector(problem, auxiliary)
    recorder = Recorder(cross_entropy)
    problem.hypergradient(auxiliary=auxiliary, lower_objective=recorder, r=r)
    w = flat(problem.lower.parameters())
    steps = [flat(weights) - w for weights in recorder.weights]
    assert [step.norm().item() for step in steps] == pytest.approx([r, r], rel=1e-9)
    assert relative_error(steps[0], r * v / v.norm()) < 1e-9
    assert relative_error(steps[1], -r * v / v.norm()) < 1e-9


def test_both_perturbed_passes_draw_the_same():
    problem = image_problem(dropout=0.4)
    auxiliary = problem.virtual_step()
    masks = []
    problem.lower.dropout.register_forward_hook(lambda module, inputs, output: masks.append(output == 0))
    problem.hypergradient(auxiliary=auxiliary)
    blocks = len(problem.lower.blocks)
    assert len(masks) == 2 * blocks
    for plus, minus in zip(masks[:blocks], masks[blocks:], strict=True):
        assert torch.equal(plus, minus)
        assert 0 < plus.sum() < plus.numel()

    # With masks fixed the loss is smooth in w, so that the difference quotient hardly depends on r.
    terms = []
    for r in (1e-2, 1e-4):
        torch.manual_seed(1)
        onestage = problem.hypergradient(auxiliary=auxiliary, r=r)
        torch.manual_seed(1)
        terms.append(onestage - problem.hypergradient(FirstOrder, auxiliary))
    assert relative_error(*terms) < 1e-3


def test_random_state_advances_by_one_lower_pass():
    problem = image_problem(dropout=0.4)
    auxiliary = problem.virtual_step()
    recorder = Recorder(cross_entropy)
    torch.manual_seed(5)
    problem.hypergradient(auxiliary=auxiliary, lower_objective=recorder)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    cross_entropy(State(*problem.validate, problem.upper, auxiliary))
    between = torch.get_rng_state()
    cross_entropy(State(*problem.train, problem.upper, problem.lower))
    assert [torch.equal(state, between) for state in recorder.random_states] == [True, True]
    assert torch.equal(after, torch.get_rng_state())
    assert not torch.equal(after, between)


# What is left untouched


def snapshot(module):
    """Everything of a module that must stay, by value and by place in memory."""
    parameters = {
        name: (id(p), p.data_ptr(), p.requires_grad, p.detach().clone(), id(p.grad), copy.deepcopy(p.grad))
        for name, p in module.named_parameters()
    }
    return parameters, {name: (b.data_ptr(), b.clone()) for name, b in module.named_buffers()}


def assert_same(found, expected):
    if isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected


class Failing:
    """An objective that computes and then fails at one of its calls, counted over both objectives."""

    def __init__(self, call, failure):
        self.call, self.failure, self.count = call, failure, 0

    def __call__(self, state):
        loss = cross_entropy(state)
        self.count += 1
        if self.count != self.call:
            return loss
        if isinstance(self.failure, BaseException):
            raise self.failure
        return loss * self.failure


FAILURES = {
    "returns": (0, 1.0, None),
    **{f"raises at {call}": (call, RuntimeError("own"), (RuntimeError, "^own$")) for call in (1, 2, 3)},
    "interrupted": (3, KeyboardInterrupt(), (KeyboardInterrupt, None)),
    "upper NaN": (1, math.nan, (FloatingPointError, "^the upper objective is nan")),
    "upper inf": (1, math.inf, (FloatingPointError, "^the upper objective is inf")),
    "plus NaN": (2, math.nan, (FloatingPointError, "^the lower objective is nan")),
    "minus -inf": (3, -math.inf, (FloatingPointError, "^the lower objective is -inf")),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("call", "failure", "expected"), FAILURES.values(), ids=FAILURES)
def test_lower_model_is_bit_for_bit_what_it_was(call, failure, expected, dtype):
    torch.set_default_dtype(dtype)
    problem = image_problem(dropout=0.2, momentum=0.9)
    problem.lower.stem[0].requires_grad_(False)
    problem.lower.classifier.weight.grad = None
    problem.upper.logits.grad = torch.randn(2, 3)
    auxiliary = problem.virtual_step()
    upper_before, lower_before = snapshot(problem.upper), snapshot(problem.lower)
    assert len(lower_before[1]) == 15  # mean, variance and count of five batch norms

    objective = Failing(call, failure)
    onestage = problem.make(upper_objective=objective, lower_objective=objective)
    if expected is None:
        problem.call(onestage, auxiliary)
        assert objective.count == 3
    else:
        with pytest.raises(expected[0], match=expected[1]):
            problem.call(onestage, auxiliary)
        # A lower loss that is not finite is found after both passes, in all processes at once.
        assert objective.count == (3 if failure in (math.nan, -math.inf) and call > 1 else call)
        assert_same(snapshot(problem.upper), upper_before)
    assert_same(snapshot(problem.lower), lower_before)
    assert problem.lower.training
    assert torch.is_grad_enabled()


def test_buffers_that_a_forward_pass_rebinds_are_given_back():
    class Summing(Vector):
        def __init__(self):
            super().__init__()
            self.register_buffer("total", torch.tensor(0.0))

        def forward(self):
            self.total = self.first.detach().sum() + self.total
            return super().forward()

    problem = quadratic_problem()
    problem = Problem(problem.upper, Summing(), problem.objective, problem.train, problem.validate)
    auxiliary, before = problem.virtual_step(), snapshot(problem.lower)
    problem.call(problem.make(), auxiliary)
    assert_same(snapshot(problem.lower), before)


# Edge cases with a defined answer


@pytest.mark.parametrize("upper_objective", [
    lambda state: state.upper_model().square().sum(),
    lambda state: state.upper_model().square().sum() + 0 * state.lower_model().sum(),
], ids=["no dependence", "zero"])  # fmt: skip
def test_zero_vector_gives_no_second_term(upper_objective):
    problem = quadratic_problem()
    value = problem.hypergradient(upper_objective=upper_objective)
    assert torch.equal(value, 2 * problem.upper().detach())


@pytest.mark.parametrize("exponent", [3, 20, 100, 150, 200, 290, 307, 310, 320])
def test_tiny_vectors(exponent):
    """Down to where the norm underflows the second term follows the vector's length; it is never NaN."""
    problem = quadratic_problem()
    auxiliary = problem.virtual_step()

    def second_term(scale):
        return problem.hypergradient(
            auxiliary=auxiliary, upper_objective=lambda state: scale * state.lower_model().square().sum()
        )

    value = second_term(10.0**-exponent)
    assert value.isfinite().all()
    if exponent <= 150:
        torch.testing.assert_close(value * 10.0**exponent, second_term(1.0))
    else:
        assert value.norm() <= 2 * second_term(1.0).norm() * 10.0**-exponent


def test_tiny_vector_of_one_float32():
    """The norm of a single number does not underflow: ε would be larger than the largest float32."""
    torch.set_default_dtype(torch.float32)

    def objective(state):
        return state.lower_model.weight.sum() * state.upper_model().sum()

    problem = Problem(Vector(), nn.Linear(1, 1, bias=False), objective, (0, 0), (0, 0))
    value = problem.hypergradient(upper_objective=lambda state: 1e-42 * state.lower_model.weight.sum())
    assert value.isfinite().all()
    assert value.abs().max() <= 1e-42


class Parts(nn.Module):
    """One parameter for both objectives, one for each alone, one for neither."""

    def __init__(self):
        super().__init__()
        for name in ("both", "upper", "lower", "neither"):
            self.register_parameter(name, nn.Parameter(torch.randn(2)))


def test_upper_parameters_that_an_objective_does_not_use():
    def upper_objective(state):
        return (state.lower_model() ** 2).sum() * (state.upper_model.both + state.upper_model.upper).sum()

    def lower_objective(state):
        return (state.lower_model() ** 3).sum() * (state.upper_model.both * state.upper_model.lower).sum()

    upper = Parts()
    problem = Problem(upper, Vector(), lower_objective, (0, 0), (0, 0))
    auxiliary = problem.virtual_step()
    problem.call(problem.make(FirstOrder, upper_objective=upper_objective), auxiliary)
    first = {name: p.grad.clone() for name, p in upper.named_parameters()}
    problem.hypergradient(auxiliary=auxiliary, upper_objective=upper_objective)
    second = {name: p.grad - first[name] for name, p in upper.named_parameters()}
    assert [name for name, gradient in first.items() if gradient.any()] == ["both", "upper"]
    assert [name for name, gradient in second.items() if gradient.any()] == ["both", "lower"]

    neither = problem.hypergradient(
        auxiliary=auxiliary,
        upper_objective=lambda state: state.lower_model().sum(),
        lower_objective=lambda state: torch.tensor(1.0),
    )
    assert torch.equal(neither, torch.zeros(8))


def test_frozen_upper_parameters_get_no_gradient():
    problem = quadratic_problem()
    expected = problem.hypergradient()
    problem.upper.first.requires_grad_(False)
    problem.upper.zero_grad()
    problem.call(problem.make())
    assert problem.upper.first.grad is None
    torch.testing.assert_close(problem.upper.second.grad, expected[2:])


@pytest.mark.parametrize("frozen", [["stem.0.weight", "blocks.1.0.1.weight"], ["classifier.bias"]])
def test_frozen_lower_parameters_are_not_perturbed(frozen):
    problem = image_problem()
    for name in frozen:
        problem.lower.get_parameter(name).requires_grad_(False)
    recorder = Recorder(cross_entropy)
    problem.hypergradient(lower_objective=recorder)
    for weights in recorder.weights:
        named = zip(problem.lower.named_parameters(), weights, strict=True)
        assert [name for (name, p), weight in named if torch.equal(p, weight)] == frozen
        assert (flat(weights) - flat(problem.lower.parameters())).norm().item() == pytest.approx(1e-2)
    assert relative_error(problem.hypergradient(r=1e-3), numerical(problem)) < 1e-4


@pytest.mark.parametrize("method", [Onestage, Exact])
def test_a_lower_model_that_is_frozen_whole_has_no_second_term(method):
    problem = image_problem()
    auxiliary = wrapped(problem.lower.requires_grad_(False))
    assert torch.equal(problem.hypergradient(method, auxiliary), problem.hypergradient(FirstOrder, auxiliary))


class Layers(nn.Module):
    """Two layers of three units; a case may change them, and compute something from the input first."""

    def __init__(self, change=lambda model: None, enter=lambda model, x: x):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        object.__setattr__(self, "enter", enter)
        change(self)

    def forward(self, x):
        return self.second(torch.tanh(self.first(self.enter(self, x)))).sum(dim=1)


def layers_problem(*arguments, objective=None):
    def default(state):
        outputs = state.lower_model(state.data * state.upper_model()[2:])
        return F.mse_loss(outputs, state.target) + state.upper_model()[0] * outputs.mean()

    batches = ((torch.randn(5, 3), torch.randn(5)) for _ in range(2))
    return Problem(Vector(), Layers(*arguments), objective or default, *batches)


def holding(**made):
    """A change that gives a model more attributes, made from itself."""
    return lambda model: [setattr(model, name, make(model)) for name, make in made.items()]


def run(model):
    """What an evaluation leaves behind: a weight that a hook computed without a graph."""
    with torch.no_grad():
        model(torch.randn(5, 3))


def trained(model):
    """What a training step leaves behind: a weight that a hook computed, its graph used up."""
    model(torch.randn(5, 3)).sum().backward()


def add(module, name):
    module.register_parameter(name, nn.Parameter(torch.randn(3)))


def without_gradient(model, x):
    with torch.no_grad():
        scale = model.scale.tanh()
    return x * scale


def kept(model, x):
    """Computes with a weight of its own once, and then with what it kept."""
    if getattr(model, "kept", None) is None:
        model.kept = model.scale.tanh()
    return x * model.kept


new, old = nn.utils.parametrizations, nn.utils
EXCHANGED = {
    "weight norm": (lambda model: new.weight_norm(model.first),),
    "spectral norm": (lambda model: new.spectral_norm(model.first, n_power_iterations=100),),
    "spectral norm, evaluated": (lambda model: new.spectral_norm(model.first).eval(),),
    "tied weights": (lambda model: setattr(model.second, "weight", model.first.weight),),
    "tied with an embedding": (
        holding(table=lambda model: nn.Embedding(3, 3, _weight=model.first.weight)),
        lambda model, x: x * model.table(torch.arange(5) % 3),
    ),
    "used twice": (lambda model: None, lambda model, x: torch.tanh(model.first(x))),
    "two names": (holding(third=lambda model: model.first), lambda model, x: torch.tanh(model.third(x))),
    "two names, buffers": (
        holding(norm=lambda model: nn.BatchNorm1d(3), same=lambda model: model.norm),
        lambda model, x: model.same(2 * model.norm(x)),
    ),
    "two names in one module": (
        lambda model: setattr(model.first, "same", model.first.weight),
        lambda model, x: x @ model.first.same,
    ),
    "frozen": (lambda model: model.first.requires_grad_(False),),
    "frozen, old weight norm": (lambda model: [old.weight_norm(model.first).requires_grad_(False), run(model)],),
    "list": (holding(weights=lambda model: nn.ParameterList([torch.eye(3)])), lambda model, x: x @ model.weights[0]),
    "dictionary": (
        holding(weights=lambda model: nn.ParameterDict({"a": torch.eye(3)})),
        lambda model, x: x @ model.weights["a"],
    ),
    "recurrent": (holding(lstm=lambda model: nn.LSTM(3, 3)), lambda model, x: model.lstm(x)[0]),
    "attention": (
        holding(attention=lambda model: nn.MultiheadAttention(3, 1)),
        lambda model, x: model.attention(x, x, x)[0],
    ),
    "lazy": (lambda model: [setattr(model, "first", nn.LazyLinear(3)), run(model)],),
    "unused": (lambda model: add(model, "scale"),),
    "used without gradient": (lambda model: add(model, "scale"), without_gradient),
}


@pytest.mark.parametrize("arguments", EXCHANGED.values(), ids=EXCHANGED)
def test_lower_models_of_which_all_is_exchanged(arguments):
    problem = layers_problem(*arguments)
    before = snapshot(problem.lower)
    attributes = [(vars(module), dict(vars(module))) for module in problem.lower.modules()]
    expected = numerical(problem)
    assert relative_error(problem.hypergradient(r=1e-3), expected) < 1e-5
    assert relative_error(problem.hypergradient(Exact), expected) < 1e-5
    assert relative_error(problem.hypergradient(FirstOrder), expected) > 0.01
    problem.lower.zero_grad()
    assert_same(snapshot(problem.lower), before)
    for now, then in attributes:
        assert now.keys() == then.keys()
        assert all(now[name] is value for name, value in then.items())


MISSED = {
    **{
        f"{norm.__name__} {after.__name__}": (lambda model, norm=norm, after=after: [norm(model.first), after(model)],)
        for norm in (old.weight_norm, old.spectral_norm)
        for after in (Layers.train, run, trained)
    },
    "list": (holding(held=lambda model: [model.first.weight]), lambda model, x: x @ model.held[0]),
    "module in a tuple": (holding(held=lambda model: (model.first,)), lambda model, x: model.held[0](x)),
    "bound method": (holding(held=lambda model: model.first.forward), lambda model, x: model.held(x)),
    "forward hook": (
        lambda model: [
            add(model.first, "scale"),
            model.first.register_forward_hook(lambda module, inputs, output: output * module.scale),
        ],
    ),
    "cache": (lambda model: add(model, "scale"), kept),
    "frozen when it was wrapped": (lambda model: model.first.requires_grad_(False),),
}
NAMED = {
    "weight_norm": "first.weight_g",
    "spectral_norm": "first.weight_orig",
    "forward hook": "first.scale",
    "cache": "scale",
}


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
@pytest.mark.parametrize("case", MISSED)
def test_parameters_that_the_auxiliary_model_does_not_exchange(case, method):
    problem = layers_problem(*MISSED[case])
    auxiliary = wrapped(problem.lower) if "frozen" in case else problem.virtual_step()
    problem.lower.requires_grad_(True)
    before = snapshot(problem.lower)
    name = re.escape(NAMED.get(case.split(" ")[0], NAMED.get(case, "first.weight")))
    with pytest.raises(ValueError, match=rf"^the upper objective depends on the lower model's parameter {name}[ ,]"):
        problem.call(problem.make(method), auxiliary)
    assert problem.upper.first.grad is None
    assert_same(snapshot(problem.lower), before)


@pytest.mark.parametrize("method", [Onestage, Exact])
@pytest.mark.parametrize("level", ["upper", "lower"])
def test_an_objective_that_holds_a_parameter(level, method):
    """A regularisation that was written for the lower model, not for the one that the objective is given."""
    problem = layers_problem()
    held = problem.lower.second.bias

    def objective(state):
        return problem.objective(state) + state.upper_model()[1] * held.square().sum()

    sentence = f"^the {level} objective depends on the lower model's parameter second.bias, but not through "
    with pytest.raises(ValueError, match=sentence):
        problem.call(problem.make(method, **{f"{level}_objective": objective}))
    assert problem.upper.first.grad is None


@pytest.mark.parametrize("register", [add, lambda model, name: setattr(model, name, nn.Parameter(torch.randn(3)))])
def test_a_parameter_that_the_first_pass_registers(register):
    def late(model, x):
        if not hasattr(model, "late"):
            register(model, "late")
        return x * model.late

    problem = layers_problem(lambda model: None, late)
    auxiliary = problem.virtual_step()
    with pytest.raises(ValueError, match=r"the lower objective depends on the lower model's parameter late, but"):
        problem.call(problem.make(), auxiliary)
    run(problem.lower)
    with pytest.raises(ValueError, match=r"wrapping of the lower model \(parameters: 4 against 5, or other shapes"):
        problem.call(problem.make(), auxiliary)
    problem = Problem(problem.upper, problem.lower, problem.objective, problem.train, problem.validate)
    assert relative_error(problem.hypergradient(r=1e-3), numerical(problem)) < 1e-5


def test_a_weight_that_is_computed_once_and_kept():
    """w⁻ does not see what a module kept of w⁺."""
    values = []
    for enter in (kept, lambda model, x: x * model.scale.tanh()):
        torch.manual_seed(1)
        problem = layers_problem(lambda model: add(model, "scale"), enter)
        values.append(problem.hypergradient(auxiliary=wrapped(problem.lower)))
    assert torch.equal(*values)


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
def test_an_auxiliary_model_may_have_the_parameters_themselves(method):
    problem = layers_problem()
    auxiliary = wrapped(problem.lower)
    expected = problem.hypergradient(method, auxiliary)
    auxiliary.update_params(list(problem.lower.parameters()))
    assert torch.equal(problem.hypergradient(method, auxiliary), expected)


def test_a_layer_for_one_objective_alone():
    """Old weight norm does no harm where only the lower objective sees it."""

    def objective(state):
        outputs = state.lower_model(state.data * state.upper_model()[2:])
        if state.data is problem.train[0]:
            outputs = outputs * state.lower_model.head(state.data * state.upper_model()[2:])[:, 0]
        return F.mse_loss(outputs, state.target) + state.upper_model()[0] * outputs.mean()

    head = holding(head=lambda model: old.weight_norm(nn.Linear(3, 1)))
    problem = layers_problem(lambda model: [head(model), model.head(torch.randn(5, 3)).sum().backward()])
    with torch.no_grad():
        problem.lower.head(torch.randn(5, 3))
    problem.objective = objective
    assert relative_error(problem.hypergradient(r=1e-3), numerical(problem)) < 1e-5


def test_a_layer_that_chance_leaves_out_is_not_missed():
    extra = holding(extra=lambda model: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    problem = layers_problem(extra, lambda model, x: model.extra(x) if torch.rand(()) < 0.5 else x)
    for seed in range(12):
        torch.manual_seed(seed)
        auxiliary = problem.virtual_step()
        passes = auxiliary.extra[1].num_batches_tracked.item()
        state, left_out = torch.get_rng_state(), torch.rand(()) >= 0.5
        torch.rand(())
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        problem.call(problem.make(), auxiliary)
        assert torch.equal(torch.get_rng_state(), after)  # one upper pass, one lower pass
        assert auxiliary.extra[1].num_batches_tracked == passes + (not left_out)


def test_upper_models_get_gradients_for_all_that_they_use():
    """Nothing wraps the upper model: old weight norm, ties and a parameter that the first pass registers work there."""

    class Odd(Layers):
        def forward(self):
            if not hasattr(self, "late"):
                add(self, "late")
            return super().forward(torch.eye(5, 3)) * self.late.sum()

    problem = quadratic_problem()
    problem.upper = Odd(lambda model: [old.weight_norm(model.first), setattr(model.second, "bias", model.first.bias)])
    auxiliary = wrapped(problem.lower)
    value = problem.hypergradient(auxiliary=auxiliary)
    assert [name for name, p in problem.upper.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert torch.equal(problem.hypergradient(auxiliary=auxiliary), value)


# Errors


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
@pytest.mark.parametrize("upper", [nn.Identity(), Vector().requires_grad_(False)], ids=["empty", "frozen"])
def test_no_upper_parameters(method, upper):
    problem = quadratic_problem()
    with pytest.raises(ValueError, match=r"^the upper model has no parameter that requires gradients\.$"):
        problem.call(problem.make(method, upper_model=upper))


AUXILIARY_MODELS = {
    "not wrapped": (lambda problem: problem.lower, "is a Vector, not the lower model wrapped by higher.monkeypatch."),
    "tracking wrapper": (
        lambda problem: wrapped(problem.lower, track_higher_grads=True),
        "tracks higher gradients, so the second term would count twice: wrap the lower model, and take the step, with "
        "track_higher_grads=False.",
    ),
    "tracking step": (
        lambda problem: problem.virtual_step(track_higher_grads=True),
        "tracks higher gradients, so the second term would count twice: ",
    ),
    "other shapes": (
        lambda problem: wrapped(Vector(3, 2)),
        "is not a wrapping of the lower model (parameters: 2 against 2, or other shapes: first, second).",
    ),
    "other count": (
        lambda problem: wrapped(nn.Linear(2, 3, bias=False)),
        "is not a wrapping of the lower model (parameters: 1 against 2, or other shapes: first, second, weight).",
    ),
}


@pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])
@pytest.mark.parametrize(("make", "sentence"), AUXILIARY_MODELS.values(), ids=AUXILIARY_MODELS)
def test_wrong_auxiliary_model(make, sentence, method):
    problem = quadratic_problem()
    with pytest.raises(ValueError, match=f"^the auxiliary model {re.escape(sentence)}"):
        problem.call(problem.make(method), make(problem))
    assert problem.upper.first.grad is None


NOT_SCALAR = "must return a scalar tensor, but its result is "
RESULTS = {
    "vector": (lambda loss: loss * torch.ones(3), ValueError, NOT_SCALAR + "of shape (3,)."),
    "one entry": (lambda loss: loss[None], ValueError, NOT_SCALAR + "of shape (1,)."),
    "float": (lambda loss: loss.item(), ValueError, NOT_SCALAR + "a float."),
    "none": (lambda loss: None, ValueError, NOT_SCALAR + "a NoneType."),
    "nan": (lambda loss: loss * math.nan, FloatingPointError, "is nan."),
    "inf": (lambda loss: loss.abs() * math.inf, FloatingPointError, "is inf."),
}


@pytest.mark.parametrize("level", ["upper", "lower"])
@pytest.mark.parametrize(("change", "error", "sentence"), RESULTS.values(), ids=RESULTS)
def test_result_of_an_objective(level, change, error, sentence):
    problem = quadratic_problem()
    auxiliary = problem.virtual_step()
    onestage = problem.make(**{f"{level}_objective": lambda state: change(problem.objective(state))})
    with pytest.raises(error, match=f"^the {level} objective {re.escape(sentence)}$"):
        problem.call(onestage, auxiliary)
    assert problem.upper.first.grad is None


def test_gradient_of_the_upper_objective_that_is_not_finite():
    problem = quadratic_problem()
    onestage = problem.make(upper_objective=lambda state: (0 * state.lower_model().sum()).sqrt())
    with pytest.raises(
        FloatingPointError, match=r"^the gradient of the upper objective with respect to w′ has the norm nan\.$"
    ):
        problem.call(onestage)
    assert problem.upper.first.grad is None
