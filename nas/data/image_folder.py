"""Images of any format and size in one folder per class, and the cache from which they are read the next time."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas import files
from nas.data.folder_layout import find_part, first_five
from nas.errors import InputError, Stopped, printable
from nas.machine.memory import half_of_memory

CACHE_VERSION = 3
# Half of the memory, because the two levels of a search have copies of their halves.
MAX_BYTES = half_of_memory()

# How an image becomes a square. What `pad` adds is black, as what a shifted crop adds in training.
RESIZE = {"crop": ImageOps.fit, "squeeze": Image.Image.resize, "pad": ImageOps.pad}
SQUARE_ENOUGH = 0.9  # nothing is said if the crop keeps this share of each image
BITS = (8, 10, 12, 14, 16)  # of scanners and cameras, per pixel
# What stands in place of the largest value of a grey image with 16 bits, for other images.
PLAIN, COLOUR_OF_16_BITS = -1, -2


class Loaded(NamedTuple):
    """The images of the training set, or of the test set.

    Attributes:
        images: (num_images, 3, image_size, image_size), uint8.
        targets: (num_images,), int64.
        classes: names of the classes.
        bits: range of the grey images with 16 bits: their values from 0 to 2 ** bits - 1 become 0 to 255.
        notes: lines on what was left out or lost, and on which folder serves as what.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    bits: int
    notes: tuple[str, ...]


class _Decoded(NamedTuple):
    """Images as a cache keeps them, before the range of those with 16 bits is known.

    Attributes:
        images: (num_images, 3, size, size), uint8; for a grey image with 16 bits its lower bytes, upper bytes, and 0.
        about: (num_images, 3), int32: rows and columns of the file, and its largest value if it is grey with 16 bits,
            otherwise `PLAIN` or `COLOUR_OF_16_BITS`.
    """

    images: Tensor
    about: Tensor

    def select(self, indices: Tensor) -> "_Decoded":
        return _Decoded(self.images[indices], self.about[indices])


def load(
    data_dir: Path,
    part: str,
    image_size: int,
    choose: Callable[[int], Tensor],
    skip_bad: bool = False,
    resize: str = "crop",
    test_fraction: float = 0.0,
    bits: int | None = None,
) -> Loaded:
    """Read the training or the test images; no file of the other part is opened.

    If all images of a part are read, they are kept in `data_dir/.nas-<part>-<image size>.safetensors` (with `-squeeze`
    or `-pad` in its name), and read from there until a file is added, removed or changed (by size and time of change).

    Args:
        part: "train" or "test". Images are `data_dir/train/<class>/**`, or `Training` and the like, sorted by class and
            path. Grey images get three equal channels, so that all have one shape; transparent pixels become white;
            the first picture of an animation is taken. Litter is left out, and so are files without the suffix of an
            image, unless a class has no others.
        choose: maps the number of files to the indices of those to load; without a cache no other is opened.
        skip_bad: leave out files that cannot be read as images.
        resize: crop, about the centre; squeeze, which changes proportions; or pad, with black.
        test_fraction: this share of each class is the test set. It is drawn by the names of the files alone, so that
            it does not depend on the seed, and hardly changes when images are added. There must be no test folder; if
            there is no training folder either, `data_dir/<class>/**` are read.
        bits: range of the grey images with 16 bits, as the training images gave it; None to take it from the largest
            value of these images.

    Raises:
        InputError: a folder is missing, empty or ambiguous, an image cannot be read, or the images do not fit into half
            of the memory; the folder, file or flag is named.
    """
    try:
        root, classes, paths, targets, notes = find_part(data_dir, part, test_fraction)
        fingerprint = _fingerprint(data_dir, classes, paths, resize)
    except OSError as error:
        where = printable(error.filename, 1000)
        raise InputError(f"--data-dir {data_dir}: {where} cannot be read ({error.strerror}).") from None
    chosen = choose(len(paths))
    num_bytes = 3 * image_size**2 * len(chosen)
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"--image-size {image_size}: {len(chosen):,} images of this size take {num_bytes / 2**30:,.1f} GiB, but "
            f"this machine can hold {MAX_BYTES / 2**30:,.1f} GiB; choose a smaller size, or fewer images."
        )
    mode = "" if resize == "crop" else f"-{resize}"
    cache = data_dir / f".nas-{part}-{image_size}{mode}.safetensors"
    decoded = _read_cache(cache, fingerprint, (len(paths), 3, image_size, image_size))
    if decoded is not None:
        decoded = decoded.select(chosen)  # a copy, so that the file may change later
    else:
        whole = len(chosen) == len(paths)
        if whole:
            print(f"Reading {len(paths)} images from {root}; the next run reads them from {cache}.", flush=True)
        decoded, bad = _read([paths[index] for index in chosen], image_size, resize, skip_bad)
        if bad:
            good = torch.tensor([index for index in range(len(chosen)) if index not in bad], dtype=torch.int64)
            notes.append(f"left out {len(bad)} of {len(chosen)} files: {first_five(list(bad.values()))}")
            lost = {targets[index] for index in chosen} - {targets[index] for index in chosen[good]}
            if lost:
                raise InputError(f"--skip-bad-images: all images of the class {root / classes[min(lost)]} are bad.")
            decoded, chosen = decoded.select(good), chosen[good]
        elif whole:  # if files are bad all are read again the next time, so that these are named again
            _write_cache(cache, fingerprint, decoded)
    if part == "train" and resize == "crop":
        notes += _lost_by_cropping(decoded.about[:, :2])
    images, bits, lines = _to_8_bits(decoded, bits)
    return Loaded(images, torch.tensor(targets)[chosen], classes, bits, (*notes, *lines))


