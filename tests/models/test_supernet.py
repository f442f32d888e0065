"""The supernet: exact counts, equal to the textbook form and to the single operations, and fit for `higher`."""

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path

import higher
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baseline import TextbookSupernet, copy_weights
from benchmarks.fidelity import fidelity
from benchmarks.search_step import count_operators
from nas import Alphas, FinalNetwork, Genotype, Supernet
from nas.models.batch_norm import StackedNorm
from nas.models.final_network import FinalCell
from nas.models.operations import EdgeByEdge
from nas.models.primitives import PRIMITIVES, Primitive
from nas.models.supernet import Cell, MixedOperations
from nas.search_space.darts import DARTS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


def equal_to(value, reference, relative_error=1e-10):
    return (value - reference).norm() <= relative_error * reference.norm()


def spread_alphas(num_nodes=4):
    """Alphas far enough from uniform that a permuted edge or primitive would show."""
    alphas = Alphas(num_nodes)
    for parameter in alphas.parameters():
        nn.init.normal_(parameter)
    return alphas


# Counts


def weights_by_hand(in_channels, c, num_cells, num_classes, num_nodes, stem):
    """From the description of the search space alone; `width` are the channels of the last two cells' outputs."""
    convolution = 9 * in_channels * 3 * c + 2 * 3 * c  # with its batch norm
    halves = 9 * in_channels * (c // 2) + 2 * (c // 2) + 9 * (c // 2) * c + 2 * c + 9 * c * c + 2 * c
    total, width = (halves, [c, c]) if stem == "imagenet" else (convolution, [3 * c, 3 * c])
    for index in range(num_cells):
        reduction = index in (num_cells // 3, 2 * num_cells // 3)
        c *= 1 + reduction
        separable = 2 * (9 + 25) * c + (9 + 25) * c + 6 * c * c  # sep_conv 3 and 5 twice each, dil_conv 3 and 5 once
        total += sum(width) * c + sum(range(2, 2 + num_nodes)) * separable + reduction * 2 * num_nodes * c * c
        width = [width[1], num_nodes * c]
    return total + width[1] * num_classes + num_classes


@pytest.mark.parametrize(
    "size",
    [
        (3, 16, 8, 10, 4, "cifar"),
        (3, 16, 8, 1000, 4, "imagenet"),
        (1, 5, 5, 7, 3, "imagenet"),
        (1, 2, 2, 3, 1, "cifar"),
    ],
)
def test_weights_are_those_of_the_search_space(size):
    assert count(Supernet(*size)) == count(TextbookSupernet(*size)) == weights_by_hand(*size)


def test_counts():
    assert count(Supernet()) == count(TextbookSupernet()) == 1_930_618
    shapes = {name: tuple(parameter.shape) for name, parameter in Alphas().named_parameters()}
    assert shapes == {"normal": (14, 8), "reduce": (14, 8)}
    assert {len(parameter) for parameter in Alphas(num_nodes=5).parameters()} == {20}


@pytest.mark.parametrize("model", [Supernet, TextbookSupernet])
def test_operations_of_a_forward_pass(model):
    supernet, alphas = model().to("meta"), Alphas().to("meta")
    with FlopCounterMode(display=False) as counter:
        logits = supernet(torch.empty(1, 3, 32, 32, device="meta"), alphas())
    assert logits.shape == (1, 10)
    assert counter.get_total_flops() == pytest.approx(0.601e9, rel=5e-3)


def test_alphas_start_small_and_edge_weights_are_a_softmax():
    alphas = Alphas()
    values = torch.cat([alphas.normal, alphas.reduce]).detach()
    assert values.std().item() == pytest.approx(1e-3, rel=0.2)
    assert values.mean().abs() < 3e-4
    for raw, weights in zip((alphas.normal, alphas.reduce), alphas(), strict=True):
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(14))
        torch.testing.assert_close(weights, raw.exp() / raw.exp().sum(dim=1, keepdim=True))


# Against the textbook form

# in_channels, init_channels, num_cells, num_nodes, image size, stem
SIZES = [
    (3, 4, 8, 4, 15),
    (1, 4, 8, 4, 8),
    (3, 4, 5, 4, 32),
    (1, 3, 3, 5, 9),
    (3, 5, 3, 3, 8),
    (3, 2, 2, 4, 9),
    (1, 4, 1, 4, 15),
    (1, 2, 3, 3, 32),
]
SIZES = [(*size, "cifar") for size in SIZES] + [
    (3, 4, 8, 2, 32, "imagenet"),
    (1, 5, 3, 4, 65, "imagenet"),
    (3, 6, 2, 3, 100, "imagenet"),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("in_channels", "init_channels", "num_cells", "num_nodes", "image_size", "stem"), SIZES)
def test_same_logits_and_gradients_as_the_textbook_form(
    in_channels, init_channels, num_cells, num_nodes, image_size, stem, training
):
    arguments = (in_channels, init_channels, num_cells, 7, num_nodes, stem)
    supernet, textbook, mapped = Supernet(*arguments), TextbookSupernet(*arguments), TextbookSupernet(*arguments)
    copy_weights(supernet, textbook)
    alphas = spread_alphas(num_nodes)
    if not training:
        for model in (supernet, textbook):
            gather_statistics(model, alphas, (4, in_channels, image_size, image_size))
    images, labels = torch.randn(3, in_channels, image_size, image_size), torch.tensor([0, 6, 2])

    logits, gradients = [], []
    for model in (supernet, textbook):
        edge_weights = alphas()
        logits.append(model(images, edge_weights))
        # With fewer than three cells there is no normal one.
        loss = F.cross_entropy(logits[-1], labels) + 0 * edge_weights.normal.sum()
        gradients.append(torch.autograd.grad(loss, [*alphas.parameters(), *model.parameters()]))
    assert equal_to(*logits)
    for value, reference in zip(gradients[0][:2], gradients[1][:2], strict=True):
        assert equal_to(value, reference)

    # The gradients of the weights travel the way that the weights did.
    for parameter, gradient in zip(supernet.parameters(), gradients[0][2:], strict=True):
        parameter.data = gradient
    copy_weights(supernet, mapped)
    for (name, value), reference in zip(mapped.named_parameters(), gradients[1][2:], strict=True):
        assert equal_to(value, reference), name


@torch.no_grad()
def gather_statistics(model, alphas, shape):
    """Running statistics of some passes, the same ones for each model, and from there on evaluation."""
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(0.05)  # from 1 on, most states behind a ReLU would be 0 for long
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        model(torch.randn(shape, generator=generator), alphas())
    model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_through_a_scaled_batch_norm(memory_format, dtype):
    num_edges, channels = 3, 5
    scales = torch.rand(num_edges, dtype=dtype, requires_grad=True)
    x, factor = (
        torch.randn(4, num_edges * channels, 6, 6, dtype=dtype).contiguous(memory_format=memory_format)
        for _ in range(2)
    )
    x.requires_grad_()
    of_channels = scales.repeat_interleave(channels)
    mean, var = x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, correction=0)
    by_hand = of_channels[:, None, None] * (x - mean) / (var + 1e-5).sqrt()
    stacked = StackedNorm(num_edges, channels).to(dtype)(x, of_channels)
    gradients = [torch.autograd.grad((y * factor).sum(), (scales, x), retain_graph=True) for y in (stacked, by_hand)]
    for value, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(value, reference)


