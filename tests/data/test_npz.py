import io
import json
import os
import re
import runpy
import textwrap
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nas.data import arrays, datasets, loader, npz
from nas.errors import InputError
from tests.in_process import TWO, call

SMALL = ["--dataset=npz", "--data-dir=own", "--init-channels=2", "--num-cells=3", "--batch-size=8", "--name=run"]
SHORT = {
    "search": [*SMALL, "--num-nodes=1", *TWO, "--hypergradient=first-order", "--epochs=1"],
    "train_final": [*SMALL, "--genotype=DARTS_V2", "--epochs=1"],
}
LABELS = np.array([0, 1, 2, 0, 1, 2])


def pixels(num_images=6, size=8, channels=()):
    return np.random.default_rng(0).integers(0, 256, (num_images, size, size, *channels), dtype=np.uint8)


def whole(**others):
    """What a small file holds; None takes an array away."""
    arrays = {"images": pixels(), "labels": LABELS} | others
    return {name: array for name, array in arrays.items() if array is not None}


def write(folder, part="train", save=np.savez_compressed, **others):
    folder.mkdir(exist_ok=True)
    save(folder / f"{part}.npz", **whole(**others))
    return folder


def refusal(folder, part="train"):
    with pytest.raises(InputError) as error:
        npz.load(folder, part)
    assert str(error.value).isprintable()
    return str(error.value)


def header(dtype="'|u1'", shape="(6, 8, 8)", order="False", version=b"\x01\x00", length_bytes=2):
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(length_bytes, "little") + text


def write_members(folder, compression=zipfile.ZIP_DEFLATED, claims=(), **members):
    """A file of which some members are these bytes, and what its directory claims of the images."""
    with zipfile.ZipFile(folder / "train.npz", "w", compression) as archive:
        for name, array in whole().items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", members.get(name, content.getvalue()))
        for field, value in claims:
            setattr(archive.getinfo("images.npy"), field, value)
    return folder


