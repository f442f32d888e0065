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
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nas.errors import InputError, printable

# Half of the memory, as the images are copied once, to have their channels first.
MAX_BYTES = min(64 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)
MAX_CLASSES = 10_000  # as many as nas.config.TrainedOn reads back
MAX_READ_BYTES = 1 << 20  # at once: numpy takes a quarter of it, and the list of a zip file's members 60 bytes each
DEFLATE_RATIO = 1032  # no deflated byte stands for more

# What numpy.save writes in front of an array.
_HEADER = re.compile(
    rb"\{'descr': '([^']{1,20})', 'fortran_order': (?:False|True), "
    rb"'shape': \(((?:0|[1-9]\d{0,11})(?:, (?:0|[1-9]\d{0,11})){0,7},?)?\), ?\} *\n"
)
_DTYPES = {
    "images": (r"[|<>=]?u1", "uint8, from 0 to 255"),
    "labels": (r"[|<>=]?[iu][1248]", "integers"),
    "classes": (r"[<>=]U[1-9]\d{0,2}", "text of up to 999 letters"),
    "mirror": (r"\|b1", "True or False"),
}
# All that zipfile and numpy are known to raise at what is no .npz file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError, MemoryError)


def load(
    data_dir: Path, part: str, classes: tuple[str, ...] | None = None
) -> tuple[Tensor, Tensor, tuple[str, ...], bool]:
    """Images (num_images, channels, size, size), uint8, targets (num_images,), int64, names of the classes, and mirror.

    `data_dir/part.npz` holds `images`, (num_images, size, size) or (num_images, size, size, 1 or 3), uint8, with 8 to
    1,024 pixels a side; `labels`, (num_images,), integers from 0 on; and, if it likes, `classes`, (num_classes,),
    their names, and `mirror`, whether a mirrored image is of the same class. Other arrays in it are not read.

    Args:
        part: "train" or "test". Of "train" each class has an image.
        classes: their names where the file has none; without them they are called by their numbers.

    Raises:
        InputError: there is no such file, or it is not as above, or it claims more than it holds or than fits into
            half of the memory; the sentence names file and array.
    """
    path = data_dir / f"{part}.npz"
    if not os.path.isfile(path):  # as Path.is_file raises at a name that is too long
        raise InputError(
            f"--data-dir {data_dir}: there is no file {path}; train.npz and test.npz are expected there, as "
            "numpy.savez_compressed makes them."
        )
    arrays = _read(path)
    images, labels = arrays["images"], arrays["labels"]
    if labels.min() < 0:
        raise InputError(f"{path}: labels: {labels.min()} is below 0; number the classes from 0 on.")
    if "classes" in arrays:
        classes = _names(path, arrays["classes"])
    num_classes = len(classes) if classes else int(labels.max()) + 1
    if labels.max() >= num_classes:
        raise InputError(f"{path}: labels: {labels.max()} is no class; there are {num_classes}, numbered from 0 on.")
    if num_classes > MAX_CLASSES:
        raise InputError(f"{path}: labels: {labels.max()} is too much; there may be {MAX_CLASSES:,} classes at most.")
    if part == "train" and num_classes < 2:
        raise InputError(f"{path}: labels: all images are of one class, but two classes at least are needed.")
    targets = torch.from_numpy(labels.astype(np.int64))
    classes = classes or tuple(map(str, range(num_classes)))
    if part == "train" and (empty := (targets.bincount(minlength=num_classes) == 0).nonzero().flatten().tolist()):
        name = printable(classes[empty[0]], 60)
        raise InputError(
            f"{path}: labels: no image is of class {empty[0]}, '{name}'; number the classes that there are from 0 on, "
            "without gaps."
        )
    pixels = torch.from_numpy(images)
    pixels = pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
    return pixels.contiguous(), targets, classes, bool(arrays.get("mirror", True))


