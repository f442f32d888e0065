import contextlib
import io
import json
import re
import runpy
import struct
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

from nas import datasets, npz
from nas.errors import InputError
from nas.training import prepare
from tests.in_process import call

SMALL = ["--dataset=npz", "--data-dir=own", "--init-channels=2", "--num-cells=3", "--batch-size=8", "--name=run"]
SHORT = {
    "search": [*SMALL, "--num-nodes=1", "--hypergradient=first-order", "--epochs=1"],
    "train_final": [*SMALL, "--genotype=DARTS_V2", "--epochs=1"],
}


def pixels(num_images=6, size=8, channels=()):
    return np.random.default_rng(0).integers(0, 256, (num_images, size, size, *channels), dtype=np.uint8)


def arrays(**others):
    """What a small file holds; None takes an array away."""
    whole = {"images": pixels(), "labels": np.array([0, 1, 2, 0, 1, 2])} | others
    return {name: array for name, array in whole.items() if array is not None}


def write(folder, part="train", save=np.savez_compressed, **others):
    folder.mkdir(exist_ok=True)
    save(folder / f"{part}.npz", **arrays(**others))
    return folder


def refusal(folder, part="train"):
    with pytest.raises(InputError) as error:
        npz.load(folder, part)
    assert str(error.value).isprintable()
    return str(error.value)


def header(dtype="'|u1'", shape="(6, 8, 8)", order="False", version=b"\x01\x00", length_bytes=2):
    text = f"{{'descr': {dtype}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + len(text).to_bytes(length_bytes, "little") + text


def write_members(folder, compression=zipfile.ZIP_DEFLATED, **members):
    """A file of which some members are these bytes."""
    with zipfile.ZipFile(folder / "train.npz", "w", compression) as archive:
        for name, array in arrays().items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", members.get(name, content.getvalue()))
    return folder


# What can be read


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_images_keep_their_pixels_and_get_their_channels_first(save, channels, tmp_path):
    images = pixels(size=9, channels=channels)
    split = datasets.load("npz", write(tmp_path, save=save, images=images), "train")
    assert split.images.shape == (6, *(channels or (1,)), 9, 9)
    assert split.images.dtype == torch.uint8
    assert split.images.is_contiguous()
    for number, row, column in ((0, 1, 2), (5, 8, 0)):
        assert split.images[number, :, row, column].tolist() == np.atleast_1d(images[number, row, column]).tolist()
    assert split.targets.tolist() == [0, 1, 2, 0, 1, 2]
    assert split.targets.dtype == torch.int64
    assert split.classes == ("0", "1", "2")


@pytest.mark.parametrize("dtype", ["u1", "i1", "<u2", ">i4", "<i8", ">u8"])
def test_labels_of_any_integers(dtype, tmp_path):
    split = datasets.load("npz", write(tmp_path, labels=np.array([2, 1, 0, 0, 0, 0], dtype)), "train")
    assert split.targets.tolist() == [2, 1, 0, 0, 0, 0]


def test_the_order_in_memory_and_other_arrays_do_not_matter(tmp_path):
    images = pixels(channels=(3,))
    other = np.array([{"an": "object"}], dtype=object)
    split = datasets.load("npz", write(tmp_path, images=np.asfortranarray(images), other=other), "train")
    assert torch.equal(split.images, torch.from_numpy(images).permute(0, 3, 1, 2))


@pytest.mark.parametrize(("array", "mirror"), [(None, True), (True, True), (False, False), (np.bool_(False), False)])
def test_whether_images_may_be_mirrored(array, mirror, tmp_path):
    split = datasets.load("npz", write(tmp_path, mirror=array), "train", limit=5)
    assert split.mirror == mirror
    assert prepare(split, "npz", torch.device("cpu")).flip == mirror
    assert split.to(torch.device("cpu")).mirror == mirror


@pytest.mark.parametrize("dtype", ["<U11", ">U40"])
def test_names_of_the_classes(dtype, tmp_path):
    folder = write(tmp_path, classes=np.array(["cat", "Käfer", "white shark"], dtype))
    assert datasets.load("npz", folder, "train").classes == ("cat", "Käfer", "white shark")


