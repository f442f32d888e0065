import pytest
import torch

from nas.data.augment import augment, channel_statistics, normalise

MEAN, STD = torch.tensor([0.5]), torch.tensor([0.25])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbered(batch, size):
    """Images in which each pixel says where it came from: 1 + row * size + column, so that 0 is what a crop added."""
    assert size * size < 255
    return (1 + torch.arange(size * size, dtype=torch.uint8)).view(1, 1, size, size).repeat(batch, 1, 1, 1)


def pixels(images):
    return ((images * STD + MEAN) * 255).round().long()


def test_each_image_is_a_shifted_mirrored_or_plain_copy_by_its_own_draw():
    size, batch = 15, 400
    out = pixels(augment(numbered(batch, size), MEAN, STD, generator(), flip=True))
    padded = torch.nn.functional.pad(numbered(1, size)[0, 0].long(), (1,) * 4)
    expected = {}
    for row in range(3):
        for column in range(3):
            crop = padded[row : row + size, column : column + size]
            expected[row, column, False], expected[row, column, True] = crop, crop.flip(1)
    counts = dict.fromkeys(expected, 0)
    for image in out[:, 0]:
        counts[next(key for key, crop in expected.items() if torch.equal(image, crop))] += 1
    # 18 equally likely outcomes of 400 draws: 22 each on average.
    assert min(counts.values()) >= 8
    assert max(counts.values()) <= 42


def test_without_flip_nothing_is_mirrored():
    out = pixels(augment(numbered(100, 8), MEAN, STD, generator(), flip=False))
    rows = out[:, 0, 3, 2:6]
    assert (rows.diff(dim=1) == 1).all()


def test_a_crop_of_cifar_moves_by_four_pixels_at_most():
    images = torch.full((500, 3, 32, 32), 255, dtype=torch.uint8)
    mean, std = torch.zeros(3), torch.ones(3)
    out = augment(images, mean, std, generator(), flip=True)
    black = (out[:, 0] == 0).float()
    rows, columns = black.mean(2).eq(1).sum(1), black.mean(1).eq(1).sum(1)
    assert rows.max() == columns.max() == 4
    assert set(rows.tolist()) == set(range(5))
    assert torch.equal(out[:, 0], out[:, 2])


@pytest.mark.parametrize(("given", "shift"), [(None, 1), (0, 0), (3, 3), (7, 7)])
def test_a_crop_moves_by_the_padding_at_most(given, shift):
    out = pixels(augment(numbered(3000, 15), MEAN, STD, generator(), flip=False, crop_padding=given))
    moved = out[:, 0, 7, 7] - numbered(1, 15)[0, 0, 7, 7].long()
    found = {divmod(move + 7 * 16, 15) for move in moved.tolist()}
    assert found == {(7 + row, 7 + column) for row in range(-shift, shift + 1) for column in range(-shift, shift + 1)}


def test_cutout_is_a_square_clipped_at_the_border_with_its_centre_anywhere():
    images = torch.full((2000, 1, 8, 8), 255, dtype=torch.uint8)
    # Without a crop: images of fewer than 8 pixels would have none, so this counts hidden pixels as exact zeros.
    out = augment(images, torch.tensor([0.3]), STD, generator(), flip=False, cutout=4)
    hidden = out[:, 0] == 0
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.sum((1, 2)), rows * columns)
    assert set(rows.tolist()) == {2, 3, 4}
    assert set(columns.tolist()) == {2, 3, 4}
    assert (rows == 4).float().mean().sub(5 / 8).abs() < 0.05
    assert not torch.equal(rows, columns)


def test_no_cutout_by_default():
    images = torch.full((50, 1, 8, 8), 255, dtype=torch.uint8)
    assert (augment(images, torch.tensor([0.3]), STD, generator(), flip=False) != 0).all()


def test_the_draw_is_a_function_of_the_generator():
    images = torch.randint(256, (16, 3, 32, 32), generator=generator(), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    first, again, other = (augment(images, mean, std, generator(seed), True, 16) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32
    assert first.is_contiguous(memory_format=torch.channels_last)


def test_normalised_pixels_have_mean_0_and_deviation_1():
    images = torch.randint(256, (64, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    mean, std = channel_statistics(images)
    scaled = images.double() / 255
    torch.testing.assert_close(mean.double(), scaled.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(std.double(), scaled.std((0, 2, 3), correction=0), rtol=1e-5, atol=0)
    out = normalise(images, mean, std)
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(out.std((0, 2, 3), correction=0), torch.ones(3), rtol=1e-5, atol=0)


def test_a_channel_without_contrast_does_not_divide_by_zero():
    images = torch.full((4, 1, 8, 8), 7, dtype=torch.uint8)
    assert torch.equal(normalise(images, *channel_statistics(images)), torch.zeros(4, 1, 8, 8))