def test_a_pass_in_float32_is_the_textbook_form_to_rounding(monkeypatch):
    """Without kinks: at each, rounding alone moves gradients by a thousandth, the textbook form's as well."""
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x))
    monkeypatch.setattr(F, "relu_", F.softplus)
    monkeypatch.setattr(
        F, "max_pool2d", lambda x, size, stride, padding, *_, **__: F.avg_pool2d(x, size, stride, padding)
    )
    supernet, textbook, mapped = Supernet(), TextbookSupernet(), TextbookSupernet()
    copy_weights(supernet, textbook)
    alphas, images, labels = Alphas(), torch.randn(16, 3, 32, 32), torch.randint(10, (16,))
    gradients = [
        torch.autograd.grad(
            F.cross_entropy(model(images, alphas()), labels), [*alphas.parameters(), *model.parameters()]
        )
        for model in (supernet, textbook)
    ]
    for parameter, gradient in zip(supernet.parameters(), gradients[0][2:], strict=True):
        parameter.data = gradient
    copy_weights(supernet, mapped)
    alphas_gradients = [torch.cat(part[:2]) for part in gradients]
    assert equal_to(*alphas_gradients, 1e-5)
    value, reference = (torch.cat([x.flatten() for x in part]) for part in (mapped.parameters(), gradients[1][2:]))
    assert equal_to(value, reference, 1e-5)


