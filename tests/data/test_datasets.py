import gzip
import hashlib
import os
import pickle
import shutil
import socket
import tarfile
import urllib.error

import numpy as np
import pytest
import torch
import torchvision

from nas.data import datasets
from nas.errors import InputError
from tests.data.folders import paint


def test_digits_are_split_without_overlap():
    train, test = (datasets.load("digits", None, part) for part in ("train", "test"))
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    assert train.images.dtype == torch.uint8
    assert train.images.max() == 255
    assert train.classes == tuple("0123456789")
    assert sorted(test.targets.unique().tolist()) == list(range(10))
    seen = {image.numpy().tobytes() for image in train.images}
    assert sum(image.numpy().tobytes() in seen for image in test.images) == 0


def test_limit_is_drawn_by_the_seed():
    def draw(seed):
        return datasets.load("digits", None, "train", limit=200, seed=seed)

    assert len(draw(0).targets) == 200
    assert torch.equal(draw(0).images, draw(0).images)
    assert not torch.equal(draw(0).images, draw(1).images)
    assert len(draw(0).targets.unique()) == 10
    assert len(datasets.load("digits", None, "train", limit=10**6).targets) == 1437


def test_a_fingerprint_tells_apart_whatever_a_run_depends_on():
    split = datasets.load("digits", None, "test")
    others = [
        split._replace(images=split.images.flip(0)),
        split._replace(images=split.images.reshape(-1, 1, 16, 4)),
        split._replace(targets=split.targets.flip(0)),
        split._replace(classes=split.classes[::-1]),
        split._replace(mirror=False),
    ]
    assert len({datasets.fingerprint(other) for other in [split, *others]}) == 6
    assert datasets.fingerprint(split.select(torch.arange(360))) == datasets.fingerprint(split)


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch):
    def no_network(*_, **__):
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr("urllib.request.urlopen", no_network)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "kmnist", "fashion-mnist", "svhn"])
def test_without_network_and_data_one_sentence_and_nothing_left_behind(tmp_path, name):
    timeout = socket.getdefaulttimeout()
    with pytest.raises(InputError) as error:
        datasets.load(name, tmp_path / "data" / "images", "train")
    assert "\n" not in str(error.value)
    wanted = (f"--dataset {name}", "data/images", datasets.EXPECTED_FILES[name], "no network in this test", "digits")
    assert all(part in str(error.value) for part in wanted)
    assert list(tmp_path.iterdir()) == []
    assert socket.getdefaulttimeout() == timeout


OWN = [  # what is in --data-dir, the first of which is named, and as what
    (["train/cat/0.png"], "folder"),
    (["Training/cat/0.png", "Testing/cat/0.png"], "folder"),
    (["val/cat/0.png"], "folder"),
    (["TEST/cat/0.png"], "folder"),
    (["train.npz", "test.npz"], "npz"),
    (["test.npz", "other.npz"], "npz"),
    (["mnist.npz"], "npz"),
]


@pytest.mark.parametrize("name", ["cifar10", "svhn"])
@pytest.mark.parametrize(("files", "kind"), OWN)
def test_images_of_ones_own_are_named_with_the_flag_that_reads_them(name, files, kind, tmp_path):
    paint(tmp_path, *files)
    before = sorted(tmp_path.rglob("*"))
    named = tmp_path / files[0].partition("/")[0]
    for data_dir in (tmp_path, named) if files == ["mnist.npz"] else (tmp_path,):
        with pytest.raises(InputError) as error:
            datasets.load(name, data_dir, "train")
        assert str(error.value) == (
            f"--dataset {name}: not found in --data-dir {data_dir}, which holds {named}. Add --dataset {kind} to use "
            f"these images, or give another --data-dir to download {name}."
        )
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("files", [["a.npz", "b.npz"], ["valid/0.png"], ["cat/0.png", "dog/0.png"]])
def test_files_of_others_do_not_keep_a_data_set_from_being_downloaded(files, tmp_path):
    paint(tmp_path, *files)
    with pytest.raises(InputError, match="the download failed"):
        datasets.load("cifar10", tmp_path, "train")


