"""The supernet: exact counts, equal to the textbook form and to the single operations, and fit for `higher`."""

import copy
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
from nas.models.operations import EdgeByEdge, PlanarBatchNorm2d
from nas.models.primitives import PRIMITIVES, Primitive
from nas.models.supernet import MixedOperations
from nas.search_space.darts import DARTS


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def equal_to(value, reference, relative_error=1e-10):
    return (value - reference).norm() <= relative_error * reference.norm()


def spread_alphas(num_nodes=4):
    """Alphas far enough from uniform that a permuted edge or primitive would show."""
    alphas = Alphas(num_nodes)
    for parameter in alphas.parameters():
        nn.init.normal_(parameter)
    return alphas


# Counts


@pytest.mark.parametrize(("size", "expected"), [((), 1_930_618), ((1, 5, 5, 7, 3, "imagenet"), 122_504)])
def test_weights_are_those_of_the_search_space(size, expected):
    assert sum(weight.numel() for weight in Supernet(*size).parameters()) == expected


def operations(model, *size):
    network, alphas = model(*size).to("meta"), Alphas(*size[4:]).to("meta")
    with FlopCounterMode(display=False) as counter:
        logits = network(torch.empty(1, size[0], 32, 32, device="meta"), alphas())
    assert logits.shape == (1, 10)
    return counter.get_total_flops()


def test_operations_of_a_forward_pass():
    size = (1, 4, 3, 10, 1)
    assert operations(Supernet, *size) == operations(TextbookSupernet, *size)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Supernet, TextbookSupernet])
def test_operations_of_a_forward_pass_as_published(model):
    assert operations(model, 1) == pytest.approx(0.601e9, rel=5e-3)


def test_alphas_start_small_and_edge_weights_are_a_softmax():
    alphas = Alphas()
    values = torch.cat([alphas.normal, alphas.reduce]).detach()
    assert values.shape == (2 * 14, 8)
    assert values.std().item() == pytest.approx(1e-3, rel=0.2)
    assert values.mean().abs() < 3e-4
    for raw, weights in zip((alphas.normal, alphas.reduce), alphas(), strict=True):
        torch.testing.assert_close(weights, raw.exp() / raw.exp().sum(dim=1, keepdim=True))


# Against the textbook form


def passes(supernet, textbook, alphas, images):
    """Logits and gradients of alphas and weights, of both forms; weights are in the textbook's order."""
    results = []
    for model in (supernet, textbook):
        edge_weights = alphas()
        logits = model(images, edge_weights)
        # With fewer than three cells there is no normal one.
        loss = F.cross_entropy(logits, torch.arange(len(images)) % 7) + 0 * edge_weights.normal.sum()
        results.append([logits, *torch.autograd.grad(loss, [*alphas.parameters(), *model.parameters()])])
    # The gradients of the weights travel the way that the weights did.
    carrier, mapped = copy.deepcopy(supernet), TextbookSupernet(*textbook.arguments)
    for parameter, gradient in zip(carrier.parameters(), results[0][3:], strict=True):
        parameter.data = gradient
    copy_weights(carrier, mapped)
    results[0][3:] = mapped.parameters()
    return results


# in_channels, init_channels, num_cells, num_nodes, image size, stem
SIZES = [(3, 3, 3, 3, 9, "cifar"), (1, 2, 5, 2, 8, "cifar"), (3, 4, 1, 4, 15, "cifar"), (1, 2, 2, 1, 10, "cifar")]


@pytest.mark.usefixtures("float64_and_seed")
@pytest.mark.parametrize("size", [*SIZES, (3, 5, 3, 1, 65, "imagenet")], ids=str)
def test_same_logits_and_gradients_as_the_textbook_form(size):
    """In training, and with the statistics of that in evaluation."""
    in_channels, init_channels, num_cells, num_nodes, image_size, stem = size
    arguments = in_channels, init_channels, num_cells, 7, num_nodes, stem
    supernet, textbook, alphas = Supernet(*arguments), TextbookSupernet(*arguments), spread_alphas(num_nodes)
    copy_weights(supernet, textbook)
    for name, buffer in [*supernet.named_buffers(), *textbook.named_buffers()]:
        if name.endswith("running_var"):
            buffer.fill_(0.05)  # from 1 on, most states behind a ReLU would be 0 for long
    for training in (True, True, False):
        images = torch.randn(4, in_channels, image_size, image_size)
        results = passes(supernet.train(training), textbook.train(training), alphas, images)
        for value, reference in zip(*results, strict=True):
            assert equal_to(value, reference)


@pytest.mark.parametrize(
    ("size", "image_size"), [((3, 4, 3, 10, 2), 16), pytest.param((3, 16, 8, 10, 4), 32, marks=pytest.mark.slow)]
)
def test_a_pass_in_float32_is_the_textbook_form_to_rounding(size, image_size, monkeypatch):
    """Without kinks: at each, rounding alone moves gradients by a thousandth, the textbook form's as well."""
    monkeypatch.setattr(F, "relu", lambda x, inplace=False: F.softplus(x))
    monkeypatch.setattr(F, "relu_", F.softplus)
    monkeypatch.setattr(
        F, "max_pool2d", lambda x, size, stride, padding, *_, **__: F.avg_pool2d(x, size, stride, padding)
    )
    supernet, textbook = Supernet(*size), TextbookSupernet(*size)
    copy_weights(supernet, textbook)
    results = passes(supernet, textbook, Alphas(size[-1]), torch.randn(16, 3, image_size, image_size))
    for part in (slice(1, 3), slice(3, None)):
        value, reference = (torch.cat([gradient.flatten() for gradient in result[part]]) for result in results)
        assert equal_to(value, reference, 1e-5)


