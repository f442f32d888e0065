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


@pytest.mark.parametrize(("given", "size", "shift"), [(None, 8, 1), (0, 15, 0), (3, 15, 3), (7, 15, 7)])
def test_a_crop_moves_by_the_padding_at_most(given, size, shift):
    out = pixels(augment(numbered(3000, size), MEAN, STD, generator(), flip=False, crop_padding=given))
    centre, shifts = size // 2, range(-shift, shift + 1)
    moved = out[:, 0, centre, centre] - numbered(1, size)[0, 0, centre, centre].long()
    assert {*moved.tolist()} == {size * row + column for row in shifts for column in shifts}


def test_cutout_is_a_square_clipped_at_the_border_with_its_centre_anywhere():
    images = torch.full((2000, 3, 8, 8), 255, dtype=torch.uint8)
    # Without a crop: images of fewer than 8 pixels would have none, so this counts hidden pixels as exact zeros.
    out = augment(images, torch.tensor([0.3]), STD, generator(), flip=False, cutout=4)
    hidden = (out == 0).all(1)
    assert torch.equal(hidden, (out == 0).any(1))
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    rows, columns = hidden.any(2).sum(1), hidden.any(1).sum(1)
    assert torch.equal(hidden.sum((1, 2)), rows * columns)
    assert set(rows.tolist()) == {2, 3, 4}
    assert set(columns.tolist()) == {2, 3, 4}
    assert (rows == 4).float().mean().sub(5 / 8).abs() < 0.05
    assert not torch.equal(rows, columns)


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
