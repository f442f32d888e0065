"""Which files of a folder are images, of which class and part, and what is said of it."""

import os
import re

import pytest
import torch
import torchvision

from nas.data import datasets, folder_layout
from nas.errors import InputError
from tests.data.folders import colours, folder_data, paint


def load(root, part="train", **options):
    return datasets.load("folder", root, part, image_size=8, **options)


def move_images_away(root):
    (root / "train/cat").rename(root / "train/dog/cat")
    (root / "train/cat").mkdir()


def renamed(before, after):
    return lambda root: (root / before).rename(root / after)


BAD = [  # what spoils a folder, and the sentence on it
    (renamed("train", "x"), r"--data-dir .*there is no folder .*train.*CLASS/IMAGE"),
    (lambda root: [path.rename(root / path.name) for path in (root / "train").iterdir()], "holds 0 class folders"),
    (renamed("train/cat", "cat"), "holds 1 class folder, but there must be 2 to 10,000: .*/CL"),
    (renamed("train/cat", "train/b\n\x1b[2J"), r"class folder 'b\\n\\x1b\[2J' in .*; rename"),
    (renamed("train/cat", os.fsdecode(b"train/\xe9")), r"folder '\\udce9' in .*; rename"),
    (move_images_away, r"the class folder .*cat has no images; add some or remove it"),
    (lambda root: (root / "train/ant").symlink_to("gone"), r"train/ant is a broken link; repair or remove it"),
    (lambda root: (root / "train/cat/x\ny.jpg").write_text("x"), r"x\\ny\.jpg: cannot be read .* \(unknown fo"),
    (lambda root: (root / "train/cat/x.png").symlink_to("gone"), r"x\.png: .*\(a broken link, or not a regular fi"),
    (lambda root: os.mkfifo(root / "train/cat/x.png"), r"x\.png: cannot .*\(a broken link, or not a regular file\)"),
]


@pytest.mark.parametrize(("spoil", "sentence"), BAD)
def test_a_bad_folder_is_one_sentence(tmp_path, spoil, sentence):
    spoil(folder_data(tmp_path))
    with pytest.raises(InputError, match=sentence) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_limits_on_classes_and_names(tmp_path, monkeypatch):
    root = folder_data(tmp_path, ("train",), [f"class {number:02}" for number in range(100)], num_images=1)
    monkeypatch.setattr(folder_layout, "MAX_CLASSES", 100)
    split = load(root)
    assert split.targets.tolist() == list(range(100))
    assert split.classes[99] == "class 99"
    monkeypatch.setattr(datasets, "MAX_NAMES_BYTES", 1199)
    with pytest.raises(InputError, match="names of the 100 classes take 1,200 bytes, but at most 1,199 can be kept"):
        load(root)
    monkeypatch.setattr(folder_layout, "MAX_CLASSES", 99)
    with pytest.raises(InputError, match=r"train holds 100 class folders, but there must be 2 to 99"):
        load(root)
    with pytest.raises(InputError, match="there is no folder"):
        load(tmp_path / ("a" * 300))


def test_what_cannot_be_listed_is_named(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"--data-dir .*train/cat cannot be read \(Permission denied\)"):
        load(folder_data(tmp_path))


def test_images_at_any_depth_are_those_that_torchvision_finds(tmp_path):
    root = folder_data(tmp_path / "images", size=(8, 8))
    for number, name in enumerate(["cat/b/z.png", "cat/b/deep/er/1.JPG", "cat/a.png/x.jpeg", "dog/A/a.tiff"]):
        paint(root / "train", name, colour=(200, number, 0))
    paint(tmp_path, "elsewhere/1.png", colour=(210, 0, 0))
    (root / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    split = load(root)
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
    split = load(root)
    assert split.targets.bincount().tolist() == [4 + 3 * (goal == "../dog"), 7]
    assert "cat/sub/link" in split.notes[-1]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["cat/Thumbs.db", "dog/desktop.ini"], "2 entries that are not images in a class folder: cat/Thumbs.db, dog/d"),
        (["cat/._0.png"], "1 entry that is not an image in a class folder: cat/._0.png"),
        (["__MACOSX/cat/x.png", "cat/@eaDir/0.png/SYNOFILE_THUMB_M.png"], "2 entries .*: __MACOSX, cat/@eaDir"),
        (["cat/.ipynb_checkpoints/0.png", ".cache/x.png"], "2 entries .*: .cache, cat/.ipynb_checkpoints"),
        (["x.png", "labels.csv"], "2 entries .*: labels.csv, x.png"),
        (["cat/README", "cat/a.txt", "cat/b.json", "dog/c/d.xml", "dog/e.PDF", "dog/f"], "6 entries .*, dog/e.PDF, …"),
    ],
)
def test_litter_is_left_out_with_one_line(tmp_path, names, line):
    root = folder_data(tmp_path, size=(8, 8))
    expected = load(root)
    paint(root / "train", *names)
    for _ in range(2):
        split = load(root)
        assert torch.equal(split.images, expected.images)
        (note,) = split.notes
        assert re.match(f"left out of {root}/train: {line}", note)


