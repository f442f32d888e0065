"""Which files of a folder are images, of which class and part, and what is said of it."""

import os
import re

import pytest
import torch
import torchvision

from nas.data import datasets, folder_layout
from nas.errors import InputError
from tests.data.folders import colours, folder_data, paint


def move_images_away(root):
    (root / "train/cat").rename(root / "train/dog/cat")
    (root / "train/cat").mkdir()


BAD = [  # what spoils a folder, and the sentence on it
    (lambda root: (root / "train").rename(root / "x"), r"--data-dir .*there is no folder .*train.*CLASS/IMAGE"),
    (
        lambda root: [folder.rename(root / folder.name) for folder in (root / "train").iterdir()],
        "holds 0 class folders",
    ),
    (
        lambda root: (root / "train/cat").rename(root / "cat"),
        "holds 1 class folder, but there must be 2 to 10,000: .*/CL",
    ),
    (
        lambda root: (root / "train/cat").rename(root / "train/b\n\x1b[2J"),
        r"class folder 'b\\n\\x1b\[2J' in .*; rename",
    ),
    (
        lambda root: (root / "train/cat").rename(root / "train" / os.fsdecode(b"\xe9")),
        r"folder '\\udce9' in .*; rename",
    ),
    (move_images_away, r"the class folder .*cat has no images; add some or remove it"),
    (lambda root: (root / "train/ant").mkdir(), r"the class folder .*ant has no images"),
    (lambda root: (root / "train/ant").symlink_to("gone"), r"train/ant is a broken link; repair or remove it"),
    (
        lambda root: (root / "train/cat/x\ny.jpg").write_text("x"),
        r"x\\ny\.jpg: cannot be read as an image \(unknown fo",
    ),
    (
        lambda root: (root / "train/cat/x.png").symlink_to("gone"),
        r"x\.png: cannot .*\(a broken link, or not a regular fi",
    ),
    (lambda root: os.mkfifo(root / "train/cat/x.png"), r"x\.png: cannot .*\(a broken link, or not a regular file\)"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD)
def test_a_bad_folder_is_one_sentence(tmp_path, spoil, sentence):
    spoil(folder_data(tmp_path))
    with pytest.raises(InputError, match=sentence) as error:
        datasets.load("folder", tmp_path, "train")
    assert "\n" not in str(error.value)


def test_limits_on_classes_and_names(tmp_path, monkeypatch):
    root = folder_data(tmp_path, ("train",), [f"class {number:04}" for number in range(1000)], num_images=1)
    split = datasets.load("folder", root, "train", image_size=8)
    assert split.targets.tolist() == list(range(1000))
    assert split.classes[999] == "class 0999"
    monkeypatch.setattr(datasets, "MAX_NAMES_BYTES", 13_999)
    with pytest.raises(
        InputError, match=r"names of the 1,000 classes take 14,000 bytes, but at most 13,999 can be kept"
    ):
        datasets.load("folder", root, "train", image_size=8)
    monkeypatch.setattr(folder_layout, "MAX_CLASSES", 999)
    with pytest.raises(InputError, match=r"train holds 1,000 class folders, but there must be 2 to 999"):
        datasets.load("folder", root, "train")
    with pytest.raises(InputError, match="there is no folder"):
        datasets.load("folder", tmp_path / ("a" * 300), "train")


def test_what_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"--data-dir .*train/cat cannot be read \(Permission denied\)"):
        datasets.load("folder", folder_data(tmp_path), "train")


