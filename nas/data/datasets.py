"""Data sets as uint8 tensors in memory, and their splits."""

import functools
import hashlib
import itertools
import json
import os
import socket
import tempfile
import urllib.error
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nas.data import folder_layout, image_folder, npz
from nas.data.sampler import generator
from nas.errors import InputError, Stopped, printable

# Sets in which the mirror image of a thing is not that thing.
NO_FLIP = ("digits", "svhn", "mnist", "kmnist")
DOWNLOAD_TIMEOUT_S = 30.0
MAX_NAMES_BYTES = 1_000_000  # a run's config.json holds the names of the classes, and 1 MiB of it is read back

# What torchvision looks for under the data folder.
_IDX_FILES = "train-images-idx3-ubyte, train-labels-idx1-ubyte and the same for t10k, or these as .gz"
EXPECTED_FILES = {
    "cifar10": "cifar-10-batches-py/ (data_batch_1 to 5, test_batch, batches.meta) or cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python/ (train, test, meta) or cifar-100-python.tar.gz",
    "fashion-mnist": f"FashionMNIST/raw/ ({_IDX_FILES})",
    "mnist": f"MNIST/raw/ ({_IDX_FILES})",
    "kmnist": f"KMNIST/raw/ ({_IDX_FILES})",
    "svhn": "train_32x32.mat and test_32x32.mat",
}


class Split(NamedTuple):
    """One part of a data set.

    Attributes:
        images: (num_images, channels, size, size), uint8.
        targets: (num_images,), int64, indices into `classes`, on the CPU.
        classes: names of the classes.
        mirror: whether a mirrored image is of the same class, as far as the images say so themselves.
        bits: only for `folder`: range of the grey images with 16 bits per pixel (see `nas.data.image_folder.Loaded`).
        notes: lines on what was left out or lost, and on which folder serves as what.
    """

    images: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    mirror: bool = True
    bits: int = 16
    notes: tuple[str, ...] = ()

    def select(self, indices: Tensor) -> "Split":
        """The images at `indices`, in that order."""
        return self._replace(images=self.images[indices], targets=self.targets[indices])

    def to(self, device: torch.device) -> "Split":
        """Return the split with its images on a device; the targets stay on the CPU, where batches are drawn."""
        return self._replace(images=self.images.to(device))


def load(
    name: str,
    data_dir: Path,
    part: str,
    image_size: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    skip_bad: bool = False,
    classes: tuple[str, ...] | None = None,
    resize: str = "crop",
    test_fraction: float = 0.0,
    bits: int | None = None,
) -> Split:
    """Read the training or the test images of a data set; the other part is not read.

    Args:
        name: cifar10, cifar100, mnist, kmnist, fashion-mnist, svhn, digits, folder or npz. `digits` is embedded: 1,797
            grey images, 8 × 8, every fifth one for testing. `folder` is `data_dir/train/<class>/**` and
            `data_dir/test/<class>/**`, any image format, always as RGB (see `nas.data.image_folder`). `npz` is
            `data_dir/train.npz` and `data_dir/test.npz`, arrays of numpy, grey or RGB (see `nas.data.npz`).
        data_dir: folder of the files. torchvision's data sets are unpacked there from their archives, if these are
            there with the published checksums, and otherwise downloaded.
        part: "train" or "test".
        image_size: pixels per side, only for `folder` (32 by default).
        limit: at most this many images, drawn by the seed.
        seed: of that draw.
        skip_bad: only for `folder`: leave out files that cannot be read as images.
        classes: only for `npz`: names of the classes for a file that has none, such as those of the other part.
        resize, test_fraction, bits: only for `folder`; see `nas.data.image_folder.load`.

    Raises:
        InputError: files are missing or cannot be read; the folder and the files are named.
    """
    assert part in ("train", "test"), part
    if name == "folder":
        choose = functools.partial(_draw, limit=limit, seed=seed)
        own = image_folder.load(data_dir, part, image_size or 32, choose, skip_bad, resize, test_fraction, bits)
        split = Split(own.images, own.targets, own.classes, bits=own.bits, notes=own.notes)
    elif name == "npz":
        split = Split(*npz.load(data_dir, part, classes))
    else:
        split = _load_digits(part) if name == "digits" else _load_torchvision(name, data_dir, part)
    num_bytes = len(json.dumps(split.classes, ensure_ascii=False).encode())
    if num_bytes > MAX_NAMES_BYTES:
        raise InputError(
            f"--data-dir {data_dir}: the names of the {len(split.classes):,} classes take {num_bytes:,} bytes, but at "
            f"most {MAX_NAMES_BYTES:,} can be kept; shorten them."
        )
    return split.select(_draw(len(split.targets), limit, seed)) if limit else split


