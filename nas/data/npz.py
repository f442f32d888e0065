"""Images, labels and names of classes in .npz files, which may be hostile: no pickle is opened, no zip bomb unpacked.

This code makes both files from scikit-learn's digits; use your own arrays instead. If `mirror` is left out or True,
half of the images are mirrored, left to right, in training:

    import os
    import numpy as np
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)  # grey, or (N, size, size, 3)
    classes = [f"digit {label}" for label in range(10)]  # or leave them out
    os.makedirs("own", exist_ok=True)
    for part, chosen in {"train": np.arange(1797) % 5 > 0, "test": np.arange(1797) % 5 == 0}.items():
        arrays = {"images": images[chosen], "labels": labels[chosen], "classes": classes}
        np.savez_compressed(f"own/{part}.npz", **arrays, mirror=False)  # a mirrored digit is no digit
"""

import math
import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from nas.data import arrays
from nas.data.folder_layout import WITHOUT_TEST
from nas.errors import InputError, Stopped, printable
from nas.machine.memory import half_of_memory

# Half of the memory, as each array is copied once: images to have their channels first, text to be sorted.
MAX_BYTES = half_of_memory()
MAX_LETTERS = 999  # in a name
MAX_HEADER_BYTES = 1000  # numpy writes 118, and Python parses it
DEFLATE_RATIO = 1032  # no deflated byte stands for more

# How tools name these arrays; the part may come before or after it, as in x_train and test_images.
NAMES = {
    "images": ("images", "image", "x", "data", "arr_0"),
    "labels": ("labels", "label", "y", "targets", "target", "arr_1"),
    "classes": ("classes",),
    "mirror": ("mirror",),
}
DTYPES = {
    "images": ("buif", "numbers"),
    "labels": ("buifUS", f"numbers, or text of up to {MAX_LETTERS} letters"),
    "classes": ("US", f"text of up to {MAX_LETTERS} letters"),
    "mirror": ("b", "True or False"),
}


def load(
    data_dir: Path, part: str, classes: tuple[str, ...] | None = None
) -> tuple[Tensor, Tensor, tuple[str, ...], bool]:
    """Return images (num_images, channels, size, size), uint8, targets (num_images,), int64, class names, and mirror.

    `data_dir/part.npz` holds `images`, (num_images, size, size) or (num_images, size, size, 1 or 3), uint8, with 8 to
    1,024 pixels per side; `labels`, (num_images,), integers from 0 on; and optionally `classes`, (num_classes,), their
    names, and `mirror`, whether a mirrored image is of the same class. Other arrays in it are not read.

    What other tools write is read as well if its meaning is clear, and a printed line says how: arrays as in
    `nas.data.arrays`, under other names (`NAMES`); and one file for all parts, `data_dir` itself or the only .npz file
    in it, with the part in the names.

    Args:
        part: "train" or "test". In "train" each class must have an image.
        classes: names of the classes for a file that has none; by default their numbers.

    Raises:
        InputError: there is no such file, it has another format, or it claims more than it holds or than fits into half
            of the memory; the file and the array are named.
    """
    path = data_dir / f"{part}.npz"
    is_whole = not os.path.isfile(path)  # as Path.is_file raises at a name that is too long
    if is_whole:
        files = only_file(data_dir)
        if not files:
            raise InputError(
                f"--data-dir {data_dir}: there is no file {path}; expected are train.npz and test.npz, as "
                "numpy.savez_compressed writes them, or one .npz file with x_train, y_train, x_test and y_test."
                + _without_test(part)
            )
        path = files[0]
    names, found = _read(path, part, is_whole)
    where = {role: f"{path}: {name}" for role, name in names.items()}
    images, how = arrays.images(where["images"], found["images"])
    if "classes" in found:
        classes = arrays.texts(where["classes"], found["classes"])
    targets, classes, how_labels = arrays.targets(where["labels"], found["labels"], classes, part == "train")
    is_other = how or how_labels or any(role != name for role, name in names.items())
    if is_other and os.environ.get("LOCAL_RANK", "0") == "0":  # one of torchrun's processes prints it
        kinds = {role: f"{names[role]}, {array.dtype.name} {array.shape}" for role, array in found.items()}
        said = f"{kinds['images']}, read as images{how}; {kinds['labels']}, read as labels{how_labels}"
        print(f"{path}: {said}.", flush=True)
    return images, targets, classes, bool(found.get("mirror", True))


