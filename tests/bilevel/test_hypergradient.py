"""Onestage, Exact and FirstOrder in float64: against independent references, and without a trace on the lower model."""

import copy
import math
import re

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import Exact, FirstOrder, Onestage, State

XI = 0.3
pytestmark = pytest.mark.usefixtures("float64_and_seed")
of_each_method = pytest.mark.parametrize("method", [Onestage, Exact, FirstOrder])


class Problem:
    """A bilevel problem, and the calls that a search makes on it."""

    def __init__(self, upper, lower, objective, train=(0, 0), validate=(0, 0), **sgd):
        self.upper, self.lower, self.objective, self.train, self.validate = upper, lower, objective, train, validate
        self.optimizer = torch.optim.SGD(lower.parameters(), lr=XI, **sgd)

    def virtual_step(self, track_higher_grads=False):
        auxiliary = wrapped(self.lower, track_higher_grads)
        optimizer = higher.get_diff_optim(
            self.optimizer, self.lower.parameters(), fmodel=auxiliary, track_higher_grads=track_higher_grads
        )
        optimizer.step(self.objective(State(*self.train, self.upper, auxiliary)))
        return auxiliary

    def make(self, method=Onestage, **changes):
        arguments = {"upper_objective": self.objective, "upper_model": self.upper, "lower_objective": self.objective}
        return method(**arguments | {"lower_model": self.lower, "lower_learning_rate": XI} | changes)

    def call(self, hypergradient, auxiliary=None):
        """Add a hypergradient to `.grad`; the upper loss."""
        return hypergradient.compute_gradients(*self.validate, auxiliary or self.virtual_step(), *self.train)

    def hypergradient(self, method=Onestage, auxiliary=None, **changes):
        """A hypergradient alone, as one vector."""
        self.upper.zero_grad()
        self.call(self.make(method, **changes), auxiliary)
        return self.gradient()

    def gradient(self):
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


def quadratic_problem():
    mixed, q, s = torch.randn(3, 5, 5)

    def objective(state):
        """½ wᵀ(Q + Qᵀ)w + wᵀMα + ½ αᵀ(S + Sᵀ)α + wᵀ data + αᵀ target."""
        w, alpha = state.lower_model(), state.upper_model()
        return w @ q @ w + alpha @ s @ alpha + w @ mixed @ alpha + w @ state.data + alpha @ state.target

    problem = Problem(Vector(), Vector(), objective, *((torch.randn(5), torch.randn(5)) for _ in range(2)))
    problem.matrices = mixed, q + q.T, s + s.T
    return problem