# What makes it quick


def test_far_fewer_operators_than_the_textbook_form():
    batch = (torch.randn(2, 3, 8, 8), torch.randint(10, (2,)))
    forward, textbook = (count_operators(model, Alphas()(), batch)[0] for model in (Supernet(), TextbookSupernet()))
    assert forward <= 0.6 * textbook


class Layouts(TorchDispatchMode):
    """Collects the operators on images that meet images of two layouts, or pools that are not in channels_last."""

    def __init__(self):
        super().__init__()
        self.slow = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("native_batch_norm", "native_batch_norm_backward", "max_pool2d_with_indices"):
            images = [x for x in args[:2] if isinstance(x, torch.Tensor) and x.dim() == 4 and min(x.shape[1:]) > 1]
            layouts = [torch.channels_last] + [torch.contiguous_format] * ("batch_norm" in name)
            if not any(all(x.is_contiguous(memory_format=layout) for x in images) for layout in layouts):
                self.slow.add((name, *(tuple(x.shape) for x in images)))
        return func(*args, **(kwargs or {}))


def test_batch_norms_and_pools_see_one_layout():
    """One image in another layout sends all that follows it, or the way back, down code that is ten times slower."""
    supernet, alphas = Supernet(3, 4, 8), Alphas()
    with Layouts() as layouts:
        loss = F.cross_entropy(supernet(torch.randn(2, 3, 32, 32), alphas()), torch.tensor([1, 2]))
        torch.autograd.grad(loss, [*alphas.parameters(), *supernet.parameters()])
    assert layouts.slow == set()


# Against single operations


def single_operation(primitive, mixed_operations, index, channels, stride):
    """The module of one edge, with the weights of this edge in the stacked modules."""
    if primitive == "none":
        return lambda x: torch.zeros_like(x[:, :, ::stride, ::stride])
    operations = mixed_operations.get_submodule(primitive)
    if isinstance(operations, EdgeByEdge):
        return operations[index]
    operation = PRIMITIVES[primitive].on_edge(channels, stride, in_supernet=True)
    for name, stacked in operations.named_parameters():
        operation.get_parameter(f"{name}.weight").data.copy_(stacked[index])
    return operation