def fingerprint(*splits: Split) -> str:
    """A digest of images, targets, classes and whether they may be mirrored, 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for split in splits:
        digest.update(repr((tuple(split.images.shape), split.classes)).encode())
        for tensor in (split.images, split.targets):
            digest.update(tensor.cpu().contiguous().numpy().data)
        if not split.mirror:
            digest.update(b"not to be mirrored")
    return digest.hexdigest()


def _draw(num_images: int, limit: int | None, seed: int) -> Tensor:
    """Return the indices of `limit` images, in ascending order."""
    order = torch.randperm(num_images, generator=generator("limit", seed))
    return order[:limit].sort().values


def _load_digits(part: str) -> Split:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)  # (1797, 64), from 0 to 16
    images = torch.from_numpy(np.asarray(pixels) * (255 / 16)).round().to(torch.uint8).view(-1, 1, 8, 8)
    targets = torch.from_numpy(np.asarray(labels)).long()
    tested = torch.arange(len(targets)) % 5 == 0
    chosen = tested if part == "test" else ~tested
    return Split(images[chosen], targets[chosen], tuple("0123456789"))


def _load_torchvision(name: str, data_dir: Path, part: str) -> Split:
    try:
        try:
            dataset = _open_torchvision(name, data_dir, part, download=False)
        except RuntimeError:  # torchvision's word for: missing, or another checksum
            _fetch(name, data_dir)
            dataset = _open_torchvision(name, data_dir, part, download=False)
    except (InputError, Stopped):
        raise
    except Exception as error:  # whatever its readers raise at files whose checksums it does not look at
        reason = printable(error, 200) or type(error).__name__
        raise InputError(
            f"--data-dir {data_dir}: the files of {name} are damaged ({reason}); remove {EXPECTED_FILES[name]}."
        ) from None
    images = torch.as_tensor(np.asarray(dataset.data))
    if name.startswith("cifar"):
        images = images.permute(0, 3, 1, 2)
    elif name.endswith("mnist"):
        images = images.unsqueeze(1)
    targets = torch.as_tensor(np.asarray(dataset.labels if name == "svhn" else dataset.targets)).long()
    classes = getattr(dataset, "classes", None) or [str(digit) for digit in range(10)]
    return Split(images.contiguous(), targets, tuple(classes))


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets

    names = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "kmnist": "KMNIST", "svhn": "SVHN"}
    return getattr(datasets, names.get(name, "FashionMNIST"))


def _open_torchvision(name: str, root: Path, part: str, download: bool) -> Any:
    """Open a data set by torchvision's reader, which checks the MD5 of CIFAR and SVHN files before it opens them."""
    kind = _torchvision_class(name)
    if name == "svhn":
        return kind(str(root), split=part, download=download)
    if os.path.exists(legacy := root / kind.__name__ / "processed" / "training.pt"):  # torchvision would unpickle it
        raise InputError(
            f"{legacy}: a file of an old torchvision, which is not opened, as it may run code; remove its folder."
        )
    return kind(str(root), train=part == "train", download=download)


def _archives(name: str, data_dir: Path) -> tuple[dict[str, Path], bool]:
    """Return the archives that are there, by where torchvision puts them, and whether all of them are.

    Raises:
        InputError: a file has another checksum than the published one; the file is named.
    """
    from torchvision.datasets.utils import check_integrity

    kind, unpacked = _torchvision_class(name), {}
    if name == "svhn":
        archives = {kind.split_list[part][1]: kind.split_list[part][2] for part in ("train", "test")}
    elif name.endswith("mnist"):
        archives = {f"{kind.__name__}/raw/{file}": md5 for file, md5 in kind.resources}
    else:
        archives = {kind.filename: kind.tgz_md5}
        files = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        unpacked = {f"{kind.base_folder}/{file}": md5 for file, md5 in files}
    found = {}
    for place, md5 in (archives | unpacked).items():
        there = [path for path in (data_dir / place, data_dir / Path(place).name) if os.path.isfile(path)]
        sound = [path for path in there if check_integrity(path, md5)]
        if there and not sound:
            raise InputError(
                f"{there[0]}: damaged, or not of {name}: its checksum is not the published one; move it away."
            )
        if sound and place in archives:
            found[place] = sound[0]
    return found, len(found) == len(archives)


def _own_images(data_dir: Path) -> tuple[str, Path] | None:
    """Return the --dataset that would read images of the user's own in a folder, and their place; None without any."""
    for folder in itertools.chain(*folder_layout.named_folders(data_dir).values()):
        if folder_layout.class_folders(folder) or folder.name.lower() == "train":
            return "folder", folder
    found = [data_dir / "train.npz", data_dir / "test.npz"]
    found = [path for path in found if os.path.exists(path)] or npz.only_file(data_dir)
    return ("npz", found[0]) if found else None


def _fetch(name: str, data_dir: Path) -> None:
    """Unpack or download into a folder aside, then move it to its place, so that nothing half-done stays behind."""
    archives, is_complete = _archives(name, data_dir)
    if not is_complete and (own := _own_images(data_dir)):
        raise InputError(
            f"--dataset {name}: not found in --data-dir {data_dir}, which holds {own[1]}. Add --dataset {own[0]} to "
            f"use these images, or give another --data-dir to download {name}."
        )
    listed = ", ".join(map(str, archives.values()))
    print(f"Unpacking {listed}." if is_complete else f"{name} is not in {data_dir}: downloading it.", flush=True)
    before = socket.getdefaulttimeout()
    existing = next(folder for folder in (data_dir, *data_dir.absolute().parents) if os.path.isdir(folder))
    try:
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
        with tempfile.TemporaryDirectory(prefix=".nas-download-", dir=existing) as aside:
            for place, archive in archives.items():  # torchvision downloads what is not there
                Path(aside, place).parent.mkdir(parents=True, exist_ok=True)
                Path(aside, place).symlink_to(archive.absolute())
            for part in ("train", "test"):
                _open_torchvision(name, Path(aside), part, download=True)
            data_dir.mkdir(parents=True, exist_ok=True)
            for source in Path(aside).rglob("*"):
                target = data_dir / source.relative_to(aside)
                if source.is_dir():
                    target.mkdir(exist_ok=True)
                elif source.suffix not in (".gz", ".tgz") and not source.is_symlink():
                    source.replace(target)
    except (urllib.error.URLError, RuntimeError, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())[:300]
        if is_complete:
            raise InputError(f"--data-dir {data_dir}: {listed} cannot be unpacked there ({reason}).") from None
        raise InputError(
            f"--dataset {name}: not found in --data-dir {data_dir}, which should hold {EXPECTED_FILES[name]}, and the "
            f"download failed ({reason}); put the files there, or use --dataset digits, which is embedded."
        ) from None
    finally:
        socket.setdefaulttimeout(before)
