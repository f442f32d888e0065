"""Arrays of images, labels and names of classes, read if their meaning is clear; otherwise a sentence says why not."""

import math

import numpy as np
import torch
from torch import Tensor

from nas.errors import InputError, printable

MAX_CLASSES = 10_000  # as many as nas.config.flags.TrainedOn reads back
MAX_CHUNK_BYTES = 16 << 20  # of images that are converted at once


def wanted_shape(role: str, shape: tuple[int, ...], num_images: int) -> str:
    """Return the shape that an array must have, in words; empty if it has that shape.

    Args:
        role: images, labels, classes or mirror.
    """
    if role == "images":
        size = max(shape[1:], default=0)
        forms = [(size, size), (size, size, 1), (size, size, 3), (1, size, size), (3, size, size)]
        if shape[1:] not in forms or not 8 <= size <= 1024:
            return (
                "(N, size, size), (N, size, size, 1 or 3) or (N, 1 or 3, size, size), with 8 to 1,024 pixels per side"
            )
        return "" if shape[0] >= 2 else "of at least two images"
    if role == "labels":
        right = shape[:1] == (num_images,) and len(shape) <= 2 and 1 <= math.prod(shape[1:]) <= MAX_CLASSES
        return "" if right else f"({num_images},), one per image, or one-hot"
    if role == "classes":
        return "" if len(shape) == 1 and 1 <= shape[0] <= MAX_CLASSES else f"a list of 1 to {MAX_CLASSES:,} names"
    return "" if shape == () else "a single True or False"


