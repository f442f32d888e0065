"""Images of any format and size in one folder per class, and the cache that spares reading them one by one again."""

import functools
import hashlib
import os
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
from nas.errors import InputError, Stopped, printable
from nas.machine.memory import half_of_memory

CACHE_VERSION = 3
MAX_CLASSES = 10_000  # as many as nas.config.TrainedOn reads back
# Half of the memory, as the two levels of a search have copies of their halves.
MAX_BYTES = half_of_memory()

# How an image becomes a square. What `pad` adds is black, as what a shifted crop adds in training.
RESIZE = {"crop": ImageOps.fit, "squeeze": Image.Image.resize, "pad": ImageOps.pad}
SQUARE_ENOUGH = 0.9  # of an image: where the crop keeps this share of each, there is no word about it
BITS = (8, 10, 12, 14, 16)  # in which scanners and cameras count
# In place of the largest value of a grey image of 16 bits: what other images are.
PLAIN, COLOUR_OF_16_BITS = -1, -2

# Names of folders, in any case of their letters.
NAMES = {"train": ("train", "training"), "test": ("test", "testing"), "validation": ("val", "valid", "validation")}
# What systems and servers leave in folders, beside all that is hidden.
LITTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "@eadir", "#recycle", "lost+found", "__pycache__"),
}
WITHOUT_TEST = (
    "--skip-test --holdout-fraction 0.1 measures on held-out training images, and --test-fraction 0.2, given to "
    "search.py as well, holds back a test set"
)


class Loaded(NamedTuple):
    """The images of a part.

    Attributes:
        images: (num_images, 3, image_size, image_size), uint8.
        targets: (num_images,), int64.
        classes: their names.
        bits: range of the grey images of 16 bits: their values up to 2 ** bits - 1 become 0 to 255.
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
        images: (num_images, 3, size, size), uint8; of a grey image of 16 bits the lower byte, the upper one, and 0.
        about: (num_images, 3), int32: rows and columns of the file, and its largest value if it is grey and of 16 bits,
            else `PLAIN` or `COLOUR_OF_16_BITS`.
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

    A part that is read whole is kept in `data_dir/.nas-<part>-<image size>.safetensors`, or one with `-squeeze` or
    `-pad`, and taken from there as long as no file was added, removed or changed (by size and time of change).

    Args:
        part: "train" or "test". Images are `data_dir/train/<class>/**`, or `Training` and the like, sorted by class and
            path. Grey ones get three channels that are the same, so that all have one shape; what is transparent
            becomes white; of an animation the first picture is taken. Litter is left out, and so are files without the
            suffix of an image, unless a class has none with one.
        choose: from the number of files to the indices of those to load; without a cache no other is opened.
        skip_bad: leave out files that cannot be read as images.
        resize: crop, about the centre; squeeze, which changes proportions; or pad, with black.
        test_fraction: this share of each class is the test set, drawn by the names of the files alone, so that it is
            the same whatever the seed, and nearly the same after images were added. There is no test folder then, and
            `data_dir/<class>/**` are read where there is no training folder either.
        bits: range of the grey images of 16 bits, where the training images have told it; None to take it from the
            largest value of these.

    Raises:
        InputError: a folder is missing, empty or ambiguous, or an image cannot be read, or they do not fit into half of
            the memory; it names folder, file or flag.
    """
    try:
        root, notes = _find(data_dir, part, test_fraction)
        classes, paths, targets, left_out = _list(data_dir, root)
        if test_fraction:
            held_back = _held_back(root, paths, targets, test_fraction)
            if not held_back:
                raise InputError(f"--test-fraction {test_fraction}: no class in {root} has the two images it takes.")
            if part == "train":
                notes.append(
                    f"{len(held_back):,} of {len(paths):,} images are held back as the test set "
                    f"(--test-fraction {test_fraction}; the same ones whatever the seed)"
                )
            mine = [index for index in range(len(paths)) if (index in held_back) == (part == "test")]
            paths, targets = [paths[index] for index in mine], [targets[index] for index in mine]
        fingerprint = _fingerprint(data_dir, classes, paths, resize)
    except OSError as error:
        where = printable(error.filename, 1000)
        raise InputError(f"--data-dir {data_dir}: {where} cannot be read ({error.strerror}).") from None
    notes += left_out
    chosen = choose(len(paths))
    num_bytes = 3 * image_size**2 * len(chosen)
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"--image-size {image_size}: {len(chosen):,} images of this size take {num_bytes / 2**30:,.1f} GiB, but "
            f"{MAX_BYTES / 2**30:,.1f} GiB can be held here; give a smaller size, or fewer images."
        )
    mode = "" if resize == "crop" else f"-{resize}"
    cache = data_dir / f".nas-{part}-{image_size}{mode}.safetensors"
    decoded = _read_cache(cache, fingerprint, (len(paths), 3, image_size, image_size))
    if decoded is not None:
        decoded = decoded.select(chosen)  # a copy, so that what happens to the file later does not matter
    else:
        whole = len(chosen) == len(paths)
        if whole:
            print(f"Reading {len(paths)} images of {root}, and keeping them as {cache}.", flush=True)
        decoded, bad = _read([paths[index] for index in chosen], image_size, resize, skip_bad)
        if bad:
            good = torch.tensor([index for index in range(len(chosen)) if index not in bad], dtype=torch.int64)
            notes.append(f"left out {len(bad)} of {len(chosen)} files: {_first_five(list(bad.values()))}")
            lost = {targets[index] for index in chosen} - {targets[index] for index in chosen[good]}
            if lost:
                raise InputError(f"--skip-bad-images: no image is left of the class {root / classes[min(lost)]}.")
            decoded, chosen = decoded.select(good), chosen[good]
        elif whole:  # with bad files among them they are read anew each time, and named again
            _write_cache(cache, fingerprint, decoded)
    if part == "train" and resize == "crop":
        notes += _lost_by_cropping(decoded.about[:, :2])
    images, bits, lines = _to_8_bits(decoded, bits)
    return Loaded(images, torch.tensor(targets)[chosen], classes, bits, (*notes, *lines))


