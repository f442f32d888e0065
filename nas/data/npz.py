"""Images, labels and names of classes in .npz files, which may be hostile: no pickle is opened, no zip bomb unpacked.

This makes both files of scikit-learn's digits; any arrays of yours do as well. Where `mirror` is left out or True half
of the images are mirrored, left to right, in training, as those of an image folder always are:

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

import io
import math
import os
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from nas.data import arrays
from nas.errors import InputError, Stopped, printable
from nas.machine.memory import half_of_memory

# Half of the memory, as each array is copied once: images to have their channels first, text to be sorted.
MAX_BYTES = half_of_memory()
MAX_LETTERS = 999  # in a name
MAX_HEADER_BYTES = 1000  # numpy writes 118, and Python parses it
MAX_READ_BYTES = 1 << 20  # at once: numpy takes a quarter of it, and the list of a zip file's members 60 bytes each
DEFLATE_RATIO = 1032  # no deflated byte stands for more

# How tools name these arrays; the part may stand before or after it, as in x_train and test_images.
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
    """Images (num_images, channels, size, size), uint8, targets (num_images,), int64, names of the classes, and mirror.

    `data_dir/part.npz` holds `images`, (num_images, size, size) or (num_images, size, size, 1 or 3), uint8, with 8 to
    1,024 pixels per side; `labels`, (num_images,), integers from 0 on; and, where it likes, `classes`, (num_classes,),
    their names, and `mirror`, whether a mirrored image is of the same class. Other arrays in it are not read.

    What other tools write is read as well where its meaning is plain, and a printed line says how: arrays as in
    `nas.arrays`, under other names (`NAMES`); and one file for all parts, `data_dir` itself or the only .npz file in
    it, with the part in the names.

    Args:
        part: "train" or "test". Of "train" each class has an image.
        classes: their names where the file has none; without them they are called by their numbers.

    Raises:
        InputError: there is no such file, or it is not as above, or it claims more than it holds or than fits into
            half of the memory; the sentence names file and array.
    """
    path = data_dir / f"{part}.npz"
    is_whole = not os.path.isfile(path)  # as Path.is_file raises at a name that is too long
    if is_whole:
        files = [*data_dir.glob("*.npz")] if os.path.isdir(data_dir) else [data_dir]
        if len(files) != 1 or not os.path.isfile(files[0]):
            raise InputError(
                f"--data-dir {data_dir}: there is no file {path}; train.npz and test.npz are expected there, as "
                "numpy.savez_compressed makes them, or one .npz file with x_train, y_train, x_test and y_test."
            )
        path = files[0]
    names, found = _read(path, part, is_whole)
    where = {role: f"{path}: {name}" for role, name in names.items()}
    images, how = arrays.images(where["images"], found["images"])
    if "classes" in found:
        classes = arrays.texts(where["classes"], found["classes"])
    targets, classes, how_labels = arrays.targets(where["labels"], found["labels"], classes, part == "train")
    is_other = how or how_labels or any(role != name for role, name in names.items())
    if is_other and os.environ.get("LOCAL_RANK", "0") == "0":  # one of torchrun's processes says it
        kinds = {role: f"{names[role]}, {array.dtype.name} {array.shape}" for role, array in found.items()}
        said = f"{kinds['images']}, read as images{how}; {kinds['labels']}, read as labels{how_labels}"
        print(f"{path}: {said}.", flush=True)
    return images, targets, classes, bool(found.get("mirror", True))


def _read(path: Path, part: str, is_whole: bool) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The names of the arrays, and the arrays, each of a right dtype and shape."""
    try:
        file = _Limited(io.FileIO(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        with file:
            if file.peek(2)[:2] != b"PK":  # numpy would read a lone array, whatever its size
                raise zipfile.BadZipFile
            with np.load(file, allow_pickle=False) as archive:
                names = _find_names(path, part, is_whole, archive.zip.namelist())
                _check_claims(path, names, archive.zip)
                return names, {role: archive[f"{name}.npy"] for role, name in names.items()}
    except (InputError, Stopped):
        raise
    except Exception:  # whatever zipfile, zlib and numpy raise at a damaged file
        raise InputError(f"{path}: no .npz file, or a damaged one; make it with numpy.savez_compressed.") from None


class _Limited(io.BufferedReader):
    """A file that gives no more at once than a file of numpy's needs, whatever its zip directory claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        bounded = size is not None and 0 <= size <= MAX_READ_BYTES
        content = super().read(size if bounded else MAX_READ_BYTES + 1)
        if len(content) > MAX_READ_BYTES:
            raise zipfile.BadZipFile
        return content


def _find_names(path: Path, part: str, is_whole: bool, members: list[str]) -> dict[str, str]:
    """What the arrays are called in the file; an array's own name goes before the others."""
    there = {member.removesuffix(".npy") for member in members if member.endswith(".npy")}
    names = {}
    for role, words in NAMES.items():
        known = {form for word in words for form in (f"{word}_{part}", f"{part}_{word}")}
        if not is_whole or role in ("classes", "mirror"):  # which may hold for all parts
            known.update(words)
        found = [role] if role in there & known else sorted(name for name in there if name.lower() in known)
        if len(found) > 1:
            raise InputError(f"{path}: {' and '.join(found)} may both be the {role}; leave one of them in the file.")
        if not found and role in ("images", "labels"):
            letter = {"images": "x", "labels": "y"}[role]
            missing = f"{part}_{role} or {letter}_{part}, and no file {part}.npz beside it" if is_whole else role
            raise InputError(f"{path}: there is no array {missing}; images and labels are needed.")
        if found:
            names[role] = found[0]
    return names


def _check_claims(path: Path, names: dict[str, str], archive: zipfile.ZipFile) -> None:
    """Refuse what the headers and the zip directory say of the arrays, before one of them is unpacked."""
    num_images = total = 0
    for role, name in names.items():
        info = archive.getinfo(f"{name}.npy")
        try:
            with warnings.catch_warnings(action="ignore"), archive.open(info) as member:
                # Version 1, whose header has 64 KiB at most: numpy writes others for tables alone.
                if np.lib.format.read_magic(member) != (1, 0):
                    raise ValueError
                shape, _, dtype = np.lib.format.read_array_header_1_0(member, MAX_HEADER_BYTES)
                start = member.tell()
        except (Stopped, zipfile.BadZipFile, zlib.error):
            raise
        except Exception:  # whatever Python's parser and numpy raise at a text that is no header
            raise InputError(f"{path}: {name}: no plain array of numpy's.") from None
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
                f"{path}: {name}: takes {num_bytes / 2**30:,.1f} GiB, but {MAX_BYTES / 2**30:,.1f} GiB can be read in "
                "all here; give fewer or smaller images, as uint8."
            )
        most = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO}.get(info.compress_type, 0)
        most *= min(info.compress_size, path.stat().st_size)
        if info.file_size != start + num_bytes or info.file_size > most:
            raise InputError(f"{path}: {name}: the file holds another number of bytes than an array of {shape} takes.")
