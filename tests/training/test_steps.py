import contextlib
import copy
import math
import re

import pytest
import torch

from nas.data import datasets
from nas.data.augment import normalise
from nas.distributed import Processes
from nas.errors import InputError
from nas.models.batch_norm import BatchNorm2d, StackedNorm, estimate_anew
from nas.models.final_network import FinalNetwork
from nas.models.supernet import Alphas, Supernet
from nas.search_space.genotype import Genotype
from nas.training.steps import (
    cosine,
    estimate_statistics,
    evaluate,
    images_of_batch,
    imbalance,
    pick_device,
    prepare,
    require_images,
    rollback_if_not_finite,
    scalars_to_host,
)


def test_cosine_begins_at_the_start_and_ends_one_epoch_before_the_end():
    rates = [cosine(epoch, 50, 0.025, 0.001) for epoch in range(50)]
    assert rates[0] == 0.025
    assert rates[25] == pytest.approx(0.013)
    assert 0.001 < rates[-1] < 0.00103
    assert rates == sorted(rates, reverse=True)
    # torch's own schedule is the independent form.
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.025)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, 0.001)
    for rate in rates:
        assert rate == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def digits(part="train"):
    return datasets.load("digits", None, part)


def test_a_batch_is_a_function_of_seed_purpose_and_step():
    images = prepare(digits(), "digits", torch.device("cpu"))
    first, again = images.batch(32, 0, "lower", 5), images.batch(32, 0, "lower", 5)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1].classes, again[1].classes)
    for other in (images.batch(32, 1, "lower", 5), images.batch(32, 0, "upper", 5), images.batch(32, 0, "lower", 6)):
        assert not torch.equal(first[0][:30], other[0][:30])


def test_a_batch_has_the_images_of_its_indices():
    for images in (prepare(digits(), "digits", torch.device("cpu"), balanced=balanced) for balanced in (False, True)):
        chosen = images.indices(32, 0, "lower", 5)
        assert torch.equal(images.batch(32, 0, "lower", 5)[1].classes, images.split.targets[chosen])
        kind = datasets.balanced_batch(images.split.targets, 32, 0, "lower", 5)
        assert torch.equal(chosen, kind) == images.balanced


@pytest.mark.parametrize(
    ("batch_size", "words"), [(5, r"5 images \((\d+, ){4}\d+\)"), (6, r"6 images \((\d+, ){5}…\)")]
)
def test_a_batch_is_named_by_its_size_and_its_first_five_images(batch_size, words):
    images = prepare(digits().select(torch.arange(30)), "digits", torch.device("cpu"))
    named = images_of_batch(1000 + torch.arange(30), images, batch_size, 0, "lower", 3)
    assert re.fullmatch(words, named)
    first = images.indices(batch_size, 0, "lower", 3)[:5]
    assert re.findall(r"\d{4}", named) == [str(1000 + index) for index in first.tolist()]


@pytest.mark.parametrize(
    ("counts", "line"),
    [
        ((4, 6), []),
        ((4, 7, 5), ["classes differ in size: 4 of 'a', 7 of 'b'; --balanced draws each class as often"]),
        ((1000, 3, 0), ["classes differ in size: 0 of 'c', 1,000 of 'a'; --balanced draws each class as often"]),
    ],
)
def test_classes_that_differ_in_size_are_named(counts, line):
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    split = datasets.Split(torch.zeros(len(targets), 1, 8, 8, dtype=torch.uint8), targets, tuple("abc"[: len(counts)]))
    images = prepare(split, "npz", torch.device("cpu"))
    assert imbalance(images) == line
    drawn = [text.replace("--balanced draws each class as often", "each class is drawn as often") for text in line]
    assert imbalance(images._replace(balanced=True)) == drawn


def test_digits_are_never_mirrored_and_pictures_are():
    for name, mirrored in {"digits": 0, "svhn": 0, "mnist": 0, "kmnist": 0, "fashion-mnist": 1, "cifar10": 1}.items():
        assert prepare(digits(), name, torch.device("cpu")).flip == mirrored
    assert not prepare(digits()._replace(mirror=False), "npz", torch.device("cpu")).flip
    assert not prepare(digits(), "cifar10", torch.device("cpu"), no_flip=True).flip


