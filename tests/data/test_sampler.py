"""Batches as functions of seed, purpose and step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nas.data import sampler


@given(st.integers(4, 3000), st.floats(0.01, 0.99), st.integers(0, 2**32 - 1))
def test_halves_are_disjoint_and_complete(num_images, fraction, seed):
    lower, upper = sampler.halves(num_images, fraction, seed)
    assert sorted([*lower.tolist(), *upper.tolist()]) == list(range(num_images))
    assert abs(len(upper) - fraction * num_images) <= 0.5
    assert torch.equal(sampler.halves(num_images, fraction, seed)[1], upper)


@given(st.integers(2, 700), st.integers(2, 100), st.integers(0, 5), st.integers(0, 3))
def test_each_image_occurs_once_a_pass_and_no_batch_is_tiny(num_images, batch_size, seed, passes):
    count = sampler.num_batches(num_images, batch_size)
    steps = range(passes * count, (passes + 1) * count)
    batches = [sampler.batch(num_images, batch_size, seed, "lower", step) for step in steps]
    assert sorted(torch.cat(batches).tolist()) == list(range(num_images))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1


def series(targets, batch_size, seed=0, purpose="lower", num_steps=None, start=0):
    """Batches of a balanced series."""
    steps = range(start, start + (num_steps or sampler.num_batches(len(targets), batch_size)))
    return [sampler.balanced_batch(targets, batch_size, seed, purpose, step) for step in steps]


@given(st.lists(st.integers(0, 9), min_size=2, max_size=200), st.integers(2, 50), st.integers(0, 5))
def test_balanced_batches_draw_each_class_and_each_of_its_images_alike(labels, batch_size, seed):
    targets = torch.tensor(labels)
    batches = series(targets, batch_size, seed, num_steps=3 * sampler.num_batches(len(labels), batch_size))
    sizes = [len(sampler.batch(len(labels), batch_size, seed, "lower", step)) for step in range(len(batches))]
    assert [len(batch) for batch in batches] == sizes
    drawn = torch.cat(batches).bincount(minlength=len(labels))
    of_classes = [drawn[targets == target] for target in targets.unique()]
    for of_class in of_classes:
        assert of_class.max() - of_class.min() <= 1
    sums = [int(of_class.sum()) for of_class in of_classes]
    assert max(sums) - min(sums) <= 1
    for batch in batches:
        counts = targets[batch].bincount(minlength=10)[targets.unique()]
        assert counts.max() - counts.min() <= 2  # a batch may begin and end within a round


@pytest.mark.parametrize("balanced", [False, True])
def test_batches_are_shuffled_anew_by_pass_seed_and_purpose(balanced):
    targets = torch.arange(100) % 4

    def first_pass(seed=0, purpose="lower", start=0):
        if balanced:
            return torch.cat(series(targets, 10, seed, purpose, start=start))
        return torch.cat([sampler.batch(100, 10, seed, purpose, start + step) for step in range(10)])

    orders = [first_pass(), first_pass(start=10), first_pass(1), first_pass(0, "upper")]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert torch.equal(first_pass(), orders[0])
    assert all(order.tolist() != sorted(order.tolist()) for order in orders)
    assert sorted(orders[0].tolist()) == list(range(100))  # classes of one size: each image once a pass
    if balanced:
        rounds = {tuple(targets[order][4 * turn : 4 * turn + 4].tolist()) for order in orders for turn in range(25)}
        assert len(rounds) == 24  # all orders of four classes
        assert len({tuple(order[targets[order] == 2].tolist()) for order in orders}) == 4


def test_generators_of_different_keys_differ():
    keys = [("a", 1, 2), ("a", 2, 1), ("a", 12), ("a", 1, "2"), ("b", 1, 2)]
    draws = {torch.rand(1, generator=sampler.generator(*key)).item() for key in keys}
    assert len(draws) == len(keys)
    assert torch.rand(1, generator=sampler.generator("a", 1)) == torch.rand(1, generator=sampler.generator("a", 1))