class SmoothNetwork(nn.Module):
    """Two blocks of three branches each, weighted by the softmax of alphas; batch norm everywhere, no kinks."""

    def __init__(self, dropout):
        super().__init__()

        def convolution(before, kernel):
            return nn.Conv2d(before, 8, kernel, padding=kernel // 2, bias=False), nn.BatchNorm2d(8)

        def branches():
            first = nn.Sequential(*convolution(8, 3), nn.Tanh())
            return nn.ModuleList([first, nn.Sequential(nn.Softplus(), *convolution(8, 1)), nn.AvgPool2d(3, 1, 1)])

        self.stem = nn.Sequential(*convolution(2, 3))
        self.blocks = nn.ModuleList(branches() for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(8, 3)

    def forward(self, images, alphas):
        x = self.stem(images)
        for branches, row in zip(self.blocks, alphas.view(2, 3).softmax(-1), strict=True):
            x = self.dropout(sum(weight * branch(x) for weight, branch in zip(row, branches, strict=True)))
        return self.classifier(x.mean(dim=(2, 3)))


def cross_entropy(state):
    return F.cross_entropy(state.lower_model(state.data, state.upper_model()), state.target)


def image_problem(dropout=0.0, **sgd):
    batches = [(torch.randn(8, 2, 6, 6), torch.randint(3, (8,))) for _ in range(2)]
    problem = Problem(Vector(3, 3), SmoothNetwork(dropout), cross_entropy, *batches, **sgd)
    for _ in range(2):  # moves batch norm's statistics and fills the momentum buffers and .grad
        problem.optimizer.zero_grad()
        cross_entropy(State(*problem.train, problem.upper, problem.lower)).backward()
        problem.optimizer.step()
    problem.upper.zero_grad()
    return problem


def numerical(problem, step=1e-5):
    """The hypergradient by central differences of the loss after a real SGD step: for few upper parameters."""

    def loss_after_step():
        lower, optimizer = copy.deepcopy((problem.lower, problem.optimizer))
        problem.objective(State(*problem.train, problem.upper, lower)).backward()
        optimizer.step()
        return problem.objective(State(*problem.validate, problem.upper, lower)).item()

    problem.lower.zero_grad()
    entries = []
    for parameter in problem.upper.parameters():
        for entry in parameter.data.view(-1):
            kept, losses = entry.item(), []
            for moved in (kept + step, kept - step):
                entry.fill_(moved)
                losses.append(loss_after_step())
            entry.fill_(kept)
            entries.append((losses[0] - losses[1]) / (2 * step))
    return torch.tensor(entries)


# The value


@pytest.mark.parametrize("r", [1e-3, 1e-2, 1.0])
def test_closed_form_of_a_quadratic_problem(r):
    problem = quadratic_problem()
    (mixed, q, s), (y, z) = problem.matrices, problem.validate
    w, alpha = problem.lower().detach(), problem.upper().detach()
    w_prime = w - XI * (q @ w + mixed @ alpha + problem.train[0])
    v = q @ w_prime + mixed @ alpha + y
    expected = mixed.T @ w_prime + s @ alpha + z - XI * mixed.T @ v
    assert relative_error(problem.hypergradient(r=r), expected) <= 1e-9
    assert relative_error(problem.hypergradient(FirstOrder), expected) > 0.1


@pytest.mark.parametrize("sgd", [{}, {"momentum": 0.9, "weight_decay": 0.05}], ids=["plain", "momentum"])
@pytest.mark.parametrize("seed", [0, 3])
def test_the_gradient_through_a_real_step(seed, sgd):
    torch.manual_seed(seed)
    problem = image_problem(**sgd)
    unrolled = cross_entropy(State(*problem.validate, problem.upper, problem.virtual_step(track_higher_grads=True)))
    expected = flat(torch.autograd.grad(unrolled, list(problem.upper.parameters())))
    assert relative_error(numerical(problem), expected) <= 1e-8
    error = relative_error(problem.hypergradient(), expected)
    assert error <= 1e-4
    assert relative_error(problem.hypergradient(Exact), expected) <= 1e-12
    # What is left is the error of central differences, of order r².
    assert error / relative_error(problem.hypergradient(r=1e-3), expected) == pytest.approx(100, rel=0.1)

    # The second term is large enough that each known mistake in it would show: lost, sign, no 2.
    first = problem.hypergradient(FirstOrder)
    for mistake in (0.0, -1.0, 2.0):
        assert relative_error(first + mistake * (expected - first), expected) > 0.02


def test_the_second_term_is_as_large_as_the_learning_rate_set_last():
    problem = image_problem(momentum=0.9)
    auxiliary = problem.virtual_step()
    loss = cross_entropy(State(*problem.validate, problem.upper, auxiliary))
    first, second = problem.hypergradient(FirstOrder, auxiliary), {}
    assert torch.equal(first, flat(torch.autograd.grad(loss, list(problem.upper.parameters()))))
    onestage = problem.make()
    for rate in (0.0, XI, 2 * XI, XI / 10):
        onestage.lower_learning_rate = rate
        problem.upper.zero_grad()
        problem.call(onestage, auxiliary)
        second[rate] = problem.gradient() - first
    assert onestage.ratio == pytest.approx((second[XI / 10].norm() / first.norm()).item())
    assert not second[0.0].any()
    assert second[XI].norm() > 1e-3
    torch.testing.assert_close(second[2 * XI], 2 * second[XI])
    torch.testing.assert_close(second[XI / 10], second[XI] / 10)


@of_each_method
def test_gradients_are_added_and_the_upper_loss_comes_back_without_a_graph(method):
    problem = image_problem()
    auxiliary = problem.virtual_step()
    alone = problem.hypergradient(method, auxiliary)
    before = torch.randn(6)
    problem.upper.first.grad, problem.upper.second.grad = before.clone().view(2, 3)
    hypergradient = problem.make(method)
    with torch.no_grad():
        for _ in range(2):
            loss = problem.call(hypergradient, auxiliary)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(problem.gradient(), before + 2 * alone)
    assert torch.equal(loss, cross_entropy(State(*problem.validate, problem.upper, auxiliary)))
    assert not loss.requires_grad


@of_each_method
def test_gradients_are_tensors_of_their_own(method):
    """autograd may give two parameters one gradient, of stride 0: clipping it in place would fail, or clip twice."""
    upper, lower = Vector(3, 3), Vector()
    problem = Problem(upper, lower, lambda state: (upper.first + upper.second).sum())
    problem.call(problem.make(method), wrapped(lower))
    upper.first.grad.mul_(0.5)
    assert upper.first.grad.tolist() == [0.5, 0.5, 0.5]
    assert upper.second.grad.tolist() == [1, 1, 1]


# What the objectives see


class Recorder:
    """The cross entropy, which keeps what each call saw."""

    def __init__(self):
        self.states, self.weights, self.random_states = [], [], []

    def __call__(self, state):
        self.states.append(state)
        self.weights.append(flat(state.lower_model.parameters()))
        self.random_states.append(torch.get_rng_state())
        return cross_entropy(state)


@pytest.mark.parametrize("r", [1e-2, 0.5])
def test_each_objective_sees_its_batch_and_its_model_and_the_lower_one_perturbed_weights(r):
    problem = image_problem()
    auxiliary = problem.virtual_step()
    loss = cross_entropy(State(*problem.validate, problem.upper, auxiliary))
    v = flat(torch.autograd.grad(loss, list(auxiliary.parameters())))
    upper, lower = Recorder(), Recorder()
    problem.hypergradient(auxiliary=auxiliary, upper_objective=upper, lower_objective=lower, r=r)
    of_upper, of_lower = ((*problem.validate, problem.upper, auxiliary), (*problem.train, problem.upper, problem.lower))
    for state, expected in zip([*upper.states, *lower.states], [of_upper, of_lower, of_lower], strict=True):
        assert all(found is wanted for found, wanted in zip(state, expected, strict=True))
    for weights, sign in zip(lower.weights, (1, -1), strict=True):
        assert relative_error(weights - flat(problem.lower.parameters()), sign * r * v / v.norm()) < 1e-9


def test_both_perturbed_passes_draw_the_same_and_random_state_advances_by_one():
    problem = image_problem(dropout=0.4)
    auxiliary = problem.virtual_step()
    recorder = Recorder()
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
    """Everything of a module that must stay, by place in memory and by its bits."""

    def bits(tensor):
        return tensor if tensor is None else (id(tensor), tensor.data_ptr(), tensor.detach().numpy().tobytes())

    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (bits(tensor), bits(tensor.grad), tensor.requires_grad) for name, tensor in tensors}


FAILURES = [
    (0, 1.0, None, None),
    *((call, RuntimeError("own"), RuntimeError, "^own$") for call in (1, 2, 3)),
    (3, KeyboardInterrupt(), KeyboardInterrupt, None),
    (1, math.nan, FloatingPointError, "^the upper objective is nan"),
    (2, math.nan, FloatingPointError, "^the lower objective is nan"),
    (3, -math.inf, FloatingPointError, "^the lower objective is -inf"),
]


@pytest.mark.parametrize(("failing", "failure", "error", "sentence"), FAILURES, ids=str)
def test_lower_model_is_bit_for_bit_what_it_was(failing, failure, error, sentence):
    problem = image_problem(dropout=0.2, momentum=0.9)
    problem.lower.stem[0].requires_grad_(False)
    problem.lower.classifier.weight.grad = None
    problem.upper.first.grad = torch.randn(3)
    auxiliary = problem.virtual_step()
    upper_before, lower_before = snapshot(problem.upper), snapshot(problem.lower)
    states = []

    def objective(state):
        loss = cross_entropy(state)
        states.append(state)
        if len(states) != failing:
            return loss
        if isinstance(failure, BaseException):
            raise failure
        return loss * failure

    onestage = problem.make(upper_objective=objective, lower_objective=objective)
    if error is None:
        problem.call(onestage, auxiliary)
        assert len(states) == 3
    else:
        with pytest.raises(error, match=sentence):
            problem.call(onestage, auxiliary)
        # A lower loss that is not finite is found after both passes, in all processes at once.
        assert len(states) == (3 if error is FloatingPointError and failing > 1 else failing)
        assert snapshot(problem.upper) == upper_before
    assert snapshot(problem.lower) == lower_before
    assert problem.lower.training
    assert torch.is_grad_enabled()


# Edge cases with a defined answer


@pytest.mark.parametrize("of_lower", [lambda w: 0, lambda w: 0 * w.sum()], ids=["no dependence", "zero"])
def test_zero_vector_gives_no_second_term(of_lower):
    def upper_objective(state):
        return state.upper_model().square().sum() + of_lower(state.lower_model())

    problem = quadratic_problem()
    assert torch.equal(problem.hypergradient(upper_objective=upper_objective), 2 * problem.upper().detach())


@pytest.mark.parametrize("exponent", [3, 100, 150, 200, 307, 310, 320])
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
    lower = nn.Linear(1, 1, bias=False)
    problem = Problem(Vector(), lower, lambda state: state.lower_model.weight.sum() * state.upper_model().sum())
    value = problem.hypergradient(upper_objective=lambda state: 1e-42 * state.lower_model.weight.sum())
    assert value.isfinite().all()
    assert value.abs().max() <= 1e-42


def test_upper_parameters_that_an_objective_does_not_use():
    def upper_objective(state):
        return (state.lower_model() ** 2).sum() * (state.upper_model.both + state.upper_model.upper).sum()

    def lower_objective(state):
        return (state.lower_model() ** 3).sum() * (state.upper_model.both * state.upper_model.lower).sum()

    upper = nn.ParameterDict({name: torch.randn(2) for name in ("both", "upper", "lower", "neither")})
    problem = Problem(upper, Vector(), lower_objective)
    auxiliary = problem.virtual_step()
    first = problem.hypergradient(FirstOrder, auxiliary, upper_objective=upper_objective)
    second = problem.hypergradient(auxiliary=auxiliary, upper_objective=upper_objective) - first
    for gradient, used in ((first, ["both", "upper"]), (second, ["both", "lower"])):
        assert [name for name, part in zip(upper, gradient.split(2), strict=True) if part.any()] == used

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


def test_frozen_lower_parameters_are_not_perturbed():
    problem = image_problem()
    frozen = ["stem.0.weight", "blocks.1.0.1.weight", "classifier.bias"]
    for name in frozen:
        problem.lower.get_parameter(name).requires_grad_(False)
    recorder = Recorder()
    problem.hypergradient(lower_objective=recorder)
    names, parameters = zip(*problem.lower.named_parameters(), strict=True)
    for weights in recorder.weights:
        moved = (weights - flat(parameters)).split([p.numel() for p in parameters])
        assert [name for name, part in zip(names, moved, strict=True) if not part.any()] == frozen
        assert flat(moved).norm().item() == pytest.approx(1e-2)
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


def layers_problem(*arguments):
    def objective(state):
        outputs = state.lower_model(state.data * state.upper_model()[2:])
        return F.mse_loss(outputs, state.target) + state.upper_model()[0] * outputs.mean()

    return Problem(Vector(), Layers(*arguments), objective, *((torch.randn(5, 3), torch.randn(5)) for _ in range(2)))


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


def rebinding(model, x):
    model.total = x.detach().sum() + model.total
    return x


new, old = nn.utils.parametrizations, nn.utils
EXCHANGED = {
    "weight norm": (lambda model: new.weight_norm(model.first),),
    "spectral norm": (lambda model: new.spectral_norm(model.first, n_power_iterations=100),),
    "tied weights": (lambda model: setattr(model.second, "weight", model.first.weight),),
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
    "recurrent": (holding(lstm=lambda model: nn.LSTM(3, 3)), lambda model, x: model.lstm(x)[0]),
    "unused": (lambda model: add(model, "scale"),),
    "used without gradient": (lambda model: add(model, "scale"), without_gradient),
    "buffer that a pass rebinds": (lambda model: model.register_buffer("total", torch.zeros(())), rebinding),
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
    assert snapshot(problem.lower) == before
    for now, then in attributes:
        assert now.keys() == then.keys()
        assert all(now[name] is value for name, value in then.items())


def scaling(module, inputs, output):
    return output * module.scale


# The parameter that is missed, the change, and what a pass computes from the input first.
MISSED = {
    "old weight norm": ("first.weight_g", lambda model: old.weight_norm(model.first)),
    "old weight norm, run": ("first.weight_g", lambda model: [old.weight_norm(model.first), run(model)]),
    "old weight norm, trained": ("first.weight_g", lambda model: [old.weight_norm(model.first), trained(model)]),
    "old spectral norm": ("first.weight_orig", lambda model: [old.spectral_norm(model.first), run(model)]),
    "list": ("first.weight", holding(held=lambda model: [model.first.weight]), lambda model, x: x @ model.held[0]),
    "tuple": ("first.weight", holding(held=lambda model: (model.first,)), lambda model, x: model.held[0](x)),
    "bound method": ("first.weight", holding(held=lambda model: model.first.forward), lambda model, x: model.held(x)),
    "hook": ("first.scale", lambda model: [add(model.first, "scale"), model.first.register_forward_hook(scaling)]),
    "cache": ("scale", lambda model: add(model, "scale"), kept),
    "frozen when it was wrapped": ("first.weight", lambda model: model.first.requires_grad_(False)),
}


@of_each_method
@pytest.mark.parametrize(("name", "arguments"), [(name, rest) for name, *rest in MISSED.values()], ids=MISSED)
def test_parameters_that_the_auxiliary_model_does_not_exchange(name, arguments, method):
    problem = layers_problem(*arguments)
    is_trained = all(weight.requires_grad for weight in problem.lower.parameters())
    auxiliary = problem.virtual_step() if is_trained else wrapped(problem.lower)
    problem.lower.requires_grad_(True)
    before = snapshot(problem.lower)
    with pytest.raises(ValueError, match=rf"^the upper objective depends on the lower model's parameter {name}[ ,]"):
        problem.call(problem.make(method), auxiliary)
    assert problem.upper.first.grad is None
    assert snapshot(problem.lower) == before


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


def test_a_parameter_that_the_first_pass_registers():
    def late(model, x):
        if not hasattr(model, "late"):
            add(model, "late")
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


@of_each_method
def test_an_auxiliary_model_may_have_the_parameters_themselves(method):
    problem = layers_problem()
    auxiliary = wrapped(problem.lower)
    expected = problem.hypergradient(method, auxiliary)
    auxiliary.update_params(list(problem.lower.parameters()))
    assert torch.equal(problem.hypergradient(method, auxiliary), expected)


def test_a_layer_for_one_objective_alone():
    """Old weight norm does no harm where only the lower objective sees it."""
    problem = layers_problem(holding(head=lambda model: old.weight_norm(nn.Linear(3, 1))))
    run(problem.lower.head)
    of_both = problem.objective

    def objective(state):
        if state.data is not problem.train[0]:
            return of_both(state)
        return of_both(state) * state.lower_model.head(state.data * state.upper_model()[2:]).mean()

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


@of_each_method
@pytest.mark.parametrize("upper", [nn.Identity(), Vector().requires_grad_(False)], ids=["empty", "frozen"])
def test_no_upper_parameters(method, upper):
    problem = quadratic_problem()
    with pytest.raises(ValueError, match=r"^the upper model has no parameter that requires gradients\.$"):
        problem.call(problem.make(method, upper_model=upper))


COUNTS_TWICE = "tracks higher gradients, so the second term would count twice: wrap the lower model, and take the step"
NO_WRAPPING = "is not a wrapping of the lower model (parameters:"
AUXILIARY_MODELS = [
    (lambda problem: problem.lower, "is a Vector, not the lower model wrapped by higher.monkeypatch."),
    (lambda problem: wrapped(problem.lower, track_higher_grads=True), COUNTS_TWICE),
    (lambda problem: problem.virtual_step(track_higher_grads=True), COUNTS_TWICE),
    (lambda problem: wrapped(Vector(3, 2)), f"{NO_WRAPPING} 2 against 2, or other shapes: first, second)."),
    (lambda problem: wrapped(nn.Linear(2, 3, bias=False)), f"{NO_WRAPPING} 1 against 2, or other shapes: first, sec"),
]


@of_each_method
@pytest.mark.parametrize(("make", "sentence"), AUXILIARY_MODELS)
def test_wrong_auxiliary_model(make, sentence, method):
    problem = quadratic_problem()
    with pytest.raises(ValueError, match=f"^the auxiliary model {re.escape(sentence)}"):
        problem.call(problem.make(method), make(problem))
    assert problem.upper.first.grad is None


RESULTS = [
    (lambda loss: loss * torch.ones(3), r"of shape \(3,\)\."),
    (lambda loss: loss[None], r"of shape \(1,\)\."),
    (lambda loss: loss.item(), r"a float\."),
]


@pytest.mark.parametrize("level", ["upper", "lower"])
@pytest.mark.parametrize(("change", "shape"), RESULTS)
def test_an_objective_that_is_no_scalar_tensor(level, change, shape):
    problem = quadratic_problem()
    auxiliary = problem.virtual_step()
    onestage = problem.make(**{f"{level}_objective": lambda state: change(problem.objective(state))})
    sentence = f"^the {level} objective must return a scalar tensor, but its result is {shape}$"
    with pytest.raises(ValueError, match=sentence):
        problem.call(onestage, auxiliary)
    assert problem.upper.first.grad is None


def test_gradient_of_the_upper_objective_that_is_not_finite():
    problem = quadratic_problem()
    onestage = problem.make(upper_objective=lambda state: (0 * state.lower_model().sum()).sqrt())
    sentence = r"^the gradient of the upper objective with respect to w′ has the norm nan\.$"
    with pytest.raises(FloatingPointError, match=sentence):
        problem.call(onestage)
    assert problem.upper.first.grad is None