def write_cifar(root, kind, monkeypatch, num_images=4):
    """Files in CIFAR's own format, with their checksums in the place of the published ones."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    label = "labels" if kind is torchvision.datasets.CIFAR10 else "fine_labels"

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    generator = np.random.default_rng(0)
    for part in ("train_list", "test_list"):
        content = {label: list(range(num_images))}
        files = [
            write(name, content | {"data": generator.integers(0, 256, (num_images, 3072), dtype=np.uint8)})
            for name, _ in getattr(kind, part)
        ]
        monkeypatch.setattr(kind, part, files)
    _, checksum = write(kind.meta["filename"], {kind.meta["key"]: [f"class {index}" for index in range(10)]})
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": checksum})
    return folder


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_in_its_own_format(tmp_path, monkeypatch, name):
    kind = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    write_cifar(tmp_path, kind, monkeypatch)
    train, test = (datasets.load(name, tmp_path, part) for part in ("train", "test"))
    assert train.images.shape == (4 * len(kind.train_list), 3, 32, 32)
    assert test.images.shape == (4, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.targets[:4].tolist() == [0, 1, 2, 3]
    first = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)[0]
    assert torch.equal(train.images[0].flatten(), torch.from_numpy(first))


MNISTS = {"mnist": "MNIST", "kmnist": "KMNIST", "fashion-mnist": "FashionMNIST"}


def write_mnist(folder, suffix="", num_train=5):
    """Files in MNIST's own format, by name their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    compress = gzip.compress if suffix else bytes
    checksums = {}
    for prefix, count in (("train", num_train), ("t10k", 3)):
        pixels = np.array([0x803, count, 28, 28], ">i4").tobytes() + bytes(range(16)) * (49 * count)
        labels = np.array([0x801, count], ">i4").tobytes() + bytes(range(count))
        for kind, content in (("images-idx3", pixels), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            path.write_bytes(compress(content))
            checksums[path.name] = hashlib.md5(path.read_bytes()).hexdigest()
    return checksums


@pytest.mark.parametrize("name", MNISTS)
def test_mnist_and_the_like_in_their_own_format(tmp_path, name):
    write_mnist(tmp_path / MNISTS[name] / "raw")
    train = datasets.load(name, tmp_path, "train")
    assert train.images.shape == (5, 1, 28, 28)
    assert train.images[0, 0, 0, :17].tolist() == [*range(16), 0]
    assert train.targets.tolist() == [0, 1, 2, 3, 4]
    assert len(train.classes) == 10
    assert len(datasets.load(name, tmp_path, "test").targets) == 3
    (tmp_path / MNISTS[name] / "processed").mkdir()
    (tmp_path / MNISTS[name] / "processed/training.pt").touch()
    with pytest.raises(InputError, match=r"training\.pt: a file of an old torchvision, which is not op"):
        datasets.load(name, tmp_path, "train")
    (tmp_path / MNISTS[name] / "processed/training.pt").unlink()
    for content in (b"", b"junk", b"\0" * 100):
        for path in (tmp_path / MNISTS[name] / "raw").iterdir():
            path.write_bytes(content)
        with pytest.raises(InputError, match=rf"the files of {name} are damaged \(.+\); remove {MNISTS[name]}/raw/"):
            datasets.load(name, tmp_path, "train")


def test_svhn_in_its_own_format(tmp_path, monkeypatch):
    from scipy.io import savemat

    path, kind = tmp_path / "train_32x32.mat", torchvision.datasets.SVHN
    pixels = np.arange(32 * 32 * 3 * 3, dtype=np.uint8).reshape(32, 32, 3, 3)
    savemat(path, {"X": pixels, "y": np.array([[1], [10], [3]])})
    file = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(kind, "split_list", kind.split_list | {"train": file})
    train = datasets.load("svhn", tmp_path, "train")
    assert train.images.shape == (3, 3, 32, 32)
    assert train.targets.tolist() == [1, 0, 3]
    assert train.images[0, 1, 2, 3] == pixels[2, 3, 1, 0]
    assert train.classes == tuple("0123456789")


def test_a_download_that_arrives_is_moved_to_its_place_and_one_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    kind = torchvision.datasets.CIFAR10
    source = write_cifar(tmp_path / "elsewhere", kind, monkeypatch)
    data_dir, broken = tmp_path / "data", True

    def download(self):
        if not self._check_integrity():
            np.zeros(3).tofile(f"{self.root}/{kind.filename}")
            if broken:
                raise urllib.error.URLError("connection reset")
            shutil.copytree(source, f"{self.root}/{kind.base_folder}")

    monkeypatch.setattr(kind, "download", download)
    with pytest.raises(InputError, match="connection reset"):
        datasets.load("cifar10", data_dir, "train")
    assert os.listdir(tmp_path) == ["elsewhere"]
    broken = False
    assert len(datasets.load("cifar10", data_dir, "train").targets) == 20
    assert os.listdir(data_dir) == [kind.base_folder]


UNPACKED = {"cifar10": "cifar-10-batches-py", "kmnist": "KMNIST", "kmnist beside": "KMNIST"}


def archive_of(case, folder, monkeypatch):
    """The first of the archives in a folder, or of other files, with checksums in the place of the published ones."""
    if case == "svhn":
        return folder / "train_32x32.mat"
    if case.startswith("kmnist"):
        where = folder if case == "kmnist beside" else folder / "KMNIST/raw"
        checksums = write_mnist(where, ".gz")
        monkeypatch.setattr(torchvision.datasets.KMNIST, "resources", list(checksums.items()))
        return where / "train-images-idx3-ubyte.gz"
    kind = torchvision.datasets.CIFAR10
    source = write_cifar(folder, kind, monkeypatch)
    if case == "cifar10 unpacked":
        return source / "data_batch_1"
    path = folder / kind.filename
    with tarfile.open(path, "w:gz") as archive:
        archive.add(source, kind.base_folder)
    shutil.rmtree(source)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


@pytest.mark.parametrize("case", UNPACKED)
def test_an_archive_in_the_folder_is_used(case, tmp_path, monkeypatch, capsys):
    archive = archive_of(case, tmp_path, monkeypatch)
    (tmp_path / "train").mkdir()  # which else stands for images of one's own
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    name = case.split()[0]
    sizes = [len(datasets.load(name, tmp_path, part).targets) for part in ("train", "test", "train")]
    assert sizes == ([20, 4, 20] if name == "cifar10" else [5, 3, 5])
    printed = capsys.readouterr().out
    assert printed.startswith(f"Unpacking {archive}")
    assert printed.count("\n") == 1
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    names = {path.relative_to(tmp_path).parts[0] for path in before}
    assert {path.name for path in tmp_path.iterdir()} == names | {"train", UNPACKED[case]}


@pytest.mark.parametrize("case", [*UNPACKED, "svhn", "cifar10 unpacked"])
def test_a_file_with_another_checksum_is_named_not_opened_and_left_alone(case, tmp_path, monkeypatch):
    path = archive_of(case, tmp_path, monkeypatch)
    path.write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR.")  # which a pickle runs
    monkeypatch.chdir(tmp_path)
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(InputError) as error:
        datasets.load(case.split()[0], tmp_path, "train")
    assert str(error.value).startswith(f"{path}: damaged, or not of {case.split()[0]}: its checksum is not the pub")
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_archives_of_another_set_do_not_matter_and_half_of_the_right_ones_want_a_download(tmp_path, monkeypatch):
    write_mnist(tmp_path, ".gz", num_train=7)
    archive_of("kmnist", tmp_path, monkeypatch)
    assert len(datasets.load("kmnist", tmp_path, "train").targets) == 5
    archive_of("kmnist", tmp_path / "half", monkeypatch).unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"and the download failed \(.*no network in this test"):
        datasets.load("kmnist", tmp_path / "half", "train")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    archive, folder = archive_of("cifar10", tmp_path, monkeypatch), UNPACKED["cifar10"]
    (tmp_path / folder).touch()  # where the files should go
    with pytest.raises(InputError) as error:
        datasets.load("cifar10", tmp_path, "train")
    assert str(error.value).startswith(f"--data-dir {tmp_path}: {archive} cannot be unpacked there (")
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder, archive.name]
