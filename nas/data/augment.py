"""Augmentation of a whole batch at once, on its device, each image with its own draw."""

import torch
from torch import Tensor


def augment(
    images: Tensor,
    mean: Tensor,
    std: Tensor,
    generator: torch.Generator,
    flip: bool,
    cutout: int = 0,
    batch_size: int | None = None,
    rows: slice = slice(None),
    crop_padding: int | None = None,
) -> Tensor:
    """Return images after the training transform of DARTS (appendix A.2.1): crop, flip, normalisation, cutout.

    Args:
        images: (batch, channels, size, size), uint8.
        mean, std: (channels,), of pixels in [0, 1].
        generator: on the device of the images.
        flip: whether half of the images, drawn at random, are mirrored.
        cutout: side in pixels of a square, centred anywhere in the image, that is set to the mean
            (DeVries and Taylor, 2017); 0 for none.
        batch_size, rows: if the images are some rows of a batch: its size and these rows. The result is that of the
            same rows in the whole batch.
        crop_padding: pixels by which a crop is shifted at most to each side; by default an eighth of the size, 4 of 32.

    Returns:
        (batch, channels, size, size), float32, channels last in memory. What a shifted crop adds is black.
    """
    batch, _, size, _ = images.shape
    device = images.device
    padding = size // 8 if crop_padding is None else crop_padding

    def draw(stop: int) -> Tensor:
        return torch.randint(stop, (batch_size or batch, 1), generator=generator, device=device)[rows]

    pixels = torch.arange(size, device=device)
    lines = draw(2 * padding + 1) + pixels  # (batch, size), of the padded image
    columns = draw(2 * padding + 1) + (torch.where(draw(2) == 1, pixels.flip(0), pixels) if flip else pixels)
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    index = torch.arange(batch, device=device)[:, None, None]
    cropped = padded[index, :, lines[:, :, None], columns[:, None, :]]  # (batch, size, size, channels)
    out = normalise(cropped.permute(0, 3, 1, 2), mean, std)
    if cutout:
        # Rows and columns [centre - cutout / 2, centre + cutout / 2), as far as they lie inside.
        hidden_rows, hidden_columns = (
            (pixels >= centre - cutout // 2) & (pixels < centre - cutout // 2 + cutout)
            for centre in (draw(size), draw(size))
        )
        out.masked_fill_(hidden_rows[:, None, :, None] & hidden_columns[:, None, None, :], 0.0)
    return out


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return uint8 images as float32, with mean 0 and standard deviation 1 per channel."""
    return (images.float() / 255 - mean[:, None, None]) / std[:, None, None]


def channel_statistics(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, of pixels in [0, 1]; both of shape (channels,), float32.

    They are sums over the 256 values of a pixel, so that no float copy of a data set is made.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.cpu().unbind(1)])
    shares = counts.double() / counts.sum(1, keepdim=True)
    mean = shares @ values
    # A channel without contrast is left as it is.
    std = (shares @ values**2 - mean**2).clamp_min(0).sqrt()
    return mean.float(), torch.where(std > 0, std, 1.0).float()