def read_images(paths: list[Path], image_size: int, resize: str, bits: int) -> Tensor:
    """Return images as `load` makes them of a folder, (images, 3, image_size, image_size), uint8.

    Args:
        paths: image files, one at least.
        resize, bits: as in `load` and `Loaded`.

    Raises:
        InputError: a file is no readable image; it is named.
    """
    try:
        squares, about = zip(*(_read_image(path, image_size, resize) for path in paths), strict=True)
    except InputError as error:
        raise InputError(f"{error}.") from None
    return _to_8_bits(_Decoded(torch.stack(squares), torch.tensor(about)), bits)[0]


def _read(paths: list[Path], image_size: int, resize: str, skip_bad: bool) -> tuple[_Decoded, dict[int, Path]]:
    """Return the images, and the files that are not images by their index."""
    images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)
    about = [(1, 1, PLAIN)] * len(paths)
    bad: dict[int, Path] = {}
    for index, path in enumerate(paths):
        try:
            images[index], about[index] = _read_image(path, image_size, resize)
        except InputError as error:
            if not skip_bad:
                raise InputError(f"{error}; remove or replace it, or add --skip-bad-images.") from None
            bad[index] = path
    return _Decoded(images, torch.tensor(about, dtype=torch.int32)), bad


def _read_image(path: Path, image_size: int, resize: str) -> tuple[Tensor, tuple[int, int, int]]:
    """Return one image of `_Decoded`, and its row of `about`."""
    try:
        if not path.is_file():  # opening a pipe would wait for its writer
            raise ValueError("a broken link, or not a regular file")
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            upright, largest = _upright(image)
            if resize == "pad" and 2 * image_size * min(upright.size) <= max(upright.size):
                raise ValueError("so long and thin that nothing of it would be left in a square")
            square = np.array(RESIZE[resize](upright, (image_size, image_size), Image.Resampling.BILINEAR))
    except Stopped:
        raise
    except Exception as error:  # there are forty decoders, and no end to what a damaged file makes them raise
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if unknown else printable(error, 200) or type(error).__name__
        raise InputError(f"{printable(path, 1000)}: cannot be read as an image ({reason})") from None
    if largest >= 0:
        square = np.stack([square & 255, square >> 8, np.zeros_like(square)], -1).astype(np.uint8)
    return torch.from_numpy(square).permute(2, 0, 1), (upright.height, upright.width, largest)


def _upright(image: Image.Image) -> tuple[Image.Image, int]:
    """Return an upright image, RGB, or with 32 bits if the file is grey with 16; and the last number of its `about`."""
    if image.format == "EPS":
        raise ValueError("PostScript is a program, which is not run")
    of_16_bits = ";16" in str(getattr(image, "tile", ())[:1])  # as Pillow calls the layout of the file's pixels
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(upright).astype(np.int32)
        return Image.fromarray(values), int(values.max())
    if image.mode in ("I", "F"):
        raise ValueError("signed or with 32 bits per pixel, where white is not defined; 8 and 16 bits can be read")
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return upright.convert("RGB"), COLOUR_OF_16_BITS if of_16_bits else PLAIN