def _read(path: Path) -> dict[str, np.ndarray]:
    """The arrays by name, each of the right dtype and shape."""
    try:
        file = _Limited(io.FileIO(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    try:
        with file, zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            names = [name for name in _DTYPES if f"{name}.npy" in members]
            for name in ("images", "labels"):
                if name not in names:
                    raise InputError(f"{path}: {name}: there is no such array; images and labels are needed.")
            shapes = {name: _claimed_shape(path, name, archive, members[f"{name}.npy"]) for name in names}
            _check_shapes(path, shapes)
            arrays = {}
            for name in names:
                with archive.open(members[f"{name}.npy"]) as member:
                    arrays[name] = np.lib.format.read_array(member, allow_pickle=False)
            return arrays
    except InputError:
        raise
    except _DAMAGE:
        raise InputError(f"{path}: no .npz file, or a damaged one; make it with numpy.savez_compressed.") from None


class _Limited(io.BufferedReader):
    """A file that gives no more at once than a file of numpy's needs, whatever its zip directory claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        bounded = size is not None and 0 <= size <= MAX_READ_BYTES
        content = super().read(size if bounded else MAX_READ_BYTES + 1)
        if len(content) > MAX_READ_BYTES:
            raise zipfile.BadZipFile
        return content


def _claimed_shape(path: Path, name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> tuple[int, ...]:
    """The shape of an array by its header; its dtype and its size are checked, and nothing behind it was read."""
    with archive.open(info) as member:
        start = member.read(10)
        # Version 1, whose header is of 64 KiB at most: numpy writes others for tables alone.
        length = int.from_bytes(start[8:], "little") if start[:8] == b"\x93NUMPY\x01\x00" else 0
        header = _HEADER.fullmatch(member.read(length))
    if header is None:
        raise InputError(f"{path}: {name}: no plain array of numpy's.")
    dtype = header[1].decode("latin-1")
    pattern, wanted = _DTYPES[name]
    if not re.fullmatch(pattern, dtype):
        raise InputError(f"{path}: {name}: of dtype '{printable(dtype, 60)}', but must be {wanted}.")
    shape = tuple(map(int, (header[2] or b"").replace(b",", b"").split()))
    num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    if num_bytes > MAX_BYTES:
        raise InputError(
            f"{path}: {name}: takes {num_bytes / 2**30:,.1f} GiB, but {MAX_BYTES / 2**30:,.1f} GiB can be read here; "
            "give fewer or smaller images."
        )
    held = info.compress_size * (DEFLATE_RATIO if info.compress_type == zipfile.ZIP_DEFLATED else 1)
    plain = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    if not plain or info.file_size != 10 + length + num_bytes or held < info.file_size:
        raise InputError(f"{path}: {name}: the file holds another number of bytes than an array of {shape} takes.")
    if info.compress_size > path.stat().st_size:
        raise InputError(f"{path}: {name}: the file claims more than it holds.")
    return shape


def _check_shapes(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    num_images, *sides = shapes["images"] or (0,)
    if len(sides) not in (2, 3) or sides[0] != sides[1] or not 8 <= sides[0] <= 1024 or sides[2:] not in ([], [1], [3]):
        raise InputError(
            f"{path}: images: of shape {shapes['images']}, but must be (N, size, size), (N, size, size, 1) or "
            "(N, size, size, 3), with 8 to 1,024 pixels a side."
        )
    if num_images < 2:
        raise InputError(f"{path}: images: there are {num_images}, but two at least are needed.")
    if shapes["labels"] != (num_images,):
        raise InputError(f"{path}: labels: of shape {shapes['labels']}, but must be ({num_images},), one an image.")
    names = shapes.get("classes", (1,))
    if len(names) != 1 or not 1 <= names[0] <= MAX_CLASSES:
        raise InputError(f"{path}: classes: of shape {names}, but must be a list of {MAX_CLASSES:,} names at most.")
    if shapes.get("mirror", ()):
        raise InputError(f"{path}: mirror: of shape {shapes['mirror']}, but must be a single True or False.")


def _names(path: Path, array: np.ndarray) -> tuple[str, ...]:
    size = array.dtype.itemsize
    letters = array.astype(array.dtype.newbyteorder("<")).tobytes()
    starts = range(0, len(letters), size)
    try:  # by hand, as numpy ends in a SystemError at a number that is no letter
        names = tuple(letters[start : start + size].decode("utf-32-le").rstrip("\0") for start in starts)
    except UnicodeDecodeError:
        raise InputError(f"{path}: classes: a name holds what is no letter.") from None
    for name in names:
        if not name or not name.isprintable():
            raise InputError(f"{path}: classes: '{printable(name, 60)}' is no name that can be printed.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: classes: '{printable(twice, 60)}' is there twice.")
    return names