def test_images_without_a_suffix_are_read_where_a_class_has_no_others(tmp_path):
    root = folder_data(tmp_path, ("train",), size=(8, 8))
    paint(root / "train", "eel/0001", "eel/sub/img.0002", "eel/Thumbs.db")
    assert load(root).targets.bincount().tolist() == [3, 3, 2]
    (root / "train/eel/0003").write_text("no image")
    with pytest.raises(InputError, match=r"eel/0003: cannot be read as an image"):
        load(root)


def tree(root, *folders):
    """Folders in colours that tell which one it is: with the classes cat and dog, but with images alone after a !."""
    for number, name in enumerate(folders):
        files = ["0.png"] if name.startswith("!") else [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in "01"]
        paint(root / name.strip("!"), *files, colour=(10 * number, 0, 0))


HINT = "with train_final.py, --skip-test .* measures .*, and --test-fraction 0.2, given to search.py as well"


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
    split = load(tmp_path)
    assert colours(split) == [(0, 0)] * 4
    assert re.search(note, str(split.notes))
    if isinstance(test, int):
        assert colours(load(tmp_path, "test")) == [(test, 0)] * 4
    else:
        with pytest.raises(InputError, match=test):
            load(tmp_path, "test")


@pytest.mark.parametrize(
    ("folders", "fraction", "sentence"),
    [
        (["train", "val", "valid"], 0, "val and valid may each be the test images; keep only one of them there"),
        (["train", "test", "Testing"], 0, "Testing and test may each be the test images"),
        (["train", "training", "test"], 0, "train and training may each be the training images"),
        (["."], 0, "no folder .*/train; .*/CLASS/IMAGE, --test-fraction 0.2 holds back a fifth of each class"),
        (["train", "test"], 0.5, "--test-fraction 0.5: .*/test is already a test set; leave the flag out, or move"),
        (["train", "val"], 0.5, "/val is already a test set; .* With --evaluate, add --test-fraction 0 to measure on"),
        (["!test", "."], 0.5, "no folder .*/train"),
        (["!cat", "!dog"], 0.5, "--test-fraction 0.5: no class in .* has the two images that it needs"),
    ],
)
@pytest.mark.parametrize("part", ["train", "test"])
def test_folders_that_nobody_can_tell_apart_are_refused(tmp_path, folders, fraction, sentence, part):
    tree(tmp_path, *folders)
    with pytest.raises(InputError, match=sentence):
        load(tmp_path, part, test_fraction=fraction)


@pytest.mark.parametrize("place", ["train", "."])
@pytest.mark.parametrize(("fraction", "held_back"), [(0.2, [2, 1, 0]), (0.01, [1, 1, 0]), (0.99, [9, 4, 0])])
def test_a_share_of_each_class_is_held_back_and_never_read_by_a_search(tmp_path, place, fraction, held_back):
    root = tmp_path / place
    for red, (name, count) in enumerate((("ant", 10), ("bee", 5), ("cat", 1))):
        for green in range(count):
            paint(root, f"{name}/sub/{green}.png", colour=(red, green, 0))
    paint(tmp_path, "test/unknown.png") if place == "train" else None
    test = load(tmp_path, "test", test_fraction=fraction)
    assert test.targets.bincount(minlength=3).tolist() == held_back
    for red, green in colours(test):
        (root / ("ant", "bee", "cat")[red] / f"sub/{green}.png").write_bytes(b"damaged")
    train = load(tmp_path, test_fraction=fraction)
    assert sorted(colours(test) + colours(train)) == [(0, n) for n in range(10)] + [(1, n) for n in range(5)] + [(2, 0)]
    assert f"{sum(held_back)} of 16 images are held back as the test set (--test-fraction {fraction}" in train.notes[0]
    few = load(tmp_path, limit=4, seed=5, test_fraction=fraction)
    assert {*colours(few)} <= {*colours(train)}


def test_the_images_held_back_stay_nearly_the_same_when_images_are_added(tmp_path):
    root = folder_data(tmp_path, ("train",), num_images=20, size=(8, 8))
    before = load(root, "test", test_fraction=0.25)
    paint(root / "train", *(f"cat/!{number}.png" for number in range(4)), colour=(50, 250, 0))
    after = load(root, "test", test_fraction=0.25)
    assert (len(before.targets), len(after.targets)) == (10, 11)
    assert len({*colours(before)} & {*colours(after)}) >= 8