def _find(data_dir: Path, part: str, test_fraction: float) -> tuple[Path, list[str]]:
    """The folder of the class folders of a part, and, with the training part, which folder serves as what."""
    folders = _class_folders(data_dir) if os.path.isdir(data_dir) else []  # Path.is_dir raises at a name too long
    train, named_test, validation = (
        [folder for folder in folders if folder.name.lower() in names] for names in NAMES.values()
    )
    with_classes = [[folder for folder in found if _class_folders(folder)] for found in (named_test, validation)]
    test = with_classes[0] or with_classes[1]
    for serve_as, found in (("training", train), ("test", test)):
        if len(found) > 1:
            names = " and ".join(folder.name for folder in found)
            raise InputError(
                f"--data-dir {data_dir}: {names} might each be the {serve_as} images; keep one of them there."
            )
    if test and test_fraction:
        raise InputError(f"--test-fraction {test_fraction}: {test[0]} is the test set already; leave the flag out.")
    if not train and (named_test if test_fraction else part == "train" or not test):
        raise InputError(
            f"--data-dir {data_dir}: there is no folder {data_dir / 'train'}; images are expected as "
            f"{data_dir}/train/CLASS/IMAGE and {data_dir}/test/CLASS/IMAGE. For {data_dir}/CLASS/IMAGE alone, "
            "--test-fraction 0.2 holds back a fifth of each class as the test set."
        )
    root = train[0] if train else data_dir
    if test_fraction:
        return root, []
    lacking = f"{named_test[0]} holds no class folders" if named_test else f"there is no folder {data_dir / 'test'}"
    if part == "test":
        if not test:
            raise InputError(
                f"--data-dir {data_dir}: {lacking}, so that no test accuracy can be measured; {WITHOUT_TEST}."
            )
        return test[0], []
    notes = []
    if not test:
        notes.append(f"{lacking}, so that train_final.py cannot measure a test accuracy: {WITHOUT_TEST}")
    elif (root.name, test[0].name) != ("train", "test"):
        notes.append(f"{root} holds the training images, and {test[0]} serves as the test set")
    notes += [f"{folder} is not used" for folder in (*named_test, *validation) if test and folder not in test]
    return root, notes