def test_batches_are_augmented_as_the_flags_say():
    images = prepare(digits(), "npz", torch.device("cpu"), no_flip=True, crop_padding=0)
    batch, _ = images.batch(32, 0, "lower", 5)
    chosen = images.split.select(images.indices(32, 0, "lower", 5))
    assert torch.equal(batch, normalise(chosen.images, images.mean, images.std))
    with pytest.raises(InputError, match="--crop-padding 5: more than half of the images, which have 8 pixels a side"):
        prepare(digits(), "digits", torch.device("cpu"), crop_padding=5)


def test_accuracy_and_loss_over_all_images_whatever_the_batches():
    images = prepare(digits("test"), "digits", torch.device("cpu"))
    torch.manual_seed(0)
    predict = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    logits = predict((images.split.images / 255 - images.mean) / images.std)
    loss = torch.nn.functional.cross_entropy(logits, images.split.targets).item()
    accuracy = (logits.argmax(1) == images.split.targets).float().mean().item()
    for batch_size in (7, 360, 1000):
        found = evaluate(predict, images, batch_size)
        assert (found.loss, found.accuracy) == pytest.approx((loss, accuracy), rel=1e-5)
    assert not math.isclose(accuracy, 0)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_step_whose_loss_shows_nothing_is_undone_too(value):
    state = {"weight": torch.ones(3), "num_batches_tracked": torch.tensor(1), "running_var": torch.ones(2)}

    def step():
        with rollback_if_not_finite(state):
            state["weight"].add_(1)
            state["num_batches_tracked"].add_(1)
            state["running_var"][1] = value
            scalars_to_host({"loss": torch.tensor(1.0)}, state)

    with pytest.raises(FloatingPointError, match=r"^running_var is not finite\.$"):
        step()
    assert [tensor.tolist() for tensor in state.values()] == [[1.0] * 3, 1, [1.0] * 2]
    with rollback_if_not_finite(state):
        state["weight"].fill_(1e38)  # whose norm is none that float32 holds
        assert scalars_to_host({"loss": torch.tensor(0.5)}, state) == {"loss": 0.5}
    assert state["weight"].tolist() == torch.full((3,), 1e38).tolist()


class AsIfOneOf(Processes):
    """The process among several that has all images of a batch; the others have none."""

    def rows(self, num_images):
        return slice(0, num_images)

    def mean(self, tensors):
        return [tensor / self.count for tensor in tensors]


def test_counts_are_exact_and_an_accuracy_is_never_above_one():
    split = digits()
    split = split.select(torch.arange(29))  # 29 / 7 * 7 / 29 is more than 1
    images = prepare(split, "digits", torch.device("cpu"), processes=AsIfOneOf(0, 7))
    right = torch.nn.functional.one_hot(split.targets, 10).float()
    found = evaluate(lambda batch: right[: len(batch)], images, 29)
    assert found.accuracy == 1.0
    assert found.num_images.tolist() == found.num_correct.tolist() == split.targets.bincount(minlength=10).tolist()
    assert found.confusion.dtype == torch.int64
    assert found.confusion.diagonal().tolist() == found.num_images.tolist()


def networks():
    """A supernet, and a final network with an auxiliary head, each with what it takes beside images."""
    alphas = Alphas(1)
    yield Supernet(1, 2, 3, 10, 1), (alphas(),)
    yield FinalNetwork(Genotype.load("DARTS_V2"), 1, 2, 3, 10), ()


def copied_with_statistics(network, *arguments):
    measured = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in measured.parameters():
            parameter.zero_()  # a copy may be old
    estimate_statistics(measured, network, *arguments)
    return measured


