import copy
import math
from pathlib import Path

import pytest
import torch

from nas.config.flags import Data
from nas.data import datasets
from nas.data.loader import training_loader
from nas.distributed import World
from nas.errors import InputError
from nas.models.batch_norm import BatchNorm2d, StackedNorm, estimate_anew
from nas.models.final_network import FinalNetwork
from nas.search_space.genotype import Genotype
from nas.training.steps import (
    cosine,
    estimate_statistics,
    evaluate,
    pick_device,
    rollback_if_not_finite,
    scalars_to_host,
)


def test_the_learning_rate_follows_the_schedule_of_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.025)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, 0.001)
    for epoch in range(50):
        assert cosine(epoch, 50, 0.025, 0.001) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        scheduler.step()


def digits(num_images=None, batch_size=48, **more):
    split = datasets.load("digits", Path(), "train")
    split = split if num_images is None else split.select(torch.arange(num_images))
    return training_loader(split, Data(dataset="digits"), torch.device("cpu"), batch_size, 0, **more)


def test_accuracy_and_loss_over_all_images_whatever_the_batches():
    images, split = digits(360), digits(360).split
    predict = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    logits = predict((split.images / 255 - images.mean) / images.std)
    loss = torch.nn.functional.cross_entropy(logits, split.targets).item()
    accuracy = (logits.argmax(1) == split.targets).float().mean().item()
    for batch_size in (7, 180, 1000):
        found = evaluate(predict, images._replace(batch_size=batch_size))
        assert (found.loss, found.accuracy) == pytest.approx((loss, accuracy), rel=1e-5)


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


class AsIfOneOf(World):
    """The process among several that has all images of a batch; the others have none."""

    def rows(self, num_images):
        return slice(0, num_images)

    def mean(self, tensors):
        return [tensor / self.size for tensor in tensors]


def test_counts_are_exact_and_an_accuracy_is_never_above_one():
    images = digits(29, world=AsIfOneOf(0, 7))  # 29 / 7 * 7 / 29 is more than 1
    split = images.split
    right = torch.nn.functional.one_hot(split.targets, 10).float()
    found = evaluate(lambda batch: right[: len(batch)], images)
    assert found.accuracy == 1.0
    assert found.num_images.tolist() == found.num_correct.tolist() == split.targets.bincount(minlength=10).tolist()
    assert found.confusion.dtype == torch.int64
    assert found.confusion.diagonal().tolist() == found.num_images.tolist()


def copied_with_statistics(network, *arguments):
    measured = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in measured.parameters():
            parameter.zero_()  # a copy may be old
    estimate_statistics(measured, network, *arguments)
    return measured


def test_new_statistics_are_those_of_torch_over_the_same_batches_and_leave_the_network_as_it_is():
    images, network = digits(), FinalNetwork(Genotype.load("DARTS_V2"), 1, 2, 3, 10)
    for name, buffer in network.named_buffers():
        if name.endswith("running_var"):
            buffer.fill_(1e6)  # of weights that are long gone
    before, expected = copy.deepcopy(network.state_dict()), copy.deepcopy(network)
    batches = [images._replace(purpose="statistics").batch(7 + number).images for number in range(2)]
    torch.optim.swa_utils.update_bn(batches, expected)
    found = copied_with_statistics(network, images, 7, 1 / 12, lambda: None)
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert (network.training, found.training) == (True, False)


def test_new_statistics_of_a_stacked_norm_are_means_over_batches():
    norm, found = StackedNorm(2, 3), StackedNorm(2, 3)
    xs = [torch.randn(5, 6, 4, 4) for _ in range(3)]
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
    images = digits(num_images, batch_size, world=AsIfOneOf(0, count))
    seen, asked = [], []

    class Network(BatchNorm2d):
        def forward(self, input):
            seen.append(len(input))

    copied_with_statistics(Network(1), images, 0, share, lambda: asked.append(1))
    assert len(asked) == len(seen)
    assert seen == pytest.approx(expected, abs=1)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    for name in ("cuda", "mps"):
        with pytest.raises(InputError, match=f"--device {name}: torch has no such device here"):
            pick_device(name)


def test_processes_of_a_machine_take_a_gpu_each_and_not_one_mps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    second_of_two, third = World(3, 4, local_rank=1, local_size=2), World(2, 3, local_rank=2, local_size=3)
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device("auto", second_of_two) == pick_device("cuda", second_of_two) == torch.device("cuda", 1)
    assert pick_device("cpu", third) == torch.device("cpu")
    for name in ("auto", "cuda"):
        with pytest.raises(InputError, match="process 2 of this machine has no GPU of its own"):
            pick_device(name, third)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("mps")
    assert pick_device("auto", third) == torch.device("cpu")
    with pytest.raises(InputError, match="--device mps: torch has no such device for several processes"):
        pick_device("mps", third)