def test_images_at_any_depth_are_those_that_torchvision_finds(tmp_path):
    root = folder_data(tmp_path / "images", size=(8, 8))
    for number, name in enumerate(["cat/b/z.png", "cat/b/deep/er/1.JPG", "cat/a.png/x.jpeg", "dog/A/a.tiff"]):
        paint(root / "train", name, colour=(200, number, 0))
    paint(tmp_path, "elsewhere/1.png", colour=(210, 0, 0))
    (root / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    split = datasets.load("folder", root, "train", image_size=8)
    expected = torchvision.datasets.ImageFolder(root / "train")
    assert (split.notes, split.classes) == ((), tuple(expected.classes))
    there = sorted((target, *image.getpixel((4, 4))[:2]) for image, target in expected)
    assert sorted(zip(split.targets.tolist(), *zip(*colours(split), strict=True), strict=True)) == there
    assert len(there) == 11


@pytest.mark.parametrize("goal", [".", "..", "../..", "../dog", "sub"])
def test_links_in_a_circle_neither_hang_nor_give_an_image_twice(tmp_path, goal):
    root = folder_data(tmp_path, ("train",), size=(8, 8))
    paint(root, "train/cat/sub/x.png")
    (root / "train/cat/sub/link").symlink_to(root / "train/cat" / goal)
    (root / "train/dog/back").symlink_to(root / "train/cat")
    split = datasets.load("folder", root, "train", image_size=8)
    assert split.targets.bincount().tolist() == [4 + 3 * (goal == "../dog"), 7]
    assert "cat/sub/link" in split.notes[-1]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (
            ["cat/Thumbs.db", "dog/desktop.ini"],
            "2 entries that are not images in a class folder: cat/Thumbs.db, dog/desk",
        ),
        (["cat/._0.png"], "1 entry that is not an image in a class folder: cat/._0.png"),
        (["__MACOSX/cat/x.png", "cat/@eaDir/0.png/SYNOFILE_THUMB_M.png"], "2 entries .*: __MACOSX, cat/@eaDir"),
        (["cat/.ipynb_checkpoints/0.png", ".cache/x.png"], "2 entries .*: .cache, cat/.ipynb_checkpoints"),
        (["x.png", "labels.csv"], "2 entries .*: labels.csv, x.png"),
        (["cat/README", "cat/a.txt", "cat/b.json", "dog/c/d.xml", "dog/e.PDF", "dog/f"], "6 entries .*, dog/e.PDF, …"),
    ],
)
def test_litter_is_left_out_with_one_line(tmp_path, names, line):
    root = folder_data(tmp_path, size=(8, 8))
    expected = datasets.load("folder", root, "train", image_size=8)
    paint(root / "train", *names)
    for _ in range(2):
        split = datasets.load("folder", root, "train", image_size=8)
        assert torch.equal(split.images, expected.images)
        (note,) = split.notes
        assert re.match(f"left out of {root}/train: {line}", note)


def test_images_without_a_suffix_are_read_where_a_class_has_no_others(tmp_path):
    root = folder_data(tmp_path, ("train",), size=(8, 8))
    paint(root / "train", "eel/0001", "eel/sub/img.0002", "eel/Thumbs.db")
    assert datasets.load("folder", root, "train", image_size=8).targets.bincount().tolist() == [3, 3, 2]
    (root / "train/eel/0003").write_text("no image")
    with pytest.raises(InputError, match=r"eel/0003: cannot be read as an image"):
        datasets.load("folder", root, "train")


def tree(root, *folders):
    """Folders in colours that tell which one it is: with the classes cat and dog, but with images alone after a !."""
    for number, name in enumerate(folders):
        files = ["0.png"] if name.startswith("!") else [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in "01"]
        paint(root / name.strip("!"), *files, colour=(10 * number, 0, 0))


HINT = "--skip-test --holdout-fraction 0.1 measures .*, and --test-fraction 0.2, given to search.py as well"