def tensors_of(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def test_new_statistics_depend_on_the_weights_and_leave_the_network_as_it_is():
    images = prepare(digits(), "digits", torch.device("cpu"))
    for network, more in networks():
        with torch.no_grad():
            for name, buffer in network.named_buffers():
                if name.endswith("running_var"):
                    buffer.fill_(1e6)  # of weights that are long gone
        before = tensors_of(network)
        found = copied_with_statistics(network, images, 48, 0, 7, 1 / 10, lambda: None, *more)
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert network.training
        assert not found.training
        another = copy.deepcopy(network)
        for name, buffer in another.named_buffers():
            if "running" in name:
                buffer.copy_(torch.ones_like(buffer))
        again = copied_with_statistics(another, images, 48, 0, 7, 1 / 10, lambda: None, *more)
        batch = normalise(images.split.images[:9], images.mean, images.std)
        outputs = [network(batch, *more) for network in (found, again)]
        first, second = (output[0] if isinstance(output, tuple) else output for output in outputs)
        assert torch.equal(first, second)
        assert first.std(dim=0).min() > 0  # it does tell images apart


def test_new_statistics_are_those_of_torch_over_the_same_batches():
    images = prepare(digits(), "digits", torch.device("cpu"))
    _, (network, _) = networks()
    expected = copy.deepcopy(network)
    batches = [images.batch(48, 0, "statistics", 7 + number)[0] for number in range(2)]
    torch.optim.swa_utils.update_bn(batches, expected)
    found = copied_with_statistics(network, images, 48, 0, 7, 1 / 12, lambda: None)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    norm = StackedNorm(2, 3)
    xs = [torch.randn(5, 6, 4, 4) for _ in range(3)]
    found = StackedNorm(2, 3)
    estimate_anew(found, norm, [(x,) for x in xs], lambda tensors: None)
    for statistic, of in (("running_mean", torch.mean), ("running_var", torch.var)):
        mean = torch.stack([of(x, dim=(0, 2, 3)) for x in xs]).mean(0).view(2, 3)
        torch.testing.assert_close(getattr(found, statistic), mean)
    assert (norm.momentum, found.momentum) == (0.1, 0.1)


@pytest.mark.parametrize(
    ("num_images", "batch_size", "share", "count", "expected"),
    [
        (719, 96, 0.25, 1, [90]),  # of a search on the digits: an eighth
        (50, 96, 0.25, 1, [13]),  # 16 at least, as equal parts of 50
        (50, 8, 0.25, 1, [8, 7]),
        (8, 64, 0.25, 1, [8]),
        (1437, 48, 1.0, 1, [48] * 29),
        (1437, 24, 0.01, 8, [24] * 5),  # 16 per process
    ],
)
def test_new_statistics_are_of_a_share_of_an_epoch(num_images, batch_size, share, count, expected):
    images = prepare(digits().select(torch.arange(num_images)), "digits", torch.device("cpu"))
    images = images._replace(processes=AsIfOneOf(0, count))
    seen, asked = [], []

    class Network(BatchNorm2d):
        def forward(self, input):
            seen.append(len(input))

    copied_with_statistics(Network(1), images, batch_size, 0, 0, share, lambda: asked.append(1))
    assert len(asked) == len(seen)
    assert seen == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(
    ("needed", "num_images", "batch_size", "count", "sentence"),
    [
        (2, 5, 2, 1, "--batch-size 2: 5 images make batches of 1, but 2 at least are needed; take larger batches."),
        (
            *(6, 100, 5, 3),
            "--batch-size 5: 100 images make batches of 5, but 6 at least are needed, shared by 3 processes: start "
            "fewer, or take larger batches.",
        ),
        (2, 6, 2, 1, None),
        (6, 100, 7, 3, None),
    ],
)
def test_batches_that_are_too_small_are_refused(needed, num_images, batch_size, count, sentence):
    with pytest.raises(InputError) if sentence else contextlib.nullcontext() as error:
        require_images(needed, num_images, batch_size, Processes(0, count))
    assert sentence is None or str(error.value) == sentence


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(InputError, match=f"--device {name}: torch has no such device here"):
            pick_device(name)


def test_processes_of_a_machine_take_a_gpu_each(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second_of_two, third = Processes(3, 4, local_rank=1, local_count=2), Processes(2, 3, local_rank=2, local_count=3)
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("auto", second_of_two) == pick_device("cuda", second_of_two) == torch.device("cuda", 1)
    assert pick_device("cpu", third) == torch.device("cpu")
    for name in ("auto", "cuda"):
        with pytest.raises(InputError, match="process 2 of this machine has no GPU of its own"):
            pick_device(name, third)


def test_several_processes_do_not_take_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    two = Processes(0, 2, local_count=2)
    assert pick_device("auto") == torch.device("mps")
    assert pick_device("auto", two) == torch.device("cpu")
    with pytest.raises(InputError, match="--device mps: torch has no such device for several processes"):
        pick_device("mps", two)