def _class_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if not _is_litter(path.name) and path.is_dir())


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _list(data_dir: Path, root: Path) -> tuple[tuple[str, ...], list[Path], list[int], list[str]]:
    """Names of the classes, all files with their targets, and lines on what is left out."""
    beside = sorted(path for path in root.iterdir() if not path.name.startswith((".nas-", "..nas-")))  # caches
    broken = [path for path in beside if not _is_litter(path.name) and path.is_symlink() and not path.exists()]
    if broken:
        raise InputError(
            f"--data-dir {data_dir}: {printable(broken[0], 1000)} is a link to what is not there; mend or remove it."
        )
    folders = _class_folders(root)
    if len(folders) < 2:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {len(folders)} class folder{'s' * (len(folders) != 1)}, but two at "
            f"least are needed: {root}/CLASS/IMAGE."
        )
    if len(folders) > MAX_CLASSES:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {len(folders):,} class folders; {MAX_CLASSES:,} at most are read."
        )
    left_out = sorted({*beside} - {*folders})
    paths: list[Path] = []
    targets: list[int] = []
    for target, folder in enumerate(folders):
        if not folder.name.isprintable():
            raise InputError(
                f"--data-dir {data_dir}: the class folder '{printable(folder.name, 300)}' in {root} has a name that "
                "cannot be printed; rename it."
            )
        found, litter = _files_below(folder, (data_dir, root))
        images = [path for path in found if path.suffix.lower() in _image_suffixes()]
        if images:
            litter += [path for path in found if path.suffix.lower() not in _image_suffixes()]
        else:
            images = found  # there are data sets whose files have no suffixes: their content will tell
        if not images:
            raise InputError(f"--data-dir {data_dir}: the class {folder} holds no image; add some or remove it.")
        paths += images
        targets += [target] * len(images)
        left_out += litter
    notes = []
    if left_out:
        names = _first_five([path.relative_to(root) for path in left_out])
        few = "1 entry that is no image" if len(left_out) == 1 else f"{len(left_out):,} entries that are no images"
        notes.append(f"left out of {root}: {few} in a class folder: {names}")
    return tuple(folder.name for folder in folders), paths, targets, notes


def _files_below(folder: Path, above: tuple[Path, ...]) -> tuple[list[Path], list[Path]]:
    """All files at any depth, sorted, and what is litter: so is a link to a folder that is read anyway, or above it."""
    found: list[Path] = []
    litter: list[Path] = []
    seen = {_identity(path) for path in (*above, folder)}
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        with os.scandir(parent) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                path = parent / entry.name
                if _is_litter(entry.name):
                    litter.append(path)
                elif not entry.is_dir():
                    found.append(path)
                elif (identity := _identity(path)) in seen:
                    litter.append(path)
                else:
                    seen.add(identity)
                    waiting.append(path)
    return sorted(found), litter


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


@functools.cache
def _image_suffixes() -> frozenset[str]:
    """Of the formats that Pillow reads, in small letters, each with its dot."""
    Image.preinit()  # else `Image.open` would try the rare formats first from then on
    suffixes = Image.registered_extensions()
    return frozenset(suffix for suffix, format in suffixes.items() if format in Image.OPEN)


def _first_five(paths: list[Path]) -> str:
    return ", ".join(printable(path, 1000) for path in paths[:5]) + ", …" * (len(paths) > 5)


def _held_back(root: Path, paths: list[Path], targets: list[int], fraction: float) -> set[int]:
    """Indices of the test images: this share of each class, but at least one image, and not the only one."""

    def order(index: int) -> bytes:
        return hashlib.blake2b(os.fsencode(paths[index].relative_to(root).as_posix())).digest()

    classes: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        classes.setdefault(target, []).append(index)
    return {
        index
        for images in classes.values()
        for index in sorted(images, key=order)[: min(max(1, round(fraction * len(images))), len(images) - 1)]
    }


def _read(paths: list[Path], image_size: int, resize: str, skip_bad: bool) -> tuple[_Decoded, dict[int, Path]]:
    """The images, and by index the files that are none."""
    images = torch.empty(len(paths), 3, image_size, image_size, dtype=torch.uint8)
    about = [(1, 1, PLAIN)] * len(paths)
    bad: dict[int, Path] = {}
    for index, path in enumerate(paths):
        try:
            images[index], about[index] = _read_image(path, image_size, resize)
        except InputError:
            if not skip_bad:
                raise
            bad[index] = path
    return _Decoded(images, torch.tensor(about, dtype=torch.int32)), bad


