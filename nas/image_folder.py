"""Images of any format and size in a folder a class, and the cache that spares reading them one by one again."""

import hashlib
import os
import warnings
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
from nas.errors import InputError, Stopped, printable

CACHE_VERSION = 2
MAX_CLASSES = 10_000  # as many as nas.config.TrainedOn reads back
# Half of the memory, as the two levels of a search have copies of their halves.
MAX_BYTES = min(64 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def load(
    data_dir: Path, part: str, image_size: int, choose: Callable[[int], Tensor], skip_bad: bool = False
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images (num_images, 3, image_size, image_size), uint8, targets (num_images,), int64, and names of the classes.

    A part that is read whole is kept in `data_dir/.nas-<part>-<image size>.safetensors`, and taken from there as long
    as no file was added, removed or changed (by size and time of change).

    Args:
        part: images are `data_dir/part/<class>/*`, sorted by class and name. Grey ones get three channels that are
            the same, so that all have one shape; of 16 bits a pixel the upper 8 are taken; what is transparent becomes
            white; of an animation the first picture is taken.
        choose: from the number of files to the indices of those to load; without a cache no other is opened.
        skip_bad: leave out files that cannot be read as images, and say so.

    Raises:
        InputError: a folder is missing or empty, or an image cannot be read, or they do not fit into half of the
            memory; it names folder, file or flag.
    """
    try:
        classes, paths, targets = _list(data_dir, part)
        fingerprint = _fingerprint(classes, paths)
    except OSError as error:
        where = printable(error.filename, 1000)
        raise InputError(f"--data-dir {data_dir}: {where} cannot be read ({error.strerror}).") from None
    chosen = choose(len(paths))
    num_bytes = 3 * image_size**2 * len(chosen)
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"--image-size {image_size}: {len(chosen):,} images of this size take {num_bytes / 2**30:,.1f} GiB, but "
            f"{MAX_BYTES / 2**30:,.1f} GiB can be held here; give a smaller size, or fewer images."
        )
    cache = data_dir / f".nas-{part}-{image_size}.safetensors"
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
        named = ", ".join(printable(path, 1000) for path in list(bad.values())[:5])
        print(f"Left out {len(bad)} of {len(chosen)} files: {named}.", flush=True)
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
    if not os.path.isdir(root):  # as Path.is_dir raises at a name that is too long
        raise InputError(f"--data-dir {data_dir}: there is no folder {root}; images are expected as {layout}.")
    shown = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    broken = [path for path in shown if path.is_symlink() and not path.exists()]
    if broken:
        raise InputError(
            f"--data-dir {data_dir}: {printable(broken[0], 1000)} is a link to what is not there; mend or remove it."
        )
    classes = tuple(path.name for path in shown if path.is_dir())
    if len(classes) < 2:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {len(classes)} class folder{'s' * (len(classes) != 1)}, but two at "
            f"least are needed: {layout}."
        )
    if len(classes) > MAX_CLASSES:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {len(classes):,} class folders; {MAX_CLASSES:,} at most are read."
        )
    paths: list[Path] = []
    targets: list[int] = []
    for target, name in enumerate(classes):
        if not name.isprintable():
            raise InputError(
                f"--data-dir {data_dir}: the class folder '{printable(name, 300)}' in {root} has a name that cannot be "
                "printed; rename it."
            )
        with os.scandir(root / name) as entries:
            images = sorted(entry.name for entry in entries if not entry.is_dir() and not entry.name.startswith("."))
        if not images:
            raise InputError(
                f"--data-dir {data_dir}: the class {root / name} holds no image (folders inside it are not read); add "
                "some or remove it."
            )
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
        if not path.is_file():  # to open a pipe would be to wait for whoever writes into it
            raise ValueError("a link to what is not there, or no regular file")
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            square = ImageOps.fit(_upright_rgb(image), (image_size, image_size), Image.Resampling.BILINEAR)
    except Stopped:
        raise
    except Exception as error:  # there are forty decoders, and no end to what a damaged file makes them raise
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else printable(error, 200) or type(error).__name__
        raise InputError(
            f"{printable(path, 1000)}: cannot be read as an image ({reason}); remove or replace it, or "
            "--skip-bad-images."
        ) from None
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)


def _upright_rgb(image: Image.Image) -> Image.Image:
    if image.format == "EPS":
        raise ValueError("PostScript is a program, and not run")
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))  # Pillow would make nearly all white
    elif image.mode in ("I", "F"):
        raise ValueError("32 bits a pixel, of which nothing says what is white; 8 and 16 can be read")
    elif upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return upright.convert("RGB")


def _fingerprint(classes: tuple[str, ...], paths: list[Path]) -> str:
    """A digest of what the images depend on: their files as the file system knows them, and who decodes them."""
    digest = hashlib.blake2b(repr((CACHE_VERSION, PIL.__version__, classes)).encode(), digest_size=16)
    for path in paths:
        status = path.stat() if path.exists() else path.lstat()  # of a link to what is not there
        digest.update(repr((path.parts[-2:], status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _checksum(images: Tensor) -> str:
    return hashlib.blake2b(images.numpy().data, digest_size=16).hexdigest()


def _read_cache(path: Path, fingerprint: str, shape: tuple[int, ...]) -> Tensor | None:
    """The images of a cache; None where there is none, or a damaged one, or one of other files."""
    if not path.is_file():  # to open a pipe would be to wait
        return None
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