@pytest.mark.parametrize(
    ("folders", "note", "test"),
    [
        (["train", "test"], r"\(\)", 10),
        (["Training", "Testing"], "training images: .*/Training; test set: .*/Testing'", 10),
        (["TRAIN", "Valid"], "training images: .*/TRAIN; test set: .*/Valid'", 10),
        (["train", "val"], "training images: .*/train; test set: .*/val'", 10),
        (["train", "val", "test"], "/val is not used", 20),
        (["train", "val", "valid", "test"], "/val is not used.*/valid is not used", 30),
        (["train", "val", "!test"], "test set: .*/val'.*/test is not used", 10),
        (["train"], f"there is no folder .*/test, so train_final.py cannot measure a test accuracy: {HINT}", HINT),
        (["train", "!test"], f"/test has no class folders, so train_final.py .*: {HINT}", f"no class .*{HINT}"),
    ],
)
def test_it_is_said_which_folder_serves_as_what(tmp_path, folders, note, test):
    tree(tmp_path, *folders)
    split = datasets.load("folder", tmp_path, "train", image_size=8)
    assert colours(split) == [(0, 0)] * 4
    assert re.search(note, str(split.notes))
    if isinstance(test, int):
        assert colours(datasets.load("folder", tmp_path, "test", image_size=8)) == [(test, 0)] * 4
    else:
        with pytest.raises(InputError, match=test):
            datasets.load("folder", tmp_path, "test")


@pytest.mark.parametrize(
    ("folders", "fraction", "sentence"),
    [
        (["train", "val", "valid"], 0, "val and valid may each be the test images; keep only one of them there"),
        (["train", "test", "Testing"], 0, "Testing and test may each be the test images"),
        (["train", "training", "test"], 0, "train and training may each be the training images"),
        (["."], 0, "no folder .*/train; .*/CLASS/IMAGE, --test-fraction 0.2 holds back a fifth of each class"),
        (
            ["train", "test"],
            0.5,
            "--test-fraction 0.5: .*/test is already a test set; leave the flag out, or move that ",
        ),
        (["train", "val"], 0.5, "/val is already a test set; .* With --evaluate, add --test-fraction 0 to measure on"),
        (["!test", "."], 0.5, "no folder .*/train"),
        (["!cat", "!dog"], 0.5, "--test-fraction 0.5: no class in .* has the two images that it needs"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_folders_that_nobody_can_tell_apart_are_refused(tmp_path, folders, fraction, sentence, part):
    tree(tmp_path, *folders)
    with pytest.raises(InputError, match=sentence):
        datasets.load("folder", tmp_path, part, test_fraction=fraction)


@pytest.mark.parametrize("place", ["train", "."])
@pytest.mark.parametrize(("fraction", "held_back"), [(0.2, [2, 1, 0]), (0.01, [1, 1, 0]), (0.99, [9, 4, 0])])
def test_a_share_of_each_class_is_held_back_and_never_read_by_a_search(tmp_path, place, fraction, held_back):
    root = tmp_path / place
    for red, (name, count) in enumerate((("ant", 10), ("bee", 5), ("cat", 1))):
        for green in range(count):
            paint(root, f"{name}/sub/{green}.png", colour=(red, green, 0))
    paint(tmp_path, "test/unknown.png") if place == "train" else None
    test = datasets.load("folder", tmp_path, "test", image_size=8, test_fraction=fraction)
    assert test.targets.bincount(minlength=3).tolist() == held_back
    for red, green in colours(test):
        (root / ("ant", "bee", "cat")[red] / f"sub/{green}.png").write_bytes(b"damaged")
    train = datasets.load("folder", tmp_path, "train", image_size=8, test_fraction=fraction)
    assert sorted(colours(test) + colours(train)) == [(0, n) for n in range(10)] + [(1, n) for n in range(5)] + [(2, 0)]
    assert f"{sum(held_back)} of 16 images are held back as the test set (--test-fraction {fraction}" in train.notes[0]
    few = datasets.load("folder", tmp_path, "train", image_size=8, limit=4, seed=5, test_fraction=fraction)
    assert {*colours(few)} <= {*colours(train)}


def test_the_images_held_back_stay_nearly_the_same_when_images_are_added(tmp_path):
    root = folder_data(tmp_path, ("train",), num_images=20, size=(8, 8))
    before = datasets.load("folder", root, "test", image_size=8, test_fraction=0.25)
    paint(root / "train", *(f"cat/!{number}.png" for number in range(4)), colour=(50, 250, 0))
    after = datasets.load("folder", root, "test", image_size=8, test_fraction=0.25)
    assert (len(before.targets), len(after.targets)) == (10, 11)
    assert len({*colours(before)} & {*colours(after)}) >= 8