def _read_image(path: Path, image_size: int, resize: str) -> tuple[Tensor, tuple[int, int, int]]:
    """One image of `_Decoded`, and what it says about it."""
    try:
        if not path.is_file():  # to open a pipe would be to wait for whoever writes into it
            raise ValueError("a link to what is not there, or no regular file")
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            upright, largest = _upright(image)
            if resize == "pad" and 2 * image_size * min(upright.size) <= max(upright.size):
                raise ValueError("so oblong that nothing of it would be left in a square")
            square = np.array(RESIZE[resize](upright, (image_size, image_size), Image.Resampling.BILINEAR))
    except Stopped:
        raise
    except Exception as error:  # there are forty decoders, and no end to what a damaged file makes them raise
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "of no known format" if unknown else printable(error, 200) or type(error).__name__
        raise InputError(
            f"{printable(path, 1000)}: cannot be read as an image ({reason}); remove or replace it, or "
            "--skip-bad-images."
        ) from None
    if largest >= 0:
        square = np.stack([square & 255, square >> 8, np.zeros_like(square)], -1).astype(np.uint8)
    return torch.from_numpy(square).permute(2, 0, 1), (upright.height, upright.width, largest)


def _upright(image: Image.Image) -> tuple[Image.Image, int]:
    """RGB, or of 32 bits where the file is grey and of 16; and the third number of `_Decoded.about`."""
    if image.format == "EPS":
        raise ValueError("PostScript is a program, and not run")
    of_16_bits = ";16" in str(getattr(image, "tile", ())[:1])  # as Pillow calls the layout of the file's pixels
    upright = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        values = np.asarray(upright).astype(np.int32)
        return Image.fromarray(values), int(values.max())
    if image.mode in ("I", "F"):
        raise ValueError("signed, or 32 bits per pixel, of which nothing says what is white; 8 and 16 can be read")
    if upright.has_transparency_data:
        clear = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return upright.convert("RGB"), COLOUR_OF_16_BITS if of_16_bits else PLAIN


def _to_8_bits(decoded: _Decoded, bits: int | None) -> tuple[Tensor, int, list[str]]:
    """The images, their range, and lines on it."""
    images, (_, _, largest) = decoded.images, decoded.about.unbind(1)
    grey = (largest >= 0).nonzero().flatten().tolist()
    highest = int(largest.max())
    notes = []
    if grey and bits is None:
        bits = next(bits for bits in BITS if highest < 2**bits)
        notes.append(
            f"{len(grey):,} images are grey with 16 bits per pixel, of which they use {bits}: their largest value is "
            f"{highest:,}, and {2**bits - 1:,} becomes white"
        )
    elif bits is not None and highest >= 2**bits:
        notes.append(
            f"test images have values up to {highest:,}; what is above {2**bits - 1:,}, the range of the training "
            "images, becomes white"
        )
    bits = bits or max(BITS)
    for index in grey:
        lower, upper, _ = images[index].int()
        images[index] = (lower + 256 * upper >> bits - 8).clamp(max=255)
    if num_colour := int((largest == COLOUR_OF_16_BITS).sum()):
        notes.append(
            f"{num_colour:,} images have colours of 16 bits, of which the upper 8 are read: where yours use fewer than "
            "16, save them with 8"
        )
    return images, bits, notes


def _lost_by_cropping(sizes: Tensor) -> list[str]:
    """A line on images that are not nearly square; or none.

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
        loss = f"images differ in shape: the crop keeps {share}the most oblong one ({rows} × {columns})"
        loss += f", {kept.median():.0%} of the median one"
    return [f"{loss}; --resize squeeze or --resize pad keeps all of it"]


def _fingerprint(data_dir: Path, classes: tuple[str, ...], paths: list[Path], resize: str) -> str:
    """A digest of what the images depend on: their files as the file system knows them, and who decodes them."""
    digest = hashlib.blake2b(repr((CACHE_VERSION, PIL.__version__, resize, classes)).encode(), digest_size=16)
    parts_before = len(data_dir.parts)
    for path in paths:
        status = path.stat() if path.exists() else path.lstat()  # of a link to what is not there
        digest.update(repr((path.parts[parts_before:], status.st_size, status.st_mtime_ns)).encode())
    return digest.hexdigest()


def _checksum(decoded: _Decoded) -> str:
    digest = hashlib.blake2b(decoded.images.numpy().data, digest_size=16)
    digest.update(decoded.about.numpy().data)
    return digest.hexdigest()


def _read_cache(path: Path, fingerprint: str, shape: tuple[int, ...]) -> _Decoded | None:
    """The images of a cache; None where there is none, or a damaged one, or one of other files."""
    if not path.is_file():  # to open a pipe would be to wait
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
        print(f"{path} cannot be written ({error}): the images will be read one by one again next time.", flush=True)
