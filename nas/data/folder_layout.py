"""The files of an image folder: which folder serves as what, which files are images, and of which class."""

import functools
import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from nas.errors import InputError, count, printable

MAX_CLASSES = 10_000  # as many as nas.config.flags.TrainedOn reads back

# Names of folders, in lower case or not.
NAMES = {"train": ("train", "training"), "test": ("test", "testing"), "validation": ("val", "valid", "validation")}
# What systems and servers leave in folders, besides hidden files.
LITTER = {
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("__macosx", "@eadir", "#recycle", "lost+found", "__pycache__"),
}
WITHOUT_TEST = (
    "with train_final.py, --skip-test --holdout-fraction 0.1 measures the accuracy on held-out training images instead"
)
HOLD_BACK = "--test-fraction 0.2, given to search.py as well, holds back a test set"


class Part(NamedTuple):
    """The files of the training images, or of the test images.

    Attributes:
        root: the folder of the class folders.
        classes: names of the classes.
        paths: the files, by class and path.
        targets: the class of each file, an index into `classes`.
        notes: lines on what was left out, and on which folder serves as what.
    """

    root: Path
    classes: tuple[str, ...]
    paths: list[Path]
    targets: list[int]
    notes: list[str]


def find_part(data_dir: Path, part: str, test_fraction: float) -> Part:
    """Find the files of the training images or of the test images; none is opened.

    Args:
        part: "train" or "test".
        test_fraction: this share of each class is the test set; see `nas.data.image_folder.load`.

    Raises:
        InputError: a folder is missing, empty or ambiguous; the folder or the flag is named.
        OSError: a folder cannot be read.
    """
    root, notes = _find_root(data_dir, part, test_fraction)
    classes, paths, targets, left_out = _list_files(data_dir, root)
    if test_fraction:
        held_back = _held_back(root, paths, targets, test_fraction)
        if not held_back:
            raise InputError(f"--test-fraction {test_fraction}: no class in {root} has the two images that it needs.")
        if part == "train":
            notes.append(
                f"{len(held_back):,} of {len(paths):,} images are held back as the test set "
                f"(--test-fraction {test_fraction}; independent of the seed)"
            )
        mine = [index for index in range(len(paths)) if (index in held_back) == (part == "test")]
        paths, targets = [paths[index] for index in mine], [targets[index] for index in mine]
    return Part(root, classes, paths, targets, notes + left_out)


def named_folders(data_dir: Path) -> dict[str, list[Path]]:
    """Return the folders named train, test, val and the like, by what they may serve as."""
    folders = class_folders(data_dir) if os.path.isdir(data_dir) else []  # Path.is_dir raises at a name too long
    return {role: [folder for folder in folders if folder.name.lower() in names] for role, names in NAMES.items()}


def class_folders(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, without hidden ones and litter."""
    return sorted(path for path in root.iterdir() if not _is_litter(path.name) and path.is_dir())


def first_five(paths: list[Path]) -> str:
    """Return the first five paths as text."""
    return ", ".join(printable(path, 1000) for path in paths[:5]) + ", …" * (len(paths) > 5)


def _find_root(data_dir: Path, part: str, test_fraction: float) -> tuple[Path, list[str]]:
    """Return the folder of the class folders of a part and, for training, lines on which folder serves as what."""
    train, named_test, validation = named_folders(data_dir).values()
    with_classes = [[folder for folder in found if class_folders(folder)] for found in (named_test, validation)]
    test = with_classes[0] or with_classes[1]
    for serve_as, found in (("training", train), ("test", test)):
        if len(found) > 1:
            names = " and ".join(folder.name for folder in found)
            raise InputError(
                f"--data-dir {data_dir}: {names} may each be the {serve_as} images; keep only one of them there."
            )
    if test and test_fraction:
        raise InputError(
            f"--test-fraction {test_fraction}: {test[0]} is already a test set; leave the flag out, or move that "
            "folder away. With --evaluate, add --test-fraction 0 to measure on that test set."
        )
    if not train and (named_test if test_fraction else part == "train" or not test):
        raise InputError(
            f"--data-dir {data_dir}: there is no folder {data_dir / 'train'}; images are expected as "
            f"{data_dir}/train/CLASS/IMAGE and {data_dir}/test/CLASS/IMAGE. If there is only {data_dir}/CLASS/IMAGE, "
            "--test-fraction 0.2 holds back a fifth of each class as the test set."
        )
    root = train[0] if train else data_dir
    if test_fraction:
        return root, []
    lacking = f"{named_test[0]} has no class folders" if named_test else f"there is no folder {data_dir / 'test'}"
    if part == "test":
        if not test:
            raise InputError(
                f"--data-dir {data_dir}: {lacking}, so no test accuracy can be measured; {WITHOUT_TEST}, and "
                f"{HOLD_BACK}."
            )
        return test[0], []
    notes = []
    if not test:
        notes.append(f"{lacking}, so train_final.py cannot measure a test accuracy: {WITHOUT_TEST}, and {HOLD_BACK}")
    elif (root.name, test[0].name) != ("train", "test"):
        notes.append(f"training images: {root}; test set: {test[0]}")
    notes += [f"{folder} is not used" for folder in (*named_test, *validation) if test and folder not in test]
    return root, notes


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.lower() in LITTER


def _list_files(data_dir: Path, root: Path) -> tuple[tuple[str, ...], list[Path], list[int], list[str]]:
    """Return the names of the classes, all files with their targets, and lines on what is left out."""
    beside = sorted(path for path in root.iterdir() if not path.name.startswith((".nas-", "..nas-")))  # caches
    broken = [path for path in beside if not _is_litter(path.name) and path.is_symlink() and not path.exists()]
    if broken:
        raise InputError(f"--data-dir {data_dir}: {printable(broken[0], 1000)} is a broken link; repair or remove it.")
    folders = class_folders(root)
    if not 2 <= len(folders) <= MAX_CLASSES:
        raise InputError(
            f"--data-dir {data_dir}: {root} holds {count(len(folders), 'class folder', ',')}, but there must be 2 to "
            f"{MAX_CLASSES:,}: {root}/CLASS/IMAGE."
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
            raise InputError(f"--data-dir {data_dir}: the class folder {folder} has no images; add some or remove it.")
        paths += images
        targets += [target] * len(images)
        left_out += litter
    notes = []
    if left_out:
        names = first_five([path.relative_to(root) for path in left_out])
        few = "1 entry that is not an image" if len(left_out) == 1 else f"{len(left_out):,} entries that are not images"
        notes.append(f"left out of {root}: {few} in a class folder: {names}")
    return tuple(folder.name for folder in folders), paths, targets, notes


def _files_below(folder: Path, above: tuple[Path, ...]) -> tuple[list[Path], list[Path]]:
    """Return all files at any depth, sorted, and the litter; a link to a folder that is read anyway is litter too."""
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
    """Return the suffixes of the formats that Pillow reads, in lower case, each with its dot."""
    Image.preinit()  # else `Image.open` would try the rare formats first from then on
    suffixes = Image.registered_extensions()
    return frozenset(suffix for suffix, format in suffixes.items() if format in Image.OPEN)


def _held_back(root: Path, paths: list[Path], targets: list[int], fraction: float) -> set[int]:
    """Return the indices of the test images: this share of each class, at least one image, but not the only one."""

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
