import re
from pathlib import Path

import pytest
import torch

from nas.config.flags import Data
from nas.data import datasets, sampler
from nas.data.augment import normalise
from nas.data.loader import require_images, training_loader
from nas.distributed import World
from nas.errors import InputError


def split(num_images=None):
    found = datasets.load("digits", Path(), "train")
    return found if num_images is None else found.select(torch.arange(num_images))


def loader(given=None, batch_size=32, seed=0, purpose="lower", **data):
    flags = Data(**{"dataset": "digits"} | data)
    return training_loader(given or split(), flags, torch.device("cpu"), batch_size, seed)._replace(purpose=purpose)


def test_a_batch_is_a_function_of_seed_purpose_and_step_and_so_is_the_augmentation_of_an_image():
    first, again = (loader().batch(5) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.classes, again.classes)
    for other in (loader(seed=1).batch(5), loader(purpose="upper").batch(5), loader().batch(6)):
        assert not torch.equal(first.images[:30], other.images[:30])
    one = split(1)
    drawn = [loader(one, purpose=purpose).batch(step).images for purpose in ("lower", "upper") for step in range(8)]
    assert not torch.equal(torch.cat(drawn[:8]), torch.cat(drawn[8:]))
    assert len({tuple(images.flatten().tolist()) for images in drawn[:8]}) > 1


@pytest.mark.parametrize("balanced", [False, True])
def test_a_batch_has_the_images_of_its_indices(balanced):
    numbers = torch.arange(1436, -1, -1)  # the loader of a part has numbers of its own
    images = loader(balanced=balanced).part(numbers, "lower")
    batch = images.batch(5)
    assert torch.equal(batch.classes, split().targets[batch.indices])
    drawn = sampler.balanced_batch(images.split.targets, 32, 0, "lower", 5)
    assert torch.equal(batch.indices, numbers[drawn]) == balanced


@pytest.mark.parametrize(
    ("batch_size", "words"), [(5, r"lower batch: 5 images \((\d+, ){4}\d+\)"), (6, r".*: 6 images \((\d+, ){5}…\)")]
)
def test_a_batch_is_named_by_its_size_and_its_first_five_images(batch_size, words):
    batch = loader(split(30), batch_size).batch(3)
    assert re.fullmatch(words, batch.describe())
    assert re.findall(r"\d+(?=[,)])", batch.describe()) == [str(index) for index in batch.indices[:5].tolist()]


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
    images = torch.zeros(len(targets), 1, 8, 8, dtype=torch.uint8)
    images = loader(datasets.Split(images, targets, tuple("abc"[: len(counts)])), dataset="npz")
    assert images.imbalance() == line
    drawn = [text.replace("--balanced draws each class as often", "each class is drawn as often") for text in line]
    assert images._replace(balanced=True).imbalance() == drawn


def test_digits_are_never_mirrored_and_pictures_are():
    for name, mirrored in {"digits": 0, "svhn": 0, "mnist": 0, "kmnist": 0, "fashion-mnist": 1, "cifar10": 1}.items():
        assert loader(dataset=name).flip == mirrored
    assert not loader(split()._replace(mirror=False), dataset="npz").flip
    assert not loader(dataset="cifar10", no_flip=True).flip


def test_batches_are_augmented_as_the_flags_say():
    images = loader(dataset="npz", no_flip=True, crop_padding=0)
    batch = images.batch(5)
    chosen = images.split.select(batch.indices)
    assert torch.equal(batch.images, normalise(chosen.images, images.mean, images.std))
    with pytest.raises(InputError, match="--crop-padding 5: more than half of the images, which have 8 pixels a side"):
        loader(crop_padding=5)


def test_batches_that_are_too_small_are_refused():
    with pytest.raises(InputError, match=r"--batch-size 2: 5 images make batches of 1, but 2 .* needed; take larger"):
        require_images(2, 5, 2, World(0, 1))
    sentence = "100 images make batches of 5, but 6 at least are needed, shared by 3 processes: start fewer, or take"
    with pytest.raises(InputError, match=sentence):
        require_images(6, 100, 5, World(0, 3))
    require_images(2, 6, 2, World(0, 1))
    require_images(6, 100, 7, World(0, 3))