def test_a_test_file_without_names_has_those_of_the_training_and_not_all_of_its_labels(tmp_path):
    folder = write(tmp_path, "test", labels=np.array([0, 1, 0, 1, 1, 1]))
    assert datasets.load("npz", folder, "test", classes=("ant", "bee", "cat")).classes == ("ant", "bee", "cat")
    assert datasets.load("npz", folder, "test").classes == ("0", "1")
    named = write(tmp_path, "test", classes=["x", "y", "z"])
    assert datasets.load("npz", named, "test", classes=("ant", "bee", "cat")).classes == ("x", "y", "z")


def test_a_limit_is_drawn_by_the_seed(tmp_path):
    folder = write(tmp_path, images=pixels(40), labels=np.arange(40) % 4)
    whole, few = (datasets.load("npz", folder, "train", limit=limit, seed=3) for limit in (None, 5))
    assert len(few.targets) == 5
    assert few.classes == whole.classes
    assert {image.numpy().tobytes() for image in few.images} < {image.numpy().tobytes() for image in whole.images}


def test_a_thousand_classes(tmp_path):
    labels = np.arange(2000) % 1000
    split = datasets.load("npz", write(tmp_path, images=pixels(2000), labels=labels), "train")
    assert len(split.classes) == 1000
    assert split.classes[999] == "999"


# What is refused

