"""Images of any format and size in a folder a class, and the cache that spares reading them one by one again."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas import files
from nas.errors import InputError

CACHE_VERSION = 1
MAX_CLASSES = 10_000  # as many as nas.config.TrainedOn reads back


def load(
    data_dir: Path, part: str, image_size: int, choose: Callable[[int], Tensor], skip_bad: bool = False
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (num_images, 3, image_size, image_size), uint8, targets (num_images,), int64, and names of the classes.

    A part that is read whole is kept in `data_dir/.nas-<part>-<image size>.safetensors`, and taken from there as long
    as no file was added, removed or changed (by size and time of change).

    Args:
        part: images are `data_dir/part/<class>/*`, RGB or not, sorted by class and name.
        choose: from the number of files to the indices of those to load; without a cache no other is opened.
        skip_bad: leave out files that cannot be read as images, and say so.

    Raises:
        InputError: a folder is missing or empty, or an image cannot be read; it names the file.
    """
    classes, paths, targets = _list(data_dir, part)
    chosen = choose(len(paths))
    cache = data_dir / f".nas-{part}-{image_size}.safetensors"
    fingerprint = _fingerprint(classes, paths)
    images = _read_cache(cache, fingerprint, (len(paths), 3, image_size, image_size))
    if images is not None:
        images = images[chosen]  # a copy, so that what happens to the file later does not matter
        return images, torch.tensor(targets)[chosen], classes
    whole = len(chosen) == len(paths)
    if whole:
        print(f"Reading {len(paths)} images of {data_dir / part}, and keeping them as {cache}.", flush=True)
    images, bad = _read([paths[index] for index in chosen], image_size, skip_bad)
    if bad:
        good = [index for index in range(len(chosen)) if index not in bad]
        print(f"Left out {len(bad)} of {len(chosen)} files: {', '.join(map(str, list(bad.values())[:5]))}.", flush=True)
        lost = {targets[index] for index in chosen} - {targets[index] for index in chosen[good]}
        if lost:
            raise InputError(
                f"--skip-bad-images: no image is left of the class {data_dir / part / classes[min(lost)]}."
            )
        images, chosen = images[good], chosen[good]
    elif whole:  # with bad files among them they are read anew each time, and named again
        _write_cache(cache, fingerprint, images)
    return images, torch.tensor(targets)[chosen], classes


def _list(data_dir: Path, part: str) -> tuple[tuple[str, ...], list[Path], list[int]]:
    """Names of the classes, and all files with their targets."""
    layout = f"{data_dir}/{part}/CLASS/IMAGE"
    root = data_dir / part
    if not root.is_dir():
        raise InputError(f"--data-dir {data_dir}: there is no folder {root}; images are expected as {layout}.")
    classes = tuple(sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(classes) < 2:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {len(classes)} class folders, but two at least are needed: {layout}."
        )
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {len(classes):,} class folders; {MAX_CLASSES:,} at most are read."
        )
    paths: list[Path] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        with os.scandir(root / name) as entries:
            images = sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
        if not images:
            raise InputError(f"--data-dir {data_dir}: the class {root / name} holds no image; add some or remove it.")
        paths += [root / name / image for image in images]
        targets += [target] * len(images)
    return classes, paths, targets


def _read(paths: list[Path], image_size: int, skip_bad: bool) -> tuple[Tensor, dict[int, Path]]:
    """The images, and by index the files that are none."""
    images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)
    bad: dict[int, Path] = {}
    for index, path in enumerate(paths):
        try:
            images[index] = _read_image(path, image_size)
        except InputError:
            if not skip_bad:
                raise
            bad[index] = path
    return images, bad


def _read_image(path: Path, image_size: int) -> Tensor:
    """RGB, (3, image_size, image_size), uint8: upright, scaled, and cropped about its centre to a square."""
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            square = ImageOps.fit(upright, (image_size, image_size), Image.Resampling.BILINEAR)
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{path}: cannot be read as an image ({error}); remove or replace it, or --skip-bad-images."
        ) from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _fingerprint(classes: tuple[str, ...], paths: list[Path]) -> str:
    """A digest of what the images depend on: their files as the file system knows them, and who decodes them."""
    digest = hashlib.blake2b(repr((CACHE_VERSION, PIL.__version__, classes)).encode(), digest_size=16)
    for path in paths:
        status = path.stat()
        digest.update(repr((path.parts[-2:], status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _checksum(images: Tensor) -> str:
    return hashlib.blake2b(images.numpy().data, digest_size=16).hexdigest()


def _read_cache(path: Path, fingerprint: str, shape: tuple[int, ...]) -> Tensor | None:
    """The images of a cache; None where there is none, or a damaged one, or one of other files."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint or list(file.keys()) != ["images"]:
                return None
            header = file.get_slice("images")
            if (tuple(header.get_shape()), header.get_dtype()) != (shape, "U8"):
                return None
            images = file.get_tensor("images")
    except (SafetensorError, OSError):
        return None
    return images if metadata.get("checksum") == _checksum(images) else None


def _write_cache(path: Path, fingerprint: str, images: Tensor) -> None:
    metadata = {"fingerprint": fingerprint, "checksum": _checksum(images)}
    try:
        files.replace(path, lambda aside: save_file({"images": images}, aside, metadata))
    except (SafetensorError, OSError) as error:
        print(f"{path} cannot be written ({error}): the images will be read one by one again next time.", flush=True)