BASE = pixels()
RGB = pixels(channels=(3,))
TEXT = np.array(["cat", "ant", "bee", "cat", "ant", "bee"])
DIGITS = ("0", "1", "2")
SPLIT = (BASE, LABELS, DIGITS)
ANIMALS = (BASE, [2, 0, 1, 2, 0, 1], ("ant", "bee", "cat"))
NAMED = (BASE, LABELS, ("Käfer", "b", "c"))
OTHERS = {"images": None, "labels": None}
READ = {  # arrays, the images, targets and classes that they mean, and what is said of it
    "as here": ({}, SPLIT, ""),
    "a channel": ({"images": BASE[..., None]}, SPLIT, ""),
    "RGB": ({"images": RGB}, (RGB, LABELS, DIGITS), ""),
    "as Fortran has them": ({"images": np.asfortranarray(RGB)}, (RGB, LABELS, DIGITS), ""),
    "other arrays": ({"x": BASE, "other": np.array([{"an": "object"}], object)}, SPLIT, ""),
    "other integers": ({"labels": LABELS.astype(">u8")}, SPLIT, ""),
    "may be mirrored": ({"mirror": True}, SPLIT, ""),
    "may not be mirrored": ({"mirror": np.bool_(False)}, SPLIT, ""),
    "bool labels": ({"labels": LABELS > 0}, (BASE, LABELS > 0, DIGITS[:2]), ""),
    "named classes": ({"classes": np.array(["Käfer", "b", "c"], ">U40")}, NAMED, ""),
    "classes as bytes": ({"classes": np.array(["Käfer".encode(), b"b", b"c"])}, NAMED, ""),
    "RGB first": ({"images": RGB.transpose(0, 3, 1, 2)}, (RGB, LABELS, DIGITS), "images, channels first; labels"),
    "grey first": ({"images": BASE[:, None]}, SPLIT, "uint8 (6, 1, 8, 8), read as images, channels first;"),
    "int64": ({"images": BASE.astype(">i8")}, SPLIT, "images, int64 (6, 8, 8), read as images, with 255 as white;"),
    "floats to 255": ({"images": BASE.astype("f4")}, SPLIT, "float32 (6, 8, 8), read as images, with 255 as white"),
    "floats to 1": ({"images": BASE / 255}, SPLIT, "images, float64 (6, 8, 8), read as images, with 1 as white;"),
    "bool": ({"images": BASE > 99}, (255 * (BASE > 99), LABELS, DIGITS), "bool (6, 8, 8), read as images, with 1"),
    "a column": ({"labels": LABELS[:, None]}, SPLIT, "labels, int64 (6, 1), read as labels, a column."),
    "float labels": ({"labels": LABELS / 1}, SPLIT, "labels, float64 (6,), read as labels, as whole numbers."),
    "one-hot": ({"labels": np.eye(3)[LABELS]}, SPLIT, "labels, float64 (6, 3), read as labels, one-hot."),
    "text": ({"labels": TEXT}, ANIMALS, "str96 (6,), read as labels, as text."),
    "bytes": ({"labels": TEXT.astype("S9")[:, None]}, ANIMALS, "bytes72 (6, 1), read as labels, a column, as text."),
    "text, named": ({"labels": TEXT, "classes": ["cat", "ant", "bee"]}, (BASE, LABELS, tuple(TEXT[:3])), "as text."),
    "X and y": (OTHERS | {"X": BASE, "y": LABELS}, SPLIT, "X, uint8 (6, 8, 8), read as images; y, int64 (6,), read"),
    "Keras": (OTHERS | {"x_train": BASE, "y_train": LABELS}, SPLIT, "x_train, uint8 (6, 8, 8), read as images; y_"),
    "no names": (OTHERS | {"arr_0": BASE, "arr_1": LABELS}, SPLIT, "arr_0, uint8 (6, 8, 8), read as images; arr_1"),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_plain_is_read_and_said(case, tmp_path, capsys):
    others, (images, labels, classes), said = READ[case]
    split = datasets.load(
        "npz", write(tmp_path, save=np.savez if case == "RGB" else np.savez_compressed, **others), "train"
    )
    expected = torch.from_numpy(np.asarray(images).astype(np.uint8))
    assert torch.equal(split.images, expected[:, None] if expected.ndim == 3 else expected.permute(0, 3, 1, 2))
    assert split.images.is_contiguous()
    assert split.mirror == split.select(torch.arange(3)).mirror == (case != "may not be mirrored")
    assert (split.images.dtype, split.targets.dtype) == (torch.uint8, torch.int64)
    assert (split.targets.tolist(), split.classes) == ([int(label) for label in labels], classes)
    printed = capsys.readouterr().out
    assert said in printed
    assert printed.count("\n") == bool(said)
    assert printed.startswith(f"{tmp_path}/train.npz: " if said else "")


def test_all_chunks_of_images_are_converted(tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "MAX_CHUNK_BYTES", 1500)  # two images
    images, labels = pixels(7), np.arange(7) % 3
    loaded = npz.load(write(tmp_path, images=images / 255, labels=labels), "train")[0]
    assert torch.equal(loaded[:, 0], torch.tensor(images))
    images = images.astype(float)
    images[-1, -1, -1] = 0.5
    assert "float64 from 0 to 255, so it is not clear" in refusal(write(tmp_path, images=images, labels=labels))


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("names", ["x_{} y_{}", "{}_images {}_labels", "X_{} Y_{}", "{}_data {}_targets"])
def test_one_file_for_all_parts(names, inside, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "1")  # the other process says it
    content = {"classes": ["a", "b", "c"], "val_images": BASE, "images": BASE}
    for part, shift in (("train", 1), ("test", 2)):
        content |= dict(zip(names.format(part, part).split(), (BASE + shift, LABELS), strict=True))
    np.savez(tmp_path / "mnist.npz", **content)
    for part, shift in (("train", 1), ("test", 2)):
        split = datasets.load("npz", tmp_path if inside else tmp_path / "mnist.npz", part)
        assert split.images.numpy().tobytes() == (BASE + shift).tobytes()
        assert split.classes == ("a", "b", "c")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("others", "targets", "classes"),
    [
        ({"labels": np.array([0, 1, 0, 1, 1, 1])}, [0, 1, 0, 1, 1, 1], ("ant", "bee", "cat")),
        ({"classes": ["x", "y", "z"]}, [0, 1, 2, 0, 1, 2], ("x", "y", "z")),
        ({"labels": np.array(["cat", "bee"] * 3)}, [2, 1] * 3, ("ant", "bee", "cat")),
        ({"labels": np.eye(3)[[1, 1, 1, 2, 2, 2]]}, [1, 1, 1, 2, 2, 2], ("ant", "bee", "cat")),
    ],
)
def test_a_test_file_has_the_classes_of_the_training_and_not_all_of_its_labels(others, targets, classes, tmp_path):
    split = datasets.load("npz", write(tmp_path, "test", **others), "test", classes=("ant", "bee", "cat"))
    assert (split.targets.tolist(), split.classes) == (targets, classes)