TOO_LONG = ["a" * 1000, "b", "c"]
WRONG = {
    "no images": ({"images": None}, "images: there is no such array"),
    "no labels": ({"labels": None}, "labels: there is no such array"),
    "float images": ({"images": pixels() / 255}, "images: of dtype '<f8', but must be uint8"),
    "signed images": ({"images": pixels().astype(np.int8)}, "images: of dtype '|i1', but must be uint8"),
    "images as objects": ({"images": np.array([[1], None], object)}, "images: of dtype '|O', but must be uint8"),
    "a table": ({"images": np.zeros(6, [("a", "u1")])}, "images: no plain array of numpy's"),
    "one image": ({"images": pixels(1), "labels": np.array([0])}, "images: there are 1, but two at least are needed"),
    "no image": ({"images": pixels(0), "labels": np.zeros(0, int)}, "images: there are 0, but two at least"),
    "a number": ({"images": np.uint8(3)}, "images: of shape (), but must be (N, size, size)"),
    "flat images": ({"images": np.zeros((6, 64), np.uint8)}, "images: of shape (6, 64), but must be (N, size, size)"),
    "not square": ({"images": np.zeros((6, 8, 9), np.uint8)}, "images: of shape (6, 8, 9), but must be"),
    "small": ({"images": pixels(size=7)}, "images: of shape (6, 7, 7), but must be"),
    "large": ({"images": np.zeros((6, 1025, 1025), np.uint8)}, "images: of shape (6, 1025, 1025), but must be"),
    "two channels": ({"images": pixels(channels=(2,))}, "images: of shape (6, 8, 8, 2), but must be"),
    "channels first": ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, "images: of shape (6, 3, 8, 8), but must be"),
    "five axes": ({"images": pixels(channels=(3, 1))}, "images: of shape (6, 8, 8, 3, 1), but must be"),
    "float labels": ({"labels": np.zeros(6)}, "labels: of dtype '<f8', but must be integers"),
    "labels as names": ({"labels": np.array(["cat"] * 6)}, "labels: of dtype '<U3', but must be integers"),
    "too few labels": ({"labels": np.arange(5)}, "labels: of shape (5,), but must be (6,), one an image"),
    "a column of labels": ({"labels": np.zeros((6, 1), int)}, "labels: of shape (6, 1), but must be (6,)"),
    "below 0": ({"labels": np.array([0, 1, 2, 0, 1, -1])}, "labels: -1 is below 0"),
    "one class": ({"labels": np.zeros(6, int)}, "labels: all images are of one class, but two classes at least"),
    "a gap": ({"labels": np.array([0, 1, 3, 0, 1, 3])}, "labels: no image is of class 2, '2'; number the classes"),
    "from 1 on": ({"labels": np.array([1, 2, 3, 1, 2, 3])}, "labels: no image is of class 0, '0'"),
    "far too large": ({"labels": np.array([0, 1, 2, 0, 1, 10**9])}, "labels: 1000000000 is too much"),
    "beyond int64": (
        {"labels": np.array([0, 1, 2, 0, 1, 2**64 - 1], np.uint64)},
        "labels: 18446744073709551615 is too",
    ),
    "a class without image": ({"classes": ["a", "b", "c", "d"]}, "labels: no image is of class 3, 'd'"),
    "a label without name": ({"classes": ["a", "b"]}, "labels: 2 is no class; there are 2"),
    "names as bytes": ({"classes": np.array([b"a", b"b", b"c"])}, "classes: of dtype '|S1', but must be text"),
    "names as objects": ({"classes": np.array(["a", "b", "c"], object)}, "classes: of dtype '|O', but must be text"),
    "a single name": ({"classes": np.array("abc")}, "classes: of shape (), but must be a list"),
    "no name": ({"classes": np.zeros(0, "U1")}, "classes: of shape (0,), but must be a list"),
    "an empty name": ({"classes": ["a", "", "c"]}, "classes: '' is no name that can be printed"),
    "a name twice": ({"classes": ["a", "b", "a"]}, "classes: 'a' is there twice"),
    "orders to a terminal": ({"classes": ["a", "b\x1b[2J", "c"]}, r"classes: 'b\x1b[2J' is no name"),
    "half a letter": ({"classes": ["a", "b\ud800", "c"]}, "classes: a name holds what is no letter"),
    "no letter": ({"classes": np.frombuffer(b"\xff" * 12, "<U1")}, "classes: a name holds what is no letter"),
    "no letter either": ({"classes": np.frombuffer(b"\xff" * 12, ">U1")}, "classes: a name holds what is no letter"),
    "a mirror for each": ({"mirror": np.ones(6, bool)}, "mirror: of shape (6,), but must be a single True or False"),
    "a number as mirror": ({"mirror": 0}, "mirror: of dtype '<i8', but must be True or False"),
    "a word as mirror": ({"mirror": "no"}, "mirror: of dtype '<U2', but must be True or False"),
    "a novel": ({"classes": TOO_LONG}, "classes: of dtype '<U1000', but must be text of up to 999 letters"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_array_is_named(case, tmp_path):
    others, sentence = WRONG[case]
    assert f"{tmp_path}/train.npz: {sentence}" in refusal(write(tmp_path, **others))


def test_ten_thousand_and_one_classes_are_refused(tmp_path):
    write(tmp_path, images=pixels(10_001), labels=np.arange(10_001))
    assert "labels: 10000 is too much; there may be 10,000 classes at most" in refusal(tmp_path)


def test_a_missing_file_is_named_with_what_makes_one(tmp_path):
    sentence = refusal(tmp_path / "own")
    assert f"--data-dir {tmp_path}/own: there is no file {tmp_path}/own/train.npz" in sentence
    assert "numpy.savez_compressed" in sentence
    (tmp_path / "train.npz").mkdir()
    assert "there is no file" in refusal(tmp_path)
    assert "there is no file" in refusal(tmp_path / ("a" * 300))


def test_what_numpy_would_open_as_something_else_is_not_opened(tmp_path):
    mark = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return (open, (str(mark), "w"))

    path = tmp_path / "train.npz"
    np.save(path.with_suffix(".npy"), pixels())
    np.array([Hostile()], object).dump(path.with_suffix(".pickle"))
    for suffix in (".npy", ".pickle"):
        path.write_bytes(path.with_suffix(suffix).read_bytes())
        assert "no .npz file, or a damaged one" in refusal(tmp_path)
    np.savez(path, **arrays(images=np.array([Hostile()] * 6, object)))
    assert "images: of dtype '|O'" in refusal(tmp_path)
    np.savez(path, **arrays(other=np.array([Hostile()], object)))
    npz.load(tmp_path, "train")
    assert not mark.exists()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_refused_wherever_the_damage_is(save, tmp_path):
    path = write(tmp_path, save=save) / "train.npz"
    whole = path.read_bytes()
    for content in (b"", whole[:10], whole[:-1], whole[: len(whole) // 2], b"\xff" * 1000):
        path.write_bytes(content)
        assert "no .npz file, or a damaged one" in refusal(tmp_path)
    middle = whole.index(b"images.npy") + 300  # inside the pixels: only the checksum knows
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert "no .npz file, or a damaged one" in refusal(tmp_path)


# Bombs


@contextlib.contextmanager
def little_memory(max_bytes=8 << 20):
    """Python and numpy, which tells `tracemalloc` what it takes, are to take no more."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < max_bytes
    finally:
        tracemalloc.stop()


def claim(size, **fields):
    """The header of as many images of 1,024 × 1,024 pixels."""
    return header(shape=f"({size}, 1024, 1024)", **fields)


def test_more_than_fits_into_memory_is_refused_before_it_is_unpacked(tmp_path):
    with little_memory():
        assert "images: takes 976,562.5 GiB, but" in refusal(write_members(tmp_path, images=claim(10**9)))
        assert "give fewer or smaller images" in refusal(tmp_path)


def test_the_limit_is_64_gib_at_most():
    assert npz.MAX_BYTES <= 64 << 30


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(npz, "MAX_BYTES", 1 << 60)
    with little_memory():
        for images in (claim(1000), claim(1000) + bytes(1000), header() + bytes(383), header() + bytes(385)):
            sentence = refusal(write_members(tmp_path, images=images))
            assert "images: the file holds another number of bytes than an array of (" in sentence


def patched(path, name, **fields):
    """Change what a zip file says of a member: in its directory, and before the member where that is said again."""
    content = bytearray(path.read_bytes())
    offsets = {"file_size": (24, 22, "<I"), "compress_size": (20, 18, "<I"), "method": (10, 8, "<H")}
    for field, value in fields.items():
        for signature, index, names_at in ((b"PK\1\2", 0, 46), (b"PK\3\4", 1, 30)):
            at = content.find(signature)
            while not content[at + names_at :].startswith(name.encode()):
                at = content.index(signature, at + 1)
            struct.pack_into(offsets[field][2], content, at + offsets[field][index], value)
    path.write_bytes(content)


def test_a_directory_that_claims_more_than_can_be_in_the_file_is_refused(tmp_path):
    size = 3 * 2**30 + len(header())
    write_members(tmp_path, images=claim(3 * 2**10) + bytes(1000))
    patched(tmp_path / "train.npz", "images.npy", file_size=size)
    with little_memory():
        assert "images: the file holds another number of bytes" in refusal(tmp_path)
    patched(tmp_path / "train.npz", "images.npy", compress_size=2**31)
    with little_memory():
        assert "images: the file claims more than it holds" in refusal(tmp_path)


def test_what_unpacks_to_more_than_an_array_is_not_unpacked(tmp_path):
    write_members(tmp_path, images=header() + bytes(64 << 20))
    with little_memory():
        assert "images: the file holds another number of bytes" in refusal(tmp_path)


def test_a_header_without_end_is_not_read(tmp_path):
    endless = b"\x93NUMPY\x02\x00" + (64 << 20).to_bytes(4, "little") + b" " * (64 << 20)
    write_members(tmp_path, images=endless)
    with little_memory():
        assert "images: no plain array of numpy's" in refusal(tmp_path)


def test_a_directory_without_end_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "train.npz", "w") as archive:
        for number in range(40_000):
            archive.writestr(f"{number}.npy", b"")
    with little_memory():
        assert "no .npz file, or a damaged one" in refusal(tmp_path)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_refused(compression, tmp_path):
    assert "images: the file holds another" in refusal(write_members(tmp_path, compression))


@pytest.mark.parametrize(
    "images",
    [
        header(dtype="[('a', '|u1')]"),
        header(dtype="'|V8'"),
        header(dtype="'<U0'"),
        header(shape="(6, -8, 8)"),
        header(shape="(6, 8, 8.0)"),
        header(shape="(__import__('os').getpid(), 8, 8)"),
        header(shape="(006, 8, 8)"),
        header(shape=f"({'9' * 4000}, 8, 8)"),
        header(order="None"),
        header(dtype="[" * 500),
        header(version=b"\x03\x00", length_bytes=4),
        b"",
        b"\x93NUMPY\x01\x00",
    ],
)
def test_a_strange_header_is_refused(images, tmp_path):
    write_members(tmp_path, images=images + bytes(384))
    assert re.search(r"images: (no plain array of numpy's|of dtype '(\|V8|<U0)')", refusal(tmp_path))


SEEDS = [
    (save, others)
    for save in (np.savez, np.savez_compressed)
    for others in ({}, {"images": pixels(channels=(3,)), "classes": np.array(["a", "bc", "d"]), "mirror": False})
]
WORDS = st.sampled_from(
    [
        *(b"PK\1\2", b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"\x93NUMPY", b"'|O'", b"'<U9'", b"(9, 8, 8)"),
        *(b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"images.npy", b"labels.npy", b"}", b"classes.npy", b"True", b"\1"),
    ]
)


@st.composite
def mutated(draw, whole):
    """A file in which up to four pieces have others in their place, and which may be cut."""
    content = bytearray(whole)
    marks = [match.start() for match in re.finditer(rb"PK..|\x93NUMPY|descr|shape|\.npy", whole)]
    for _ in range(draw(st.integers(1, 4))):
        near = draw(st.sampled_from(marks)) + draw(st.integers(0, 60))
        start = draw(st.just(near) | st.integers(0, len(content)))
        piece = draw(WORDS | st.binary(max_size=8))
        content[start : start + draw(st.sampled_from([len(piece), 0, 1, 30]))] = piece
    return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))])


@st.composite
def mutated_inside(draw, whole):
    """A sound zip file with one spoilt array in it, as the checksums refuse nearly all others."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    members[name] = draw(mutated(members[name]))
    changed = io.BytesIO()
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return changed.getvalue()


@pytest.mark.fuzz
@pytest.mark.parametrize("mutations", [mutated, mutated_inside])
@pytest.mark.parametrize(("save", "others"), SEEDS)
@given(data=st.data())
def test_any_file_gives_images_or_a_sentence(tmp_path_factory, mutations, save, others, data):
    folder = tmp_path_factory.getbasetemp()
    path = write(folder, save=save, **others) / "train.npz"
    path.write_bytes(data.draw(mutations(path.read_bytes())))
    try:
        images, targets, classes, _ = npz.load(folder, "train")
    except InputError as refused:
        sentence = str(refused)
    else:
        sentence = ""
    assert sentence.isprintable()
    if sentence:
        return
    assert images.dtype == torch.uint8
    assert targets.dtype == torch.int64
    assert len(images) == len(targets) >= 2
    assert sorted(targets.unique().tolist()) == list(range(len(classes)))
    assert all(name.isprintable() for name in classes)


@pytest.mark.fuzz
@given(
    dtype=st.sampled_from(["'|u1'", "'<i8'", "'|O'", "'<U2'", "'|b1'"]) | st.text(max_size=8).map(repr),
    shape=st.lists(st.sampled_from([0, 1, 2, 3, 6, 8, 9, 1024, 10**6, 10**11, -1]), max_size=5).map(tuple).map(repr),
    order=st.sampled_from(["True", "False", "1"]),
    content=st.binary(max_size=8) | st.integers(0, 2000).map(bytes),
    name=st.sampled_from(["images", "labels"]),
)
def test_any_header_gives_images_or_a_sentence(tmp_path_factory, dtype, shape, order, content, name):
    folder = tmp_path_factory.getbasetemp()
    write_members(folder, **{name: header(dtype, shape, order) + content})
    with contextlib.suppress(InputError):
        images, targets, _, _ = npz.load(folder, "train")
        assert len(images) == len(targets) == 6


# As a user does


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


def own(folder, labels, test_labels=None, **others):
    for part, numbers in (("train", labels), ("test", labels if test_labels is None else test_labels)):
        write(folder / "own", part, images=pixels(len(numbers)), labels=np.array(numbers), **others)


def log(folder):
    return (folder / "runs/run/log.txt").read_text()


@pytest.mark.parametrize("script", SHORT)
def test_both_scripts_run_on_them_and_name_a_class_with_one_image(script, tmp_path):
    own(tmp_path, [1, *[0] * 31], [0, 0, 0])
    assert call(script, tmp_path, *SHORT[script]) == 0
    assert "npz: 16 images" in log(tmp_path) or "on npz: 32 training images, 1 × 8 × 8, 2 classes" in log(tmp_path)
    assert "classes differ in size: 1 of '1', 31 of '0'; --balanced draws each class as often" in log(tmp_path)
    if script == "search":
        assert "retrain it: python train_final.py --genotype genotypes/run.json --dataset npz --data-dir own" in log(
            tmp_path
        )


@pytest.mark.parametrize("script", SHORT)
def test_both_scripts_run_on_a_thousand_classes(script, tmp_path):
    own(tmp_path, list(range(1000)) * 2)
    assert call(script, tmp_path, *SHORT[script], "--batch-size=1000", "--balanced") == 0
    assert "1000 classes" in log(tmp_path)
    assert "classes differ" not in log(tmp_path)


@pytest.mark.parametrize(("script", "levels"), [("search", {"lower", "upper"}), ("train_final", {"final"})])
def test_balanced_draws_alike_wherever_something_learns(script, levels, tmp_path, monkeypatch):
    own(tmp_path, [0] * 56 + [1] * 8)
    draw, drawn = datasets.balanced_batch, {}

    def spy(targets, batch_size, seed, purpose, step):
        batch = draw(targets, batch_size, seed, purpose, step)
        drawn.setdefault(purpose, []).append(targets[batch])
        return batch

    monkeypatch.setattr(datasets, "balanced_batch", spy)
    monkeypatch.setattr(datasets, "batch", None)
    assert call(script, tmp_path, *SHORT[script], "--balanced") == 0
    assert drawn.keys() == levels
    for targets in drawn.values():
        few, many = sorted(torch.cat(targets).bincount().tolist())
        assert many - few <= 1
    assert "classes differ in size: 8 of '1', 56 of '0'; each class is drawn as often" in log(tmp_path)


def test_a_trained_network_is_measured_on_a_test_file_elsewhere(tmp_path, capsys):
    own(tmp_path, [0, 1, 2] * 8, [0, 1, 1, 0])
    assert call("train_final", tmp_path, *SHORT["train_final"]) == 0
    (tmp_path / "own/train.npz").unlink()
    (tmp_path / "own").rename(tmp_path / "elsewhere")
    assert call("train_final", tmp_path, "--evaluate=runs/run") == 2
    assert "there is no file own/test.npz" in capsys.readouterr().err
    assert call("train_final", tmp_path, "--evaluate=runs/run", "--data-dir=elsewhere") == 0
    assert re.search(r"test accuracy [\d.]+% of 4 images", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"images": pixels(size=9)}, "test images are 1 × 9 × 9 (channels, rows, columns), training images 1 × 8 × 8"),
        ({"images": pixels(channels=(3,))}, "test images are 3 × 8 × 8 (channels, rows, columns), training images 1"),
        ({"labels": np.array([0, 1, 2, 3, 0, 1])}, "own/test.npz: labels: 3 is no class; there are 3"),
        ({"classes": ["a", "b", "d"]}, "training and test images differ in their classes (c, d); give both the same"),
        ({"classes": ["b", "a", "c"]}, "differ in their classes (their order); give both the same ones."),
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


def test_classes_of_the_run_are_in_its_config(tmp_path):
    own(tmp_path, [0, 1, 2] * 8, classes=["a", "b", "c"])
    assert call("train_final", tmp_path, *SHORT["train_final"]) == 0
    about = json.loads((tmp_path / "runs/run/config.json").read_text())["trained_on"]
    assert (about["classes"], about["in_channels"], about["image_size"]) == (["a", "b", "c"], 1, 8)
