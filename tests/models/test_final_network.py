"""The final network: drop path, auxiliary head, batch norms, published cells, image sizes."""

import functools

import pytest
import torch
import torch.nn.functional as F

from benchmarks.final_step import TextbookFinalNetwork, copy_weights
from nas import FinalNetwork, Genotype
from nas.models.final_network import FinalCell, pool_to_2x2

CHANNELS = 4


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network(name="DARTS_V2", num_cells=3, **arguments):
    return FinalNetwork(Genotype.load(name), init_channels=CHANNELS, num_cells=num_cells, **arguments)


def one_node_cell(*edges, reduction=False):
    """A cell of one node, so that its output is the sum of two operations."""
    return FinalCell(edges, (2,), (CHANNELS, CHANNELS), CHANNELS, reduction, False)


def preprocessed(cell, x):
    return cell.preprocess_0(x), cell.preprocess_1(x)


# Drop path


def draw(num_images):
    return functools.partial(torch.rand, num_images, 1, 1, 1, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("probability", [0.2, 0.5])
def test_drop_path_is_per_image_and_keeps_the_expectation(probability):
    batch = 4000
    cell = one_node_cell(("max_pool_3x3", 0), ("avg_pool_3x3", 1))
    x = torch.randn(1, CHANNELS, 6, 6).expand(batch, -1, -1, -1).contiguous()
    output = cell((x, x), probability, draw(batch))
    s0, s1 = preprocessed(cell, x)
    first, second = F.max_pool2d(s0, 3, 1, 1)[0], F.avg_pool2d(s1, 3, 1, 1, count_include_pad=False)[0]

    kept = 1 / (1 - probability)
    outcomes = torch.stack([torch.zeros_like(first), kept * first, kept * second, kept * (first + second)])
    distances = (output[:, None] - outcomes).abs().amax(dim=(2, 3, 4))
    nearest = distances.min(dim=1)
    assert nearest.values.max() < 1e-5
    shares = nearest.indices.bincount(minlength=4) / batch
    p, q = probability, 1 - probability
    torch.testing.assert_close(shares, torch.tensor([p * p, q * p, p * q, q * q]), atol=0.03, rtol=0)
    torch.testing.assert_close(output.mean(dim=0), first + second, atol=0.15, rtol=0)


@pytest.mark.parametrize(("reduction", "dropped"), [(False, False), (True, True)])
def test_drop_path_spares_identity_alone(reduction, dropped):
    """A skip connection of stride 2 is not an identity but a factorised reduction."""
    cell = one_node_cell(("skip_connect", 0), ("skip_connect", 1), reduction=reduction)
    x = torch.randn(64, CHANNELS, 6, 6)
    with_drop_path = cell((x, x), 0.7, draw(64))
    assert torch.equal(with_drop_path, cell((x, x), 0.0, draw(len(x)))) != dropped


def test_drop_path_is_drawn_from_the_generator_in_training_alone():
    images = torch.randn(8, 3, 8, 8)
    final = network(auxiliary=False)
    state = torch.get_rng_state()
    logits = [final(images, 0.3, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert torch.equal(torch.get_rng_state(), state)
    final(images, 0.0, generator := torch.Generator().manual_seed(1))
    final.eval()
    assert torch.equal(final(images, 0.3, generator)[0], final(images)[0])
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(1).get_state())


@pytest.mark.parametrize(("name", "drop_path"), [("DARTS_V1", 0.3), ("DARTS_V2", 0.0)])
def test_same_logits_and_gradients_as_the_textbook_form(name, drop_path):
    final = network(name, num_cells=4).double()
    textbook = TextbookFinalNetwork(Genotype.load(name), CHANNELS, 4).double()
    copy_weights(final, textbook)
    images = torch.randn(4, 3, 8, 8).double()
    logits = [model(images, drop_path, torch.Generator().manual_seed(3)) for model in (final, textbook)]
    gradients = []
    for (main, auxiliary), model in zip(logits, (final, textbook), strict=True):
        loss = (main.square() + 0.4 * auxiliary.square()).sum()
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    for value, reference in zip([*logits[0], *gradients[0]], [*logits[1], *gradients[1]], strict=True):
        assert (value - reference).norm() <= 1e-9 * (1e-6 + reference.norm())


# The auxiliary head


@pytest.mark.parametrize("num_cells", [1, 2, 3, 4, 8])
def test_auxiliary_head_reads_the_second_reduction_cell(num_cells):
    final = network(num_cells=num_cells, num_classes=7)
    outputs, inputs = [], []
    for cell in final.cells:
        cell.register_forward_hook(lambda module, args, output: outputs.append(output))
    final.auxiliary_head.register_forward_hook(lambda module, args, output: inputs.append(args[0]))
    logits, auxiliary_logits = final(torch.randn(2, 3, 8, 8))
    assert logits.shape == auxiliary_logits.shape == (2, 7)
    assert len(inputs) == 1
    assert inputs[0] is outputs[2 * num_cells // 3]
    assert len(outputs) == num_cells
    assert final.eval()(torch.randn(2, 3, 8, 8))[1] is None
    assert len(inputs) == 1


def test_without_an_auxiliary_head():
    final = network(auxiliary=False)
    assert final(torch.randn(2, 3, 8, 8))[1] is None
    assert not [name for name in final.state_dict() if name.startswith("auxiliary")]
    with_head = network().eval()
    missing = with_head.load_state_dict(final.state_dict(), strict=False)
    assert not missing.unexpected_keys
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(with_head(images)[0], final.eval()(images)[0])


def test_auxiliary_head_pools_8_by_8_features_as_published():
    head = network().auxiliary_head.eval()
    x = torch.randn(2, 16 * CHANNELS, 8, 8)
    pooled = F.avg_pool2d(F.relu(x), kernel_size=5, stride=3, padding=0)
    assert pooled.shape[2:] == (2, 2)
    torch.testing.assert_close(head(x), head.classifier(head.features(pooled).flatten(1)))


def test_a_cell_concatenates_the_nodes_of_its_genotype():
    first, second = [("skip_connect", 0), ("skip_connect", 1)], [("skip_connect", 2), ("skip_connect", 1)]
    edges = (*first, *second, ("max_pool_3x3", 3), ("skip_connect", 0))
    cell = FinalCell(edges, (3, 4), (CHANNELS, CHANNELS), CHANNELS, False, False)
    x = torch.randn(2, CHANNELS, 5, 5)
    s0, s1 = preprocessed(cell, x)
    node_2 = s0 + s1
    node_3 = node_2 + s1
    node_4 = F.max_pool2d(node_3, 3, 1, 1) + s0
    assert torch.equal(cell((x, x), 0.0, draw(len(x))), torch.cat([node_3, node_4], dim=1))


@pytest.mark.parametrize("image_size", range(8, 16))
def test_square_images_of_any_size(image_size):
    in_channels = 1 if image_size % 3 else 3
    final = network(("NASNet", "AmoebaNet")[image_size % 2], in_channels=in_channels, num_classes=5)
    logits, auxiliary_logits = final(torch.randn(2, in_channels, image_size, image_size), 0.2)
    assert logits.shape == auxiliary_logits.shape == (2, 5)
    assert logits.isfinite().all()
    assert auxiliary_logits.isfinite().all()
    (logits.sum() + auxiliary_logits.sum()).backward()
    assert all(parameter.grad is not None for parameter in final.parameters())


@pytest.mark.parametrize("size", range(1, 12))
def test_the_pool_of_the_auxiliary_head_is_torchs_adaptive_one(size):
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(pool_to_2x2(x), F.adaptive_avg_pool2d(x, 2))