def images(where: str, array: np.ndarray) -> tuple[Tensor, str]:
    """Return images (num_images, channels, size, size), uint8, and how they were read, in words.

    The meaning is clear for whole numbers from 0 to 255 and floats from 0 to 1, of any dtype, and for bool, where True
    is white. Channels may come before or after rows and columns.

    Args:
        where: file and array, for error messages.
        array: (num_images, size, size), (num_images, size, size, 1 or 3) or (num_images, 1 or 3, size, size).

    Raises:
        InputError: the array holds other numbers, for which black and white are not defined.
    """
    pixels, how = array, ""
    if array.dtype != np.uint8:
        low, high = array.min(), array.max()
        # Floats that end far below 1 would lose their greys.
        is_share = array.dtype.kind == "b" or (array.dtype.kind == "f" and low >= 0 and 1 / 16 <= high <= 1)
        is_plain = is_share or bool(low >= 0 and high <= 255)  # False where one of them is not a number
        pixels = np.empty(array.shape, np.uint8)
        step = max(1, MAX_CHUNK_BYTES // (8 * array[0].size))
        for start in range(0, len(array) if is_plain else 0, step):
            chunk = array[start : start + step].astype(np.float64)
            pixels[start : start + step] = np.rint(255 * chunk if is_share else chunk)
            is_plain = is_plain and (is_share or bool((pixels[start : start + step] == chunk).all()))
        if not is_plain:
            raise InputError(
                f"{where}: {array.dtype.name} from {low:g} to {high:g}, so it is not clear which value is black and "
                "which is white; give whole numbers from 0 to 255, or floats from 0 to 1."
            )
        how = f", with {1 if is_share else 255} as white"
    if array.ndim == 3:
        pixels = pixels[:, None]
    elif array.shape[1] in (1, 3):  # fewer than an image has rows
        how = f", channels first{how}"
    else:
        pixels = pixels.transpose(0, 3, 1, 2)
    return torch.from_numpy(pixels).contiguous(), how


def targets(
    where: str, array: np.ndarray, classes: tuple[str, ...] | None, is_training: bool
) -> tuple[Tensor, tuple[str, ...], str]:
    """Return targets (num_images,), int64, from 0 on, a name for each class, and how they were read, in words.

    The meaning is clear for whole numbers of any dtype, one-hot rows, and text, whose classes are sorted.

    Args:
        where: file and array, for error messages.
        array: (num_images,), (num_images, 1) or, one-hot, (num_images, num_classes).
        classes: names of the classes, in the order of their numbers; by default their numbers.
        is_training: whether each class must have an image.

    Raises:
        InputError: a number is not a class, an image has several classes, or a class has no images.
    """
    how = ""
    if array.shape[1:] == (1,):
        array, how = array[:, 0], ", a column"
    if array.dtype.kind in "US":
        values = np.unique(array)
        if len(values) > MAX_CLASSES:
            raise InputError(f"{where}: there are {len(values):,} texts, but at most {MAX_CLASSES:,} classes.")
        names = texts(where, values)
        classes, how = classes or names, f"{how}, as text"
        number = {name: index for index, name in enumerate(classes)}
        if unknown := [name for name in names if name not in number]:
            raise InputError(f"{where}: '{printable(unknown[0], 60)}' is not one of the {len(classes)} classes.")
        array = np.array([number[name] for name in names])[np.searchsorted(values, array)]
    elif array.ndim == 2:
        num_classes, numbers = array.shape[1], array.argmax(axis=1)
        if np.count_nonzero(array) != len(array) or not (array[np.arange(len(array)), numbers] == 1).all():
            raise InputError(
                f"{where}: of shape {array.shape}, but its rows are not one-hot (one 1 each, otherwise 0)."
            )
        classes, how = classes or tuple(map(str, range(num_classes))), ", one-hot"
        if len(classes) != num_classes:
            raise InputError(f"{where}: one-hot of {num_classes} classes, but there are {len(classes)}.")
        array = numbers
    elif array.dtype.kind == "f":
        how = f"{how}, as whole numbers"
        if not (np.isfinite(array) & (array == np.rint(array))).all():
            raise InputError(f"{where}: of dtype {array.dtype.name}, but not all of them are whole numbers.")
    low, high = int(array.min()), int(array.max())
    if low < 0:
        raise InputError(f"{where}: {low} is negative; number the classes from 0 on.")
    num_classes = len(classes) if classes else high + 1
    if high >= num_classes:
        raise InputError(f"{where}: {high} is not a class; there are {num_classes}, numbered from 0 on.")
    if num_classes > MAX_CLASSES:
        raise InputError(f"{where}: {high} is too large; at most {MAX_CLASSES:,} classes can be read.")
    if is_training and num_classes < 2:
        raise InputError(f"{where}: all images are of one class, but at least two classes are needed.")
    numbers = torch.from_numpy(array.astype(np.int64))
    classes = classes or tuple(map(str, range(num_classes)))
    if is_training and (empty := (numbers.bincount(minlength=num_classes) == 0).nonzero().flatten().tolist()):
        raise InputError(
            f"{where}: no image is of class {empty[0]}, '{printable(classes[empty[0]], 60)}'; number the "
            "classes from 0 on, without gaps."
        )
    return numbers, classes, how


def texts(where: str, array: np.ndarray) -> tuple[str, ...]:
    """Return the texts in an array, (num_texts,).

    Raises:
        InputError: a text is empty, cannot be printed, or occurs twice.
    """
    try:
        if array.dtype.kind == "U":  # else numpy makes text of it that breaks Python
            numbers = np.ascontiguousarray(array).view(np.dtype("u4").newbyteorder(array.dtype.byteorder))
            chr(numbers.max())
        found = tuple(text.decode() if isinstance(text, bytes) else text for text in array.tolist())
    except (OverflowError, ValueError):
        raise InputError(f"{where}: a name is not valid Unicode.") from None
    for text in found:
        if not text or not text.isprintable():
            raise InputError(f"{where}: '{printable(text, 60)}' cannot be printed as a name.")
    if len(set(found)) < len(found):
        twice = next(text for text in found if found.count(text) > 1)
        raise InputError(f"{where}: '{printable(twice, 60)}' occurs twice.")
    return found