def only_file(data_dir: Path) -> list[Path]:
    """Return the file that may hold all parts: `data_dir` itself, or the only .npz file in it; else nothing."""
    found = [*data_dir.glob("*.npz")] if os.path.isdir(data_dir) else [data_dir]
    return found if len(found) == 1 and os.path.isfile(found[0]) else []


def _without_test(part: str) -> str:
    return f" If there is no test set, {WITHOUT_TEST}." if part == "test" else ""


def _read(path: Path, part: str, is_whole: bool) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the names of the arrays by their roles, and the arrays, whose dtypes and shapes are checked."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        with file:
            if file.read(2) != b"PK":  # numpy would read a lone array, whatever its size
                raise zipfile.BadZipFile
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                names = _find_names(path, part, is_whole, archive.zip.namelist())
                _check_claims(path, names, archive.zip)
                return names, {role: archive[f"{name}.npy"] for role, name in names.items()}
    except (InputError, Stopped):
        raise
    except Exception:  # whatever zipfile, zlib and numpy raise at a damaged file
        raise InputError(f"{path}: not an .npz file, or a damaged one; write it with numpy.savez_compressed.") from None


def _find_names(path: Path, part: str, is_whole: bool, members: list[str]) -> dict[str, str]:
    """Return the names of the arrays in the file by their roles; images is preferred to x, and so on."""
    there = {member.removesuffix(".npy") for member in members if member.endswith(".npy")}
    names = {}
    for role, words in NAMES.items():
        known = {form for word in words for form in (f"{word}_{part}", f"{part}_{word}")}
        if not is_whole or role in ("classes", "mirror"):  # which may hold for all parts
            known.update(words)
        found = [role] if role in there & known else sorted(name for name in there if name.lower() in known)
        if len(found) > 1:
            raise InputError(f"{path}: {' and '.join(found)} may each be the {role}; keep only one of them.")
        if not found and role in ("images", "labels"):
            letter = {"images": "x", "labels": "y"}[role]
            missing = f"{part}_{role} or {letter}_{part}, and no file {part}.npz beside it" if is_whole else role
            needed = "images and labels are needed." + (_without_test(part) if is_whole else "")
            raise InputError(f"{path}: there is no array {missing}; {needed}")
        if found:
            names[role] = found[0]
    return names


def _check_claims(path: Path, names: dict[str, str], archive: zipfile.ZipFile) -> None:
    """Check what the headers and the zip directory say of the arrays, before one of them is unpacked."""
    num_images = total = 0
    for role, name in names.items():
        info = archive.getinfo(f"{name}.npy")
        with warnings.catch_warnings(action="ignore"), archive.open(info) as member:
            try:
                # Version 1, whose header has at most 64 KiB: numpy writes others only for tables.
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError
                shape, _, dtype = np.lib.format.read_array_header_1_0(member, MAX_HEADER_BYTES)
            except (Stopped, zipfile.BadZipFile, zlib.error):
                raise
            except Exception:  # whatever Python's parser and numpy raise at a text that is no header
                raise InputError(f"{path}: {name}: not a plain array of numpy.") from None
            start = member.tell()
        kinds, wanted = DTYPES[role]
        if dtype.kind not in kinds or not 0 < dtype.itemsize <= 4 * MAX_LETTERS:
            raise InputError(f"{path}: {name}: of dtype '{printable(dtype.str, 60)}', but must be {wanted}.")
        if wanted := arrays.wanted_shape(role, shape, num_images):
            raise InputError(f"{path}: {name}: of shape {printable(shape, 100)}, but must be {wanted}.")
        num_images = num_images or shape[0]
        num_bytes = math.prod(shape) * dtype.itemsize
        total += num_bytes
        if total > MAX_BYTES:
            raise InputError(
                f"{path}: {name}: takes {num_bytes / 2**30:,.1f} GiB, but this machine can read "
                f"{MAX_BYTES / 2**30:,.1f} GiB in all; give fewer or smaller images, as uint8."
            )
        most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO}.get(info.compress_type, 0)
        most *= min(info.compress_size, path.stat().st_size)
        if info.file_size != start + num_bytes or info.file_size > most:
            raise InputError(f"{path}: {name}: the file does not hold the bytes of an array of {shape}.")