def _to_8_bits(decoded: _Decoded, bits: int | None) -> tuple[Tensor, int, list[str]]:
    """Return the images with 8 bits, the range of those that had 16, and lines on it."""
    images, (_, _, largest) = decoded.images, decoded.about.unbind(1)
    grey = (largest >= 0).nonzero().flatten().tolist()
    highest = int(largest.max())
    notes = []
    if grey and bits is None:
        bits = next(bits for bits in BITS if highest < 2**bits)
        notes.append(
            f"{len(grey):,} images are grey with 16 bits per pixel and use {bits} of them: their largest value is "
            f"{highest:,}, and {2**bits - 1:,} becomes white"
        )
    elif bits is not None and highest >= 2**bits:
        notes.append(
            f"test images have values up to {highest:,}; all above {2**bits - 1:,}, the range of the training images, "
            "becomes white"
        )
    bits = bits or max(BITS)
    for index in grey:
        lower, upper, _ = images[index].int()
        images[index] = (lower + 256 * upper >> bits - 8).clamp(max=255)
    if num_colour := int((largest == COLOUR_OF_16_BITS).sum()):
        notes.append(
            f"{num_colour:,} images have colours with 16 bits, of which the upper 8 are read; if yours use fewer than "
            "16 bits, save them with 8"
        )
    return images, bits, notes


def _lost_by_cropping(sizes: Tensor) -> list[str]:
    """Return a line on what the crop loses, if some images are not nearly square.

    Args:
        sizes: (num_images, 2), rows and columns.
    """
    kept = sizes.min(1).values / sizes.max(1).values
    worst = int(kept.argmin())
    if kept[worst] >= SQUARE_ENOUGH:
        return []
    rows, columns = sizes[worst].tolist()
    share = f"{kept[worst]:.0%} of "
    if (sizes == sizes[worst]).all():
        loss = f"{rows} × {columns} images: the crop keeps {share}each"
    else:
        loss = f"images differ in shape: the crop keeps {share}the longest one ({rows} × {columns})"
        loss += f", {kept.median():.0%} of the median one"
    return [f"{loss}; --resize squeeze or --resize pad keeps everything"]


def _fingerprint(data_dir: Path, classes: tuple[str, ...], paths: list[Path], resize: str) -> str:
    """Return a digest of what the images depend on: their files, as the file system knows them, and the decoder."""
    digest = hashlib.blake2b(repr((CACHE_VERSION, PIL.__version__, resize, classes)).encode(), digest_size=16)
    parts_before = len(data_dir.parts)
    for path in paths:
        status = path.stat() if path.exists() else path.lstat()  # a broken link
        digest.update(repr((path.parts[parts_before:], status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _checksum(decoded: _Decoded) -> str:
    digest = hashlib.blake2b(decoded.images.numpy().data, digest_size=16)
    digest.update(decoded.about.numpy().data)
    return digest.hexdigest()


def _read_cache(path: Path, fingerprint: str, shape: tuple[int, ...]) -> _Decoded | None:
    """Return the images of a cache; None if it is missing, damaged, or of other files."""
    if not path.is_file():  # opening a pipe would wait for its writer
        return None
    wanted = {"images": (shape, "U8"), "about": ((shape[0], 3), "I32")}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint or {*file.keys()} != {*wanted}:
                return None
            headers = {name: file.get_slice(name) for name in wanted}
            if any((tuple(headers[name].get_shape()), headers[name].get_dtype()) != wanted[name] for name in wanted):
                return None
            decoded = _Decoded(file.get_tensor("images"), file.get_tensor("about"))
    except (SafetensorError, OSError):
        return None
    sizes, largest = decoded.about[:, :2], decoded.about[:, 2]
    possible = sizes.min() >= 1 and largest.min() >= COLOUR_OF_16_BITS and largest.max() < 2 ** max(BITS)
    return decoded if possible and metadata.get("checksum") == _checksum(decoded) else None


def _write_cache(path: Path, fingerprint: str, decoded: _Decoded) -> None:
    metadata = {"fingerprint": fingerprint, "checksum": _checksum(decoded)}
    try:
        files.replace(path, lambda aside: save_file(decoded._asdict(), aside, metadata))
    except (SafetensorError, OSError) as error:
        print(f"{path} cannot be written ({error}); the next run will read the images one by one again.", flush=True)