ONE_HOT = {primitive: [column] * 14 for column, primitive in enumerate(DARTS.primitives)} | {
    "mixed": [0, 3, 5, 6, 1, 7, 2, 4, 3, 6, 5, 1, 0, 7]
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("reduction", [False, True], ids=["normal", "reduction"])
@pytest.mark.parametrize("columns", ONE_HOT.values(), ids=ONE_HOT)
def test_one_hot_edge_weights_give_single_operations(columns, reduction, size):
    channels = 4
    cell = Cell((6, 5), channels, 4, reduction, after_reduction=False)
    s0, s1 = torch.randn(3, 6, size, size, requires_grad=True), torch.randn(3, 5, size, size)
    value = cell(s0, s1, torch.eye(8)[columns])

    states = [cell.preprocess_0(s0), cell.preprocess_1(s1)]
    next_of_source = [itertools.count() for _ in range(5)]
    incoming = {node: [] for node in range(2, 6)}
    for (source, node), column in zip(DARTS.edges(4), columns, strict=True):
        stride = 2 if reduction and source < 2 else 1
        index = next(next_of_source[source])
        operation = single_operation(DARTS.primitives[column], cell.mixed_operations[source], index, channels, stride)
        incoming[node].append((operation, source))
    for node in range(2, 6):
        states.append(sum(operation(states[source]) for operation, source in incoming[node]))
    expected = torch.cat(states[2:], dim=1)

    half = -(-size // 2) if reduction else size
    assert value.shape == (3, 4 * channels, half, half)
    torch.testing.assert_close(value, expected, rtol=1e-11, atol=1e-12)
    factors = torch.randn_like(value)
    gradients = [torch.autograd.grad((y * factors).sum() + 0 * s0.sum(), s0)[0] for y in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-11)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "primitives",
    [
        ("none", "max_pool_3x3", "skip_connect"),
        ("sep_conv_7x7", "none", "conv_7x1_1x7"),
        ("mine", "skip_connect", "dil_conv_5x5", "avg_pool_3x3"),
    ],
)
def test_mixed_operations_of_other_primitives(primitives, stride, monkeypatch):
    """One of them is given by what it does on one edge alone."""

    class Mine(Primitive):
        def on_edge(self, channels, stride, in_supernet=False):
            return nn.Conv2d(channels, channels, 3, stride, padding=1)

    monkeypatch.setitem(PRIMITIVES, "mine", Mine())
    channels, weights = 4, torch.rand(3, len(primitives))
    mixed_operations = MixedOperations(channels, 3, stride, dataclasses.replace(DARTS, primitives=primitives))
    x = torch.randn(2, channels, 7, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = [
        sum(
            weight * single_operation(name, mixed_operations, index, channels, stride)(x)
            for name, weight in zip(primitives, row, strict=True)
        )
        for index, row in enumerate(weights)
    ]
    torch.testing.assert_close(mixed_operations(x, weights), expected)


def test_another_search_space_is_searched_derived_and_trained():
    space = dataclasses.replace(DARTS, primitives=("none", "skip_connect", "sep_conv_7x7"), edges_kept=1)
    alphas, supernet = Alphas(3, space), Supernet(3, 4, 3, num_nodes=3, space=space)
    assert supernet(torch.randn(2, 3, 8, 8), alphas()).shape == (2, 10)
    cells = {kind: space.derive(weights.tolist()) for kind, weights in alphas()._asdict().items()}
    assert [len(cell) for cell in cells.values()] == [3, 3]
    cell = FinalCell(cells["reduce"], (2, 3, 4), (4, 4), 4, True, False, space)
    assert cell(torch.randn(2, 2, 4, 8, 8), 0.0, None).shape == (2, 12, 4, 4)


# Images of any size


@pytest.mark.parametrize("image_size", range(8, 41))
def test_square_images_of_any_size(image_size):
    for in_channels in (1, 3):
        supernet, alphas = Supernet(in_channels, init_channels=2, num_cells=3, num_nodes=2, num_classes=4), Alphas(2)
        images = torch.randn(2, in_channels, image_size, image_size)
        logits = supernet(images, alphas())
        assert logits.shape == (2, 4)
        assert logits.isfinite().all()
        assert supernet.eval()(images[:1], alphas()).isfinite().all()


@pytest.mark.parametrize("image_size", [32, 65, 100, 224, 225, 256])
def test_the_stem_of_imagenet_divides_any_size_by_eight_in_both_networks(image_size):
    sizes = []
    images = torch.randn(2, 3, image_size, image_size)
    supernet, alphas = Supernet(3, 2, 3, 4, 2, "imagenet"), Alphas(2)
    final = FinalNetwork(Genotype.load("DARTS_V2"), 3, 2, 3, 4, stem="imagenet")
    for network, arguments in ((supernet, (images, alphas())), (final, (images,))):
        for cell in network.cells:
            cell.register_forward_hook(lambda cell, inputs, output: sizes.append(output.shape[-1]))
        logits = network(*arguments)
        logits = logits if network is supernet else logits[0]
        assert logits.shape == (2, 4)
        assert logits.isfinite().all()
    assert sizes == 2 * [-(-image_size // 8), -(-image_size // 16), -(-image_size // 32)]


# The two models


def test_the_models_share_nothing_and_are_saved_whole():
    alphas, supernet = spread_alphas(), Supernet(3, 4, 3)
    stored = {parameter.data_ptr() for parameter in alphas.parameters()}
    assert not stored & {tensor.data_ptr() for tensor in itertools.chain(supernet.parameters(), supernet.buffers())}
    assert list(alphas.state_dict()) == ["normal", "reduce"]
    assert all(isinstance(parameter, nn.Parameter) for parameter in (alphas.normal, alphas.reduce))
    assert set(dict(supernet.named_parameters())) <= set(supernet.state_dict())

    for _ in range(2):  # moves the running statistics
        supernet(torch.randn(4, 3, 8, 8), alphas())
    images = torch.randn(2, 3, 8, 8)
    restored_alphas, restored = Alphas(), Supernet(3, 4, 3)
    restored_alphas.load_state_dict(alphas.state_dict())
    restored.load_state_dict(supernet.state_dict())
    expected = supernet.eval()(images, alphas())
    assert torch.equal(restored.eval()(images, restored_alphas()), expected)
    assert not torch.equal(Supernet(3, 4, 3).eval()(images, alphas()), expected)


def test_every_weight_and_alpha_but_none_gets_a_gradient():
    alphas, supernet = spread_alphas(), Supernet(3, 4, 3)
    weights = alphas()
    for part in weights:
        part.retain_grad()
    supernet(torch.randn(4, 3, 8, 8), weights).square().sum().backward()
    assert all(parameter.grad.any() for parameter in supernet.parameters())
    for part in weights:
        assert part.grad.any(dim=0).tolist() == [False] + 7 * [True]


def test_higher_can_wrap_the_supernet():
    alphas, supernet = spread_alphas(), Supernet(3, 4, 3)
    supernet(torch.randn(4, 3, 8, 8), alphas())
    images = torch.randn(4, 3, 8, 8)
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    wrapped = higher.monkeypatch(supernet, copy_initial_weights=True, track_higher_grads=False)
    logits = wrapped(images, alphas())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in supernet.named_buffers())
    assert torch.equal(logits, supernet(images, alphas()))
    assert not all(torch.equal(buffer, buffers[name]) for name, buffer in supernet.named_buffers())

    wrapped.update_params([torch.zeros_like(weight) for weight in wrapped.parameters()])
    assert not wrapped(images, alphas()).any()
    assert supernet(images, alphas()).any()


# A measurement: a network with kinks is not one to test the arithmetic on


@pytest.mark.slow
def test_fidelity_of_the_second_term(capsys):
    """A measurement: kinks keep the cosine from 1, and a larger step averages over them."""
    size = {"init_channels": 4, "num_cells": 3, "image_size": 16, "batch_size": 8}
    small, large = fidelity(0.001, **size), fidelity(0.1, **size)
    with capsys.disabled():
        print(f"\ncosine of the second term with the exact one: {small:.3f} at r = 0.001, {large:.3f} at r = 0.1")
    assert -1 <= small < large <= 1
    assert large > 0.3


NARROW = """
import torch
from nas.models.operations import FactorizedReduce, StackedFactorizedReduce

for _ in range(200):
    x = torch.randn(4, 2, 8, 8).contiguous(memory_format=torch.channels_last)
    FactorizedReduce(2, 4)(x).sum().backward()
    StackedFactorizedReduce(3, 2)(x, torch.ones(6)).sum().backward()
    torch.randn(9)
"""


def test_narrow_factorised_reductions_write_within_their_memory():
    """With the kernels of a CPU that has AVX2 alone; those of torch 2.15 corrupted the heap, and the process died."""
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", NARROW]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