def test_the_batch_norms_of_cell_inputs_add_up_in_more_than_float32():
    images = torch.randn(16, 4, 32, 32).contiguous(memory_format=torch.channels_last).requires_grad_()
    factors = torch.randn_like(images)

    def gradient(norm, dtype):
        return torch.autograd.grad((norm(images.to(dtype)) * factors).sum(), images)[0]

    reference = gradient(nn.BatchNorm2d(4, affine=False).double(), torch.float64)
    assert equal_to(gradient(PlanarBatchNorm2d(4, affine=False), torch.float32), reference, 2e-7)


# What makes it quick


def test_far_fewer_operators_than_the_textbook_form():
    batch = (torch.randn(2, 3, 8, 8), torch.randint(10, (2,)))
    models = Supernet(3, 4, 1), TextbookSupernet(3, 4, 1)
    forward, textbook = (count_operators(model, Alphas()(), batch)[0] for model in models)
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
    supernet, alphas = Supernet(3, 4, 3), Alphas()
    with Layouts() as layouts:
        loss = F.cross_entropy(supernet(torch.randn(2, 3, 16, 16), alphas()), torch.tensor([1, 2]))
        torch.autograd.grad(loss, [*alphas.parameters(), *supernet.parameters()])
    assert layouts.slow == set()


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


@pytest.mark.usefixtures("float64_and_seed")
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "primitives",
    [
        DARTS.primitives,
        ("none", "max_pool_3x3", "skip_connect"),
        ("sep_conv_7x7", "none", "conv_7x1_1x7", "nor_conv_3x3"),
        ("mine", "skip_connect", "dil_conv_5x5", "avg_pool_3x3"),
    ],
)
def test_mixed_operations_are_the_weighted_sums_of_single_ones(primitives, stride, monkeypatch):
    """One of them is given by what it does on one edge alone."""

    class Mine(Primitive):
        def on_edge(self, channels, stride, in_supernet=False):
            return nn.Conv2d(channels, channels, 3, stride, padding=1)

    monkeypatch.setitem(PRIMITIVES, "mine", Mine())
    channels, weights = 4, torch.rand(3, len(primitives), requires_grad=True)
    mixed_operations = MixedOperations(channels, 3, stride, dataclasses.replace(DARTS, primitives=primitives))
    x = torch.randn(2, channels, 7, 7).contiguous(memory_format=torch.channels_last).requires_grad_()
    expected = [
        sum(
            weight * single_operation(name, mixed_operations, index, channels, stride)(x)
            for name, weight in zip(primitives, row, strict=True)
        )
        for index, row in enumerate(weights)
    ]
    value = mixed_operations(x, weights)
    torch.testing.assert_close(value, expected)
    factors = torch.randn(3, *expected[0].shape)
    gradients = [torch.autograd.grad((torch.stack(y) * factors).sum(), (x, weights)) for y in (value, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("image_size", [32, 65, 100])
def test_the_stem_of_imagenet_divides_any_size_by_eight_in_both_networks(image_size):
    sizes = []
    images = torch.randn(2, 3, image_size, image_size)
    supernet, alphas = Supernet(3, 2, 3, 4, 1, "imagenet"), Alphas(1)
    final = FinalNetwork(Genotype.load("DARTS_V2"), 3, 2, 3, 4, stem="imagenet")
    for network, arguments in ((supernet, (images, alphas())), (final, (images,))):
        for cell in network.cells:
            cell.register_forward_hook(lambda cell, inputs, output: sizes.append(output.shape[-1]))
        logits = network(*arguments)
        assert (logits if network is supernet else logits[0]).shape == (2, 4)
    assert sizes == 2 * [-(-image_size // 8), -(-image_size // 16), -(-image_size // 32)]


@torch.no_grad()
def test_the_models_share_nothing_and_are_saved_whole():
    alphas, supernet = spread_alphas(2), Supernet(3, 4, 3, num_nodes=2)
    stored = {parameter.data_ptr() for parameter in alphas.parameters()}
    assert not stored & {tensor.data_ptr() for tensor in itertools.chain(supernet.parameters(), supernet.buffers())}
    assert list(alphas.state_dict()) == ["normal", "reduce"]
    supernet(torch.randn(4, 3, 8, 8), alphas())  # moves the running statistics
    images = torch.randn(2, 3, 8, 8)
    restored_alphas, restored = Alphas(2), Supernet(3, 4, 3, num_nodes=2)
    restored_alphas.load_state_dict(alphas.state_dict())
    restored.load_state_dict(supernet.state_dict())
    expected = supernet.eval()(images, alphas())
    assert torch.equal(restored.eval()(images, restored_alphas()), expected)


def test_higher_can_wrap_the_supernet():
    alphas, supernet = spread_alphas(1), Supernet(3, 4, 3, num_nodes=1)
    images = torch.randn(4, 3, 8, 8)
    buffers = {name: buffer.clone() for name, buffer in supernet.named_buffers()}
    wrapped = higher.monkeypatch(supernet, copy_initial_weights=True, track_higher_grads=False)
    logits = wrapped(images, alphas())
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in supernet.named_buffers())
    assert torch.equal(logits, supernet(images, alphas()))
    assert not all(torch.equal(buffer, buffers[name]) for name, buffer in supernet.named_buffers())


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