PICKLE = b"cposix\nsystem\n(S'touch executed'\ntR."
NOT_PLAIN = "so it is not clear which value is black and which is white; give whole numbers from 0 to 255, or floats"
SHAPE = (
    "but must be (N, size, size), (N, size, size, 1 or 3) or (N, 1 or 3, size, size), with 8 to 1,024 pixels per side"
)
WRONG = {
    "no images": ({"images": None}, "there is no array images"),
    "no labels": ({"labels": None}, "there is no array labels"),
    "two of them": ({"images": None, "x": BASE, "X": BASE}, "X and x may each be the images; keep only one"),
    "complex images": ({"images": BASE * 1j}, "images: of dtype '<c16', but must be numbers"),
    "images as objects": ({"images": np.array([[1], None], object)}, "images: of dtype '|O', but must be numbers"),
    "beyond 8 bits": ({"images": BASE.astype(np.uint16) * 9}, f"images: uint16 from 0 to 2295, {NOT_PLAIN}"),
    "below 0": ({"images": BASE.astype(np.int64) - 1}, f"images: int64 from -1 to 254, {NOT_PLAIN}"),
    "divided twice": ({"images": BASE / 255**2}, f"images: float64 from 0 to 0.00392157, {NOT_PLAIN}"),
    "not whole": ({"images": BASE / 2}, f"images: float64 from 0 to 127.5, {NOT_PLAIN}"),
    "nan": ({"images": np.where(BASE == 3, np.nan, BASE / 255)}, f"images: float64 from nan to nan, {NOT_PLAIN}"),
    "one image": ({"images": pixels(1), "labels": LABELS[:1]}, "of shape (1, 8, 8), but must be of at least two im"),
    "a number": ({"images": np.uint8(3)}, f"images: of shape (), {SHAPE}"),
    "not square": ({"images": np.zeros((6, 8, 9), np.uint8)}, f"images: of shape (6, 8, 9), {SHAPE}"),
    "small": ({"images": pixels(size=7)}, f"images: of shape (6, 7, 7), {SHAPE}"),
    "large": ({"images": np.zeros((6, 1025, 1025), np.uint8)}, f"images: of shape (6, 1025, 1025), {SHAPE}"),
    "too few labels": ({"labels": np.arange(5)}, "labels: of shape (5,), but must be (6,), one per image, or one-hot"),
    "no column": ({"labels": np.zeros((6, 0), int)}, "labels: of shape (6, 0), but must be (6,)"),
    "two classes of an image": ({"labels": np.eye(3)[LABELS] + np.eye(3)[0]}, "(6, 3), but its rows are not one-hot"),
    "a 2": ({"labels": 2 * np.eye(3)[LABELS]}, "labels: of shape (6, 3), but its rows are not one-hot"),
    "too few columns": ({"labels": np.eye(3)[LABELS], "classes": ["a", "b"]}, "one-hot of 3 classes, but there are 2"),
    "an empty column": ({"labels": np.eye(4)[LABELS]}, "labels: no image is of class 3, '3'"),
    "float labels": ({"labels": LABELS / 2}, "labels: of dtype float64, but not all of them are whole numbers"),
    "dates": ({"labels": LABELS.astype("M8[s]")}, "labels: of dtype '<M8[s]', but must be numbers, or text of up to"),
    "text of no class": ({"labels": TEXT, "classes": ["ant", "bee", "dog"]}, "'cat' is not one of the 3 classes"),
    "empty text": ({"labels": np.array(["a", "", "b"] * 2)}, "labels: '' cannot be printed as a name"),
    "labels below 0": ({"labels": np.array([0, 1, 2, 0, 1, -1])}, "labels: -1 is negative"),
    "one class": ({"labels": np.zeros(6, int)}, "labels: all images are of one class, but at least two classes"),
    "a gap": ({"labels": np.array([0, 1, 3, 0, 1, 3])}, "labels: no image is of class 2, '2'; number the classes"),
    "from 1 on": ({"labels": np.array([1, 2, 3, 1, 2, 3])}, "labels: no image is of class 0, '0'"),
    "far too large": ({"labels": np.array([0, 1, 2, 0, 1, 1e300])}, "is too large; at most 10,000 classes"),
    "one too many": ({"images": pixels(10_001), "labels": np.arange(10_001)}, "labels: 10000 is too large; at most"),
    "as text": ({"images": pixels(10_001), "labels": np.arange(10_001).astype(str)}, "labels: there are 10,001 texts"),
    "a class without image": ({"classes": ["a", "b", "c", "d"]}, "labels: no image is of class 3, 'd'"),
    "a label without name": ({"classes": ["a", "b"]}, "labels: 2 is not a class; there are 2"),
    "names as objects": ({"classes": np.array(["a", "b", "c"], object)}, "classes: of dtype '|O', but must be text"),
    "a single name": ({"classes": np.array("abc")}, "classes: of shape (), but must be a list"),
    "no name": ({"classes": np.zeros(0, "U1")}, "classes: of shape (0,), but must be a list"),
    "a name twice": ({"classes": ["a", "b", "a"]}, "classes: 'a' occurs twice"),
    "orders to a terminal": ({"classes": ["a", "b\x1b[2J", "c"]}, r"classes: 'b\x1b[2J' cannot be printed"),
    "no letter": ({"classes": np.frombuffer(b"\xff" * 12, "<U1")}, "classes: a name is not valid Unicode"),
    "no letter of any": ({"classes": np.frombuffer(b"\0\0\0\1" * 3, "<U1")}, "classes: a name is not valid Unicode"),
    "labels of no letter": ({"labels": np.frombuffer(b"\xff" * 24, ">U1")}, "labels: a name is not valid Unicode"),
    "a mirror for each": ({"mirror": np.ones(6, bool)}, "mirror: of shape (6,), but must be a single True or False"),
    "a word as mirror": ({"mirror": "no"}, "mirror: of dtype '<U2', but must be True or False"),
    "a novel": ({"classes": ["a" * 1000, "b", "c"]}, "classes: of dtype '<U1000', but must be text of up to 999"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_array_is_named(case, tmp_path):
    others, sentence = WRONG[case]
    said = refusal(write(tmp_path, **others))
    assert said.startswith(f"{tmp_path}/train.npz: ")
    assert sentence in said


def test_a_missing_file_is_named_with_what_makes_one_or_does_without(tmp_path):
    no_test = "If there is no test set, with train_final.py, --skip-test --holdout-fraction 0.1 measures"
    sentence = refusal(tmp_path / "own")
    assert f"--data-dir {tmp_path}/own: there is no file {tmp_path}/own/train.npz" in sentence
    assert "numpy.savez_compressed" in sentence
    assert no_test not in sentence
    (tmp_path / "train.npz").mkdir()
    for folder in (tmp_path, tmp_path / ("a" * 300)):
        assert "there is no file" in refusal(folder)
    for name in ("a.npz", "b.npz"):  # either may be the one with all parts
        np.savez(tmp_path / name, x_train=BASE, y_train=LABELS)
    assert no_test in refusal(tmp_path, "test")
    sentence = refusal(tmp_path / "a.npz", "test")
    assert f"{tmp_path}/a.npz: there is no array test_images or x_test, and no file test.npz beside it" in sentence
    assert no_test in sentence


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_or_another_one_is_refused_and_no_pickle_opened(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, save=save) / "train.npz"
    sound = path.read_bytes()
    middle = sound.index(b"images.npy") + 300  # inside the pixels: only the checksum knows
    flipped = sound[:middle] + bytes([sound[middle] ^ 1]) + sound[middle + 1 :]
    for content in (b"", sound[:10], sound[:-1], sound[: len(sound) // 2], b"\xff" * 1000, flipped, PICKLE):
        path.write_bytes(content)
        assert "not an .npz file, or a damaged one" in refusal(tmp_path)
    assert os.listdir() == ["train.npz"]


ENDLESS = b"\x93NUMPY\x02\x00" + (64 << 20).to_bytes(4, "little") + b" " * (64 << 20)
OTHER_SIZE = "images: the file does not hold the bytes of an array of ("
LIE = {"file_size": 3 * 2**30 + 128}
BOMBS = {  # images, what the zip directory says of them, and the sentence
    "more than the memory": (header(shape=f"({10**9}, 1024, 1024)"), {}, "images: takes 976,562.5 GiB, but"),
    "a header and little else": (header(shape="(1000, 1024, 1024)") + bytes(1000), {}, OTHER_SIZE),
    "a byte too few": (header() + bytes(383), {}, OTHER_SIZE),
    "a byte too many": (header() + bytes(385), {}, OTHER_SIZE),
    "64 MB too many": (header() + bytes(64 << 20), {}, OTHER_SIZE),
    "a directory that lies": (header(shape="(3072, 1024, 1024)") + bytes(1000), LIE, OTHER_SIZE),
    "twice": (header(shape="(3072, 1024, 1024)"), LIE | {"compress_size": 2**31}, OTHER_SIZE),
    "a header without end": (ENDLESS, {}, "images: not a plain array of numpy"),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_not_unpacked(case, tmp_path, monkeypatch):
    images, claims, sentence = BOMBS[case]
    if sentence == OTHER_SIZE:  # whatever the memory of this machine
        monkeypatch.setattr(npz, "MAX_BYTES", 1 << 60)
    write_members(tmp_path, claims=claims.items(), images=images)
    tracemalloc.start()  # Python and numpy tell it what they take
    try:
        said = refusal(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    # Some versions of Python see by themselves that the members of "twice" overlap.
    assert sentence in said or (case == "twice" and "not an .npz file, or a damaged one" in said)


def test_all_arrays_together_have_to_fit_and_other_compressions_are_refused(tmp_path, monkeypatch):
    for compression in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        assert OTHER_SIZE in refusal(write_members(tmp_path, compression))
    monkeypatch.setattr(npz, "MAX_BYTES", 500)  # 384 bytes of images, 48 of labels
    npz.load(write(tmp_path), "train")
    assert "labels: takes" in refusal(write(tmp_path, labels=np.eye(3)[LABELS]))


HEADERS = [
    *(header(dtype=dtype) for dtype in ("'<U0'", "('<f4', (2,))", "[" * 500, "-" * 900 + "1")),
    *(header(shape=f"({shape})") for shape in ("6, -8, 8", "__import__('os').getpid(), 8, 8", f"{'9' * 5000}, 8, 8")),
    header(shape="(6L, 8L, 9L)"),  # as Python 2 wrote them
    header(order=r"'\d'"),
    header(version=b"\x03\x00", length_bytes=4),
    *(b"", b"\x93NUMPY\x01\x00"),
]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("images", HEADERS)
def test_a_strange_header_is_refused(images, tmp_path):
    write_members(tmp_path, images=images + bytes(384))
    assert re.search(r"images: (not a plain array of numpy|of (dtype|shape) .+, but must be)", refusal(tmp_path))


WORDS = [b"\x93NUMPY", b"'|O'", b"'<U9'", b"(9, 8, 8)", b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"}", b"True", b"\1"]


@st.composite
def spoilt(draw, path):
    """A sound zip file with one spoilt array in it, as the checksums refuse nearly all others."""
    changed = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as other:
        name = draw(st.sampled_from(archive.namelist()))
        for member in archive.namelist():
            content = bytearray(archive.read(member))
            for _ in range(draw(st.integers(1, 4)) if member == name else 0):
                start = draw(st.integers(0, 128) | st.integers(0, len(content)))
                piece = draw(st.sampled_from(WORDS) | st.binary(max_size=8))
                content[start : start + draw(st.sampled_from([len(piece), 0, 1, 30]))] = piece
            other.writestr(member, bytes(content))
    return changed.getvalue()


@pytest.mark.fuzz
@given(data=st.data())
def test_any_file_gives_images_or_a_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    case = data.draw(st.sampled_from(["as here", "RGB first", "floats to 1", "text, named", "one-hot"]))
    path = write(folder, **READ[case][0]) / "train.npz"
    path.write_bytes(data.draw(spoilt(path)))
    try:
        images, targets, classes, _ = npz.load(folder, "train")
    except InputError as refused:
        assert str(refused).isprintable()  # noqa: PT017, as it may also be read
        return
    assert images.dtype == torch.uint8
    assert targets.dtype == torch.int64
    assert len(images) == len(targets) >= 2
    assert sorted(targets.unique().tolist()) == list(range(len(classes)))
    assert all(name.isprintable() for name in classes)


def test_the_lines_that_make_a_data_set_of_ones_own(tmp_path, monkeypatch):
    lines = [line for line in npz.__doc__.splitlines() if line.startswith("    ")]
    code = textwrap.dedent("\n".join(lines))
    assert len(lines) <= 10
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(code, encoding="utf-8")
    runpy.run_path("own.py")
    for part in ("train", "test"):
        own, embedded = datasets.load("npz", tmp_path / "own", part), datasets.load("digits", None, part)
        assert_close(own.images, embedded.images, rtol=0, atol=0)
        assert torch.equal(own.targets, embedded.targets)
        assert own.classes == tuple(f"digit {name}" for name in embedded.classes)
        assert not own.mirror


def own(folder, labels, **others):
    for part in ("train", "test"):
        write(folder / "own", part, images=pixels(len(labels)), labels=np.array(labels), **others)


@pytest.mark.parametrize(("script", "levels"), [("search", {"lower", "upper"}), ("train_final", {"final"})])
def test_balanced_draws_alike_wherever_something_learns(script, levels, tmp_path, monkeypatch, capsys):
    own(tmp_path, [0] * 24 + [1] * 8)
    draw, drawn = loader.balanced_batch, {}

    def spy(targets, batch_size, seed, purpose, step):
        batch = draw(targets, batch_size, seed, purpose, step)
        drawn.setdefault(purpose, []).append(targets[batch])
        return batch

    monkeypatch.setattr(loader, "balanced_batch", spy)
    monkeypatch.setattr(loader, "batch", None)
    assert call(script, tmp_path, *SHORT[script], "--balanced") == 0
    del drawn["statistics"]  # some batches more, which only the batch norms see
    assert drawn.keys() == levels
    for targets in drawn.values():
        few, many = sorted(torch.cat(targets).bincount().tolist())
        assert many - few <= 1
    log = (tmp_path / "runs/run/log.txt").read_text()
    assert "classes differ in size: 8 of '1', 24 of '0'; each class is drawn as often" in log
    retrain = "train it: python train_final.py --genotype genotypes/run.json --dataset npz --data-dir own --balanced"
    assert (retrain in log) == (script == "search")
    if script == "search":
        return
    # A trained network is measured on a test file elsewhere.
    about = json.loads((tmp_path / "runs/run/config.json").read_text())["trained_on"]
    assert (about["classes"], about["in_channels"], about["image_size"]) == (["0", "1"], 1, 8)
    (tmp_path / "own/train.npz").unlink()
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    assert call("train_final", tmp_path, "--evaluate=runs/run") == 2
    assert "there is no file own/test.npz" in capsys.readouterr().err
    assert call("train_final", tmp_path, "--evaluate=runs/run", "--data-dir=elsewhere") == 0
    assert re.search(r"test accuracy [\d.]+% of 32 images", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"images": pixels(size=9)}, "test images are 1 × 9 × 9 (channels, rows, columns), training images 1 × 8 × 8"),
        ({"labels": np.array([0, 1, 2, 3, 0, 1])}, "own/test.npz: labels: 3 is not a class; there are 3"),
        ({"classes": ["a", "b", "d"]}, "training and test images differ in their classes (c, d); give both the same"),
        ({"labels": np.array(["a", "b", "d"] * 2)}, "own/test.npz: labels: 'd' is not one of the 3 classes"),
        (
            {"classes": ["b", "a", "c"]},
            "test images differ in their classes (their order); give both the same ones, or",
        ),
    ],
)
def test_a_test_file_that_does_not_go_with_the_training_is_refused(other, sentence, tmp_path, capfd):
    own(tmp_path, [0, 1, 2] * 8, classes=["a", "b", "c"])
    write(tmp_path / "own", "test", **other)
    assert call("train_final", tmp_path, *SHORT["train_final"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()
