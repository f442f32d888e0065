import hashlib
import json
import os
import re
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import train_final
from nas.config.flags import Data, TrainedOn
from nas.data import datasets, image_folder
from nas.errors import InputError, Stopped
from tests.in_process import call


def folder_data(root, parts=("train", "test"), classes=("cat", "dog"), num_images=3, size=(12, 9), suffix="png"):
    """An image folder in which an image's red channel tells its class, and green its number."""
    for part in parts:
        for red, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for green in range(num_images):
                colour = (100 * red + 50, 12 * green, 0)
                Image.new("RGB", size, colour).save(root / part / name / f"{green}.{suffix}")
    return root


def test_folder_of_any_format_and_size(tmp_path):
    root = folder_data(tmp_path, parts=("train",), suffix="png")
    Image.new("L", (40, 10), 7).save(root / "train" / "cat" / "grey.gif")
    Image.new("RGBA", (8, 8), (1, 2, 3, 4)).save(root / "train" / "dog" / "clear.webp", lossless=True)
    Image.new("RGB", (30, 30)).convert("P").save(root / "train" / "dog" / "palette.bmp")
    Image.new("RGB", (64, 64), (9, 8, 7)).save(root / "train" / "dog" / "photo.jpg")
    (root / "train" / "dog" / ".DS_Store").write_bytes(b"not an image")
    (root / "train" / ".cache").mkdir()
    split = datasets.load("folder", root, "train", image_size=16)
    assert split.images.shape == (10, 3, 16, 16)
    assert split.classes == ("cat", "dog")
    assert split.targets.tolist() == [0] * 4 + [1] * 6
    assert (split.images[0, 0] == 50).all()
    assert (split.images[split.targets == 0][3] == 7).all()  # grey becomes RGB


def test_folder_crops_about_the_centre_and_turns_upright(tmp_path):
    root = folder_data(tmp_path, parts=("train",))
    wide = Image.new("RGB", (32, 16), (255, 0, 0))
    wide.paste((0, 255, 0), (8, 0, 24, 16))
    wide.save(root / "train" / "cat" / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = Image.new("RGB", (16, 16), (0, 0, 0))
    turned.paste((255, 255, 255), (0, 0, 16, 8))
    turned.save(root / "train" / "cat" / "z.jpg", exif=exif, quality=100)
    images = datasets.load("folder", root, "train", image_size=16).images
    assert (images[3] == torch.tensor([0, 255, 0], dtype=torch.uint8)[:, None, None]).all()
    assert images[4, 0, :, 12:].min() > 200
    assert images[4, 0, :, :4].max() < 50


def read(path, image, resize="crop", **options):
    """An image as it comes out, 16 × 16, after it went through a file in a folder of two classes."""
    for name in ("own", "same"):
        (path.parent / "train" / name).mkdir(parents=True, exist_ok=True)
        image.save(path.parent / "train" / name / path.name, **options)
    return datasets.load("folder", path.parent, "train", image_size=16, resize=resize).images[0]


def with_middle(mode, outside, inside):
    image = Image.new(mode, (16, 16), outside)
    image.paste(inside, (4, 4, 12, 12))
    return image


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_grey_of_16_bits_keeps_its_brightness(tmp_path, name):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    pixels = read(tmp_path / name, Image.fromarray(ramp))
    assert (pixels == torch.from_numpy((ramp >> 8).astype(np.uint8))).all()
    assert pixels.unique().numel() == 256


def test_16_bits_are_turned_upright_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = read(
        tmp_path / "a.tif", Image.fromarray(np.repeat([[60000], [0]], 8, 0).repeat(16, 1).astype(np.uint16)), exif=exif
    )
    assert pixels[0, :, 9:].min() == 60000 >> 8
    assert pixels[0, :, :7].max() == 0


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bits_a_pixel_are_refused_as_nothing_says_what_is_white(tmp_path, kind):
    with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image \(signed, or 32 bits"):
        read(tmp_path / "a.tif", Image.fromarray(np.ones((9, 9), kind)))


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (with_middle("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), {}),
        (with_middle("LA", (0, 0), (0, 255)), {}),
        (with_middle("L", 7, 0), {"transparency": 7}),
        (with_middle("RGB", (9, 8, 7), (0, 0, 0)), {"transparency": (9, 8, 7)}),
        (with_middle("RGB", (9, 8, 7), (0, 0, 0)).quantize(2), {"transparency": 0}),
        (with_middle("RGB", (9, 8, 7), (0, 0, 0)).quantize(2), {"transparency": b"\0\xff"}),
    ],
)
def test_what_is_transparent_becomes_white_as_on_paper(tmp_path, image, options):
    expected = torch.from_numpy(np.array(with_middle("RGB", (255, 255, 255), (0, 0, 0)))).permute(2, 0, 1)
    with warnings.catch_warnings(action="error"):
        assert torch.equal(read(tmp_path / "a.png", image, **options), expected)


def test_printers_colours_become_those_of_a_screen(tmp_path):
    for name in ("a.jpg", "a.tif"):
        pixels = read(tmp_path / name / name, Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
        assert (pixels[0].min(), pixels[1:].max()) == (255, 0)


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_picture_is_taken(tmp_path, suffix):
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    pixels = read(tmp_path / f"a.{suffix}", first, save_all=True, append_images=[second])
    assert pixels[0].min() > 240
    assert pixels[1:].max() < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 3000), (3, 2)])
def test_any_shape_fills_the_square(tmp_path, size):
    assert (read(tmp_path / "a.png", Image.new("L", size, 200)) == 200).all()


def test_a_folder_of_grey_images_has_the_shape_of_one_with_colour(tmp_path):
    for part in ("train", "test"):
        for name in ("ant", "bee"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(4):
                Image.new("L", (8, 8), 40 * number).save(tmp_path / part / name / f"{number}.png")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "train/bee/colour.png")
    train, test = (datasets.load("folder", tmp_path, part, image_size=8) for part in ("train", "test"))
    assert train.images.shape == (9, 3, 8, 8)
    assert test.images.shape == (8, 3, 8, 8)
    assert all(torch.equal(test.images[:, channel], test.images[:, 0]) for channel in (1, 2))


def test_a_large_photograph_is_read_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # Pillow warns from there on, and refuses from twice as many on
    with warnings.catch_warnings(action="error"):
        read(tmp_path / "a.png", Image.new("L", (16, 16)))


def test_postscript_is_never_run(tmp_path, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    with pytest.raises(InputError, match="PostScript is a program, and not run"):
        read(tmp_path / "a.eps", Image.new("RGB", (9, 9)))


@pytest.mark.parametrize(
    "error", [RuntimeError("no\nluck"), NotImplementedError(), MemoryError(), EOFError(), KeyError(3)]
)
def test_whatever_a_decoder_raises_is_one_sentence(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(image_folder.ImageOps, "exif_transpose", fail)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image") as refused:
        read(tmp_path / "a.png", Image.new("L", (9, 9)))
    assert str(refused.value).isprintable()
    assert "()" not in str(refused.value)


def test_a_signal_while_an_image_is_read_stops_the_run(tmp_path, monkeypatch):
    def terminate(*_):
        raise Stopped("by SIGTERM.", 143)

    root = folder_data(tmp_path)
    monkeypatch.setattr(image_folder.ImageOps, "exif_transpose", terminate)
    with pytest.raises(Stopped, match="by SIGTERM"):
        datasets.load("folder", root, "train", skip_bad=True)


def test_search_never_opens_the_test_folder(tmp_path):
    root = folder_data(tmp_path)
    (root / "test" / "cat" / "0.png").write_bytes(b"damaged")
    assert len(datasets.load("folder", root, "train").targets) == 6
    with pytest.raises(InputError, match=r"0\.png"):
        datasets.load("folder", root, "test")


def test_limit_reads_no_other_image(tmp_path):
    root = folder_data(tmp_path, parts=("train",), num_images=20)
    chosen = datasets.load("folder", root, "train", limit=4, seed=3)
    read = {(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in chosen.images}
    for red, name in enumerate(("cat", "dog")):
        for green in range(20):
            if (100 * red + 50, 12 * green) not in read:
                path = root / "train" / name / f"{green}.png"
                path.write_bytes(b"damaged")
    assert torch.equal(datasets.load("folder", root, "train", limit=4, seed=3).images, chosen.images)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: None, r"--data-dir .*there is no folder .*train.*CLASS/IMAGE"),
        (lambda root: (root / "train").mkdir(), r"holds 0 class folders, but two at least"),
        (lambda root: (root / "train" / "cat").mkdir(parents=True), r"holds 1 class folder, but two at least"),
        (lambda root: folder_data(root, classes=("a", "b\n\x1b[2J")), r"class folder 'b\\n\\x1b\[2J' in .*; rename it"),
        (
            lambda root: folder_data(root, classes=("a", os.fsdecode(b"caf\xe9"))),
            r"class folder 'caf\\udce9' in .*; rename it",
        ),
        (
            lambda root: (
                folder_data(root)
                and (root / "train/cat").rename(root / "train/dog/cat")
                and (root / "train/cat").mkdir()
            ),
            r"class .*cat holds no image; add some",
        ),
        (
            lambda root: folder_data(root) and (root / "train/cat/x\ny.jpg").write_text("hello"),
            r"x\\ny\.jpg: cannot be read as an image \(of no known format\)",
        ),
        (lambda root: folder_data(root) and (root / "train" / "ant").mkdir(), r"class .*ant holds no image"),
        (
            lambda root: folder_data(root) and (root / "train" / "ant").symlink_to("gone"),
            r"train/ant is a link to what is not there; mend or remove it",
        ),
        (
            lambda root: folder_data(root) and (root / "train" / "cat" / "x.png").symlink_to("gone"),
            r"x\.png: cannot be read as an image \(a link to what is not there, or no regular file\)",
        ),
        (
            lambda root: folder_data(root) and os.mkfifo(root / "train" / "cat" / "x.png") is None,
            r"x\.png: cannot be read as an image \(a link to what is not there, or no regular file\)",
        ),
        (
            lambda root: folder_data(root) and (root / "train" / "cat" / "x.jpg").write_text("hello"),
            r"x\.jpg: cannot be read as an image",
        ),
    ],
)
def test_a_bad_folder_is_one_sentence(tmp_path, spoil, sentence):
    spoil(tmp_path)
    with pytest.raises(InputError, match=sentence) as error:
        datasets.load("folder", tmp_path, "train")
    assert "\n" not in str(error.value)


def test_more_classes_than_can_be_read_back_are_refused(tmp_path, monkeypatch):
    root = folder_data(tmp_path)
    monkeypatch.setattr(image_folder, "MAX_CLASSES", 1)
    with pytest.raises(InputError, match=r"train holds 2 class folders; 1 at most are read"):
        datasets.load("folder", root, "train")


def test_names_that_a_run_could_not_read_back_are_refused(tmp_path, monkeypatch):
    root = folder_data(tmp_path, classes=("ä" * 20, "b" * 20))
    monkeypatch.setattr(datasets, "MAX_NAMES_BYTES", 67)
    with pytest.raises(InputError, match=r"the names of the 2 classes take 68 bytes, of which 67 can be kept"):
        datasets.load("folder", root, "train")


def test_what_cannot_be_listed_is_named(tmp_path, monkeypatch):
    root = folder_data(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_folder.os, "scandir", refuse)
    with pytest.raises(InputError, match=r"--data-dir .*train/cat cannot be read \(Permission denied\)"):
        datasets.load("folder", root, "train")


def test_a_name_that_is_too_long_is_no_folder(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        datasets.load("folder", tmp_path / ("a" * 300), "train")


def test_more_than_fits_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch, num_read):
    root = folder_data(tmp_path)
    monkeypatch.setattr(image_folder, "MAX_BYTES", 5 * 3 * 16 * 16)
    with pytest.raises(InputError, match=r"--image-size 16: 6 images of this size take .* GiB can be held here"):
        datasets.load("folder", root, "train", image_size=16)
    assert num_read == []
    assert len(datasets.load("folder", root, "train", image_size=16, limit=5).targets) == 5


def test_a_pipe_in_the_place_of_the_cache_is_not_waited_for(tmp_path):
    root = folder_data(tmp_path)
    os.mkfifo(root / ".nas-train-16.safetensors")
    assert len(datasets.load("folder", root, "train", image_size=16).targets) == 6


def test_a_thousand_class_folders(tmp_path):
    classes = tuple(f"class {number:04}" for number in range(1000))
    split = datasets.load("folder", folder_data(tmp_path, ("train",), classes, num_images=1), "train", image_size=8)
    assert split.classes == classes
    assert split.targets.tolist() == list(range(1000))


def test_an_image_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    root = folder_data(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InputError, match=r"0\.png: cannot be read as an image .*decompression bomb"):
        datasets.load("folder", root, "train")


@pytest.fixture
def num_read(monkeypatch):
    """How many image files were opened, by the number of entries."""
    paths = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda path: [paths.append(path), read(path)][1])
    return paths


def test_the_second_load_opens_no_image(tmp_path, num_read, capsys):
    root = folder_data(tmp_path)
    first = datasets.load("folder", root, "train", image_size=16)
    assert len(num_read) == 6
    cache = root / ".nas-train-16.safetensors"
    assert str(cache) in capsys.readouterr().out
    second = datasets.load("folder", root, "train", image_size=16)
    assert len(num_read) == 6
    assert capsys.readouterr().out == ""
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.targets, second.targets)
    assert first.classes == second.classes
    limited = datasets.load("folder", root, "train", image_size=16, limit=2, seed=1)
    assert len(num_read) == 6
    assert [row.tolist() in first.images[:, :, 8, 8].tolist() for row in limited.images[:, :, 8, 8]] == [True, True]
    assert sorted(path.name for path in root.iterdir()) == [cache.name, "test", "train"]


def test_other_parts_and_sizes_have_caches_of_their_own(tmp_path):
    root = folder_data(tmp_path)
    for part, size in (("train", 16), ("test", 16), ("train", 8)):
        assert datasets.load("folder", root, part, image_size=size).images.shape == (6, 3, size, size)
    names = {path.name for path in root.glob(".nas-*")}
    assert names == {f".nas-{name}.safetensors" for name in ("train-16", "test-16", "train-8")}


def test_a_limited_load_leaves_no_cache(tmp_path, num_read):
    root = folder_data(tmp_path)
    datasets.load("folder", root, "train", image_size=16, limit=4)
    assert len(num_read) == 4
    assert list(root.glob(".nas-*")) == []


def change(path):
    Image.new("RGB", (12, 9), (1, 2, 3)).save(path)


def same_size_another_time(path):
    """Another image in as many bytes; its time of change is the only trace."""
    status = path.stat()
    Image.new("RGB", (12, 9)).save(path)
    content = path.read_bytes()
    assert len(content) <= status.st_size
    path.write_bytes(content.ljust(status.st_size, b"\0"))  # what follows a PNG is not read
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def same_time_another_size(path):
    time = path.stat().st_mtime_ns
    Image.new("RGB", (700, 900), (1, 2, 3)).save(path)
    os.utime(path, ns=(time, time))


@pytest.mark.parametrize(
    "alter",
    [
        change,
        same_size_another_time,
        same_time_another_size,
        lambda path: path.unlink(),
        lambda path: change(path.with_name("new.png")),
        lambda path: path.rename(path.with_name("9.png")),
        lambda path: path.parent.rename(path.parent.with_name("eel")),
        lambda path: path.rename(path.parent.with_name("dog") / "9.png"),
    ],
)
def test_a_changed_folder_is_read_anew(tmp_path, num_read, alter):
    root = folder_data(tmp_path)
    datasets.load("folder", root, "train", image_size=16)
    alter(root / "train" / "cat" / "0.png")
    num_read.clear()
    split = datasets.load("folder", root, "train", image_size=16)
    assert len(num_read) == len(split.targets)
    (root / ".nas-train-16.safetensors").unlink()
    fresh = datasets.load("folder", root, "train", image_size=16)
    assert torch.equal(split.images, fresh.images)
    assert torch.equal(split.targets, fresh.targets)
    assert split.classes == fresh.classes


def rewrite(path, name="images", fingerprint=None, change_images=lambda images: images):
    """The cache with one thing other than it should be."""
    with safe_open(path, framework="pt") as file:
        metadata, about = file.metadata(), file.get_tensor("about")
        images = change_images(file.get_tensor("images"))
    metadata |= {"fingerprint": fingerprint} if fingerprint else {}
    save_file({name: images, "about": about}, path, metadata)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
        lambda path: path.write_bytes(b"\xff" * 100),
        lambda path: path.write_bytes(b"\x80\x04" + path.read_bytes()),
        lambda path: rewrite(path, name="pictures"),
        lambda path: rewrite(path, fingerprint="0" * 32),
        lambda path: rewrite(path, change_images=lambda images: images[1:].clone()),
        lambda path: rewrite(path, change_images=lambda images: images.view(torch.int8).clone()),
        lambda path: rewrite(path, change_images=lambda images: images.zero_()),
        lambda path: save_file({"images": torch.zeros(6, 3, 16, 16, dtype=torch.uint8)}, path),
    ],
)
def test_a_damaged_cache_is_made_anew(tmp_path, num_read, damage):
    root = folder_data(tmp_path)
    first = datasets.load("folder", root, "train", image_size=16)
    damage(root / ".nas-train-16.safetensors")
    num_read.clear()
    for _ in range(2):
        assert torch.equal(datasets.load("folder", root, "train", image_size=16).images, first.images)
        assert len(num_read) == 6


def test_where_no_cache_can_be_written_the_images_are_read_all_the_same(tmp_path, num_read, capsys):
    root = folder_data(tmp_path)
    (root / ".nas-train-16.safetensors" / "in the way").mkdir(parents=True)
    for _ in range(2):
        assert datasets.load("folder", root, "train", image_size=16).images.shape == (6, 3, 16, 16)
        assert ".nas-train-16.safetensors cannot be written" in capsys.readouterr().out
    assert len(num_read) == 12
    assert sorted(path.name for path in root.iterdir()) == [".nas-train-16.safetensors", "test", "train"]


# Bad images


def spoil(root, *names):
    for name in names:
        (root / "train" / name).write_bytes(b"\x89PNG no more")


def test_a_bad_image_ends_the_run_by_name_and_the_flag_is_named(tmp_path):
    root = folder_data(tmp_path)
    spoil(root, "dog/1.png")
    with pytest.raises(InputError, match=r"train/dog/1\.png: cannot be read as an image .*--skip-bad-images") as error:
        datasets.load("folder", root, "train")
    assert "\n" not in str(error.value)


def test_bad_images_can_be_left_out_and_are_counted_and_named(tmp_path):
    root = folder_data(tmp_path)
    whole = datasets.load("folder", root, "train", image_size=16)
    spoil(root, "cat/0.png", "dog/1.png")
    for _ in range(2):  # no cache hides them the second time
        split = datasets.load("folder", root, "train", image_size=16, skip_bad=True)
        assert f"left out 2 of 6 files: {root / 'train/cat/0.png'}, {root / 'train/dog/1.png'}" in split.notes
        assert torch.equal(split.images, whole.images[[1, 2, 3, 5]])
        assert split.targets.tolist() == [0, 0, 1, 1]
        assert split.classes == ("cat", "dog")
    with pytest.raises(InputError, match=r"cat/0\.png"):
        datasets.load("folder", root, "train", image_size=16)


def test_many_bad_images_are_counted_and_some_are_named(tmp_path):
    root = folder_data(tmp_path, num_images=9)
    spoil(root, *(f"cat/{index}.png" for index in range(8)))
    note = str(datasets.load("folder", root, "train", skip_bad=True).notes)
    assert "left out 8 of 18 files: " in note
    assert note.count("cat/") == 5


def test_bad_images_among_those_that_were_drawn_are_left_out(tmp_path):
    root = folder_data(tmp_path, num_images=20)
    whole = datasets.load("folder", root, "train", limit=8, seed=3)
    spoil(root, f"{whole.classes[int(whole.targets[0])]}/{int(whole.images[0, 1, 0, 0]) // 12}.png")
    split = datasets.load("folder", root, "train", limit=8, seed=3, skip_bad=True)
    assert "left out 1 of 8 files" in str(split.notes)
    assert torch.equal(split.images, whole.images[1:])
    assert torch.equal(split.targets, whole.targets[1:])


def test_a_class_of_bad_images_alone_is_refused(tmp_path):
    root = folder_data(tmp_path)
    spoil(root, "cat/0.png", "cat/1.png", "cat/2.png")
    with pytest.raises(InputError, match=r"--skip-bad-images: no image is left of the class .*train/cat\."):
        datasets.load("folder", root, "train", skip_bad=True)


def test_good_images_are_kept_in_the_cache_whatever_the_flag(tmp_path, num_read):
    root = folder_data(tmp_path)
    for _ in range(2):
        split = datasets.load("folder", root, "train", skip_bad=True)
        assert len(split.targets) == 6
        assert "left out" not in str(split.notes)
    assert len(num_read) == 6


# As a user does


SMALL = ["--dataset=folder", "--data-dir=images", "--image-size=8", "--init-channels=2", "--num-cells=2", "--epochs=1"]
SMALL += ["--name=run", "--batch-size=64", "--balanced"]
SHORT = {
    "search": [*SMALL, "--num-nodes=1", "--hypergradient=first-order"],
    "train_final": [*SMALL, "--genotype=DARTS_V2"],
}


@pytest.mark.parametrize("script", SHORT)
def test_both_scripts_run_on_a_thousand_folders_one_of_which_has_more_images(script, tmp_path):
    classes = [f"{number:03}" for number in range(1000)]
    folder_data(tmp_path / "images", ("train",), classes, num_images=2, size=(8, 8))
    folder_data(tmp_path / "images", ("test",), classes, num_images=1, size=(8, 8))
    Image.new("L", (9, 7)).save(tmp_path / "images/train/007/more.png")
    Image.new("L", (7, 9)).save(tmp_path / "images/train/007/still more.png")
    assert call(script, tmp_path, *SHORT[script]) == 0
    log = (tmp_path / "runs/run/log.txt").read_text()
    assert "3 × 8 × 8, 1000 classes" in log
    assert "classes differ in size: 2 of '000', 4 of '007'; each class is drawn as often" in log


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_class_that_is_in_one_part_alone_is_named(part, tmp_path, capfd):
    root = folder_data(tmp_path / "images")
    shutil.copytree(root / "train/cat", root / part / "eel")
    assert call("train_final", tmp_path, *SHORT["train_final"]) == 2
    error = capfd.readouterr().err
    assert "--data-dir images: training and test images differ in their classes (eel); give both the same" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


# Folders as people have them


def paint(root, *names, colour=(9, 9, 9)):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), colour).save(root / name, "PNG")


def colours(split):
    """The red and green of each image: its class and its number."""
    return [tuple(image[:2, 4, 4].tolist()) for image in split.images]


def test_images_at_any_depth_are_those_that_torchvision_finds(tmp_path):
    root = folder_data(tmp_path / "images", size=(8, 8))
    for number, name in enumerate(["cat/b/z.png", "cat/b/deep/er/1.JPG", "cat/a.png/x.jpeg", "dog/A/a.tiff"]):
        paint(root / "train", name, colour=(200, number, 0))
    paint(tmp_path, "elsewhere/1.png", colour=(210, 0, 0))
    (root / "train/cat/linked").symlink_to(tmp_path / "elsewhere")
    split = datasets.load("folder", root, "train", image_size=8)
    expected = torchvision.datasets.ImageFolder(root / "train")
    assert split.notes == ()
    assert split.classes == tuple(expected.classes)
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
            "2 entries that are no images in a class folder: cat/Thumbs.db, dog/desk",
        ),
        (["cat/._0.png"], "1 entry that is no image in a class folder: cat/._0.png"),
        (["__MACOSX/cat/x.png", "cat/@eaDir/0.png/SYNOFILE_THUMB_M.png"], "2 entries .*: __MACOSX, cat/@eaDir"),
        (["cat/.ipynb_checkpoints/0.png", ".cache/x.png"], "2 entries .*: .cache, cat/.ipynb_checkpoints"),
        (["x.png", "labels.csv"], "2 entries .*: labels.csv, x.png"),
        (
            ["cat/README", "cat/a.txt", "cat/b.json", "dog/c/d.xml", "dog/e.PDF", "dog/f"],
            "6 entries .*, dog/c/d.xml, dog/e.PDF, …",
        ),
    ],
)
def test_litter_is_left_out_with_one_line(tmp_path, names, line):
    root = folder_data(tmp_path, size=(8, 8))
    expected = datasets.load("folder", root, "train", image_size=8)
    paint(root / "train", *names)
    for _ in range(2):
        split = datasets.load("folder", root, "train", image_size=8)
        assert torch.equal(split.images, expected.images)
        assert len(split.notes) == 1
        assert re.match(f"left out of {root}/train: {line}", split.notes[0])


def test_images_without_a_suffix_are_read_where_a_class_has_no_others(tmp_path):
    root = folder_data(tmp_path, ("train",), size=(8, 8))
    paint(root / "train", "eel/0001", "eel/sub/img.0002", "eel/Thumbs.db")
    split = datasets.load("folder", root, "train", image_size=8)
    assert split.targets.bincount().tolist() == [3, 3, 2]
    (root / "train/eel/0003").write_text("no image")
    with pytest.raises(InputError, match=r"eel/0003: cannot be read as an image"):
        datasets.load("folder", root, "train")


def tree(root, *folders):
    """Folders in colours that tell which one it is: with the classes cat and dog, but with images alone after a !."""
    for number, name in enumerate(folders):
        images = (
            ["0.png"] if name.startswith("!") else [f"{kind}/{index}.png" for kind in ("cat", "dog") for index in "01"]
        )
        paint(root / name.strip("!"), *images, colour=(10 * number, 0, 0))


HINT = "--skip-test --holdout-fraction 0.1 measures .*, and --test-fraction 0.2, given to search.py as well"


@pytest.mark.parametrize(
    ("folders", "note", "test"),
    [
        (["train", "test"], r"\(\)", 10),
        (["Training", "Testing"], "/Training holds the training images, and .*/Testing serves as the test set", 10),
        (["TRAIN", "Valid"], "/TRAIN holds the training images, and .*/Valid serves as the test set", 10),
        (["train", "val"], "/train holds the training images, and .*/val serves as the test set", 10),
        (["train", "val", "test"], "/val is not used", 20),
        (["train", "val", "valid", "test"], "/val is not used.*/valid is not used", 30),
        (["train", "val", "!test"], "/val serves as the test set.*/test is not used", 10),
        (["train"], f"there is no folder .*/test, so that train_final.py cannot measure a test accuracy: {HINT}", HINT),
        (["train", "!test"], f"/test holds no class folders, so that train_final.py .*: {HINT}", f"no class .*{HINT}"),
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
        (["train", "val", "valid"], 0, "val and valid might each be the test images; keep one of them there"),
        (["train", "test", "Testing"], 0, "Testing and test might each be the test images"),
        (["train", "training", "test"], 0, "train and training might each be the training images"),
        (["."], 0, "no folder .*/train; .*IMAGE alone, --test-fraction 0.2 holds back a fifth of each class"),
        (["train", "test"], 0.5, "--test-fraction 0.5: .*/test is the test set already; leave the flag out"),
        (["train", "val"], 0.5, "/val is the test set already"),
        (["!test", "."], 0.5, "no folder .*/train"),
        (["!cat", "!dog"], 0.5, "--test-fraction 0.5: no class in .* has the two images it takes"),
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


# Squares


def bars(width, height):
    """Black ends, white between them along the longer side."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[(slice(None), slice(width // 4, -width // 4)) if width > height else slice(height // 4, -height // 4)] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_an_oblong_image_is_cropped_squeezed_or_padded(tmp_path, size):
    crop, squeeze, pad = (read(tmp_path / "a.png", bars(*size), resize)[0] for resize in ("crop", "squeeze", "pad"))
    if size[1] > size[0]:
        crop, squeeze, pad = crop.T, squeeze.T, pad.T
    assert (crop[:, 1:15] == 255).all()
    assert (squeeze[:, [0, 2, 13, 15]] == 0).all()
    assert (squeeze[:, 6:10] == 255).all()
    assert (pad[[0, 3, 12, 15]] == 0).all()
    assert (pad[4:12, 6:10] == 255).all()
    assert (pad[4:12, [0, 2, 13, 15]] == 0).all()
    assert len(list(tmp_path.glob(".nas-train-16*"))) == 3  # each is kept for itself


def test_a_line_of_which_padding_would_leave_nothing_is_no_image(tmp_path):
    with pytest.raises(InputError, match="so oblong that nothing of it would be left"):
        read(tmp_path / "a.png", Image.new("L", (32, 1), 200), "pad")
    assert (read(tmp_path / "a.png", Image.new("L", (31, 1), 200), "pad") == 200).any()


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ([(400, 64)], "64 × 400 images: the crop keeps 16% of each; --resize squeeze or --resize pad keeps all of it"),
        (
            [(40, 40), (30, 40), (20, 40)],
            r"differ in shape: .* 50% of the most oblong one \(40 × 20\), 75% of the median one",
        ),
        ([(20, 19), (10, 10)], None),
    ],
)
def test_what_the_crop_loses_is_said_each_time(tmp_path, sizes, line):
    (tmp_path / "test/cat").mkdir(parents=True)
    for name in ("cat", "dog"):
        for number, size in enumerate(sizes):
            (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
            Image.new("L", size).save(tmp_path / "train" / name / f"{number}.png")
    for resize in ("crop", "crop", "squeeze", "pad"):
        notes = datasets.load("folder", tmp_path, "train", image_size=8, resize=resize).notes
        assert bool(notes) == (line is not None and resize == "crop")
        assert not notes or re.search(line, notes[0])


# More than 8 bits


def scans(root, part, *values, suffix="png"):
    """Grey images of 16 bits, half of each black and half of one value."""
    for number, value in enumerate(values):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            pixels = np.repeat([[0], [value]], 4, 0).repeat(8, 1).astype(np.uint16)
            Image.fromarray(pixels).save(root / part / name / f"{number}.{suffix}")
    return root


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("largest", "bits", "white"),
    [(255, 8, 255), (256, 10, 64), (1023, 10, 255), (1024, 12, 64), (4095, 12, 255), (9000, 14, 140), (65535, 16, 255)],
)
def test_the_training_images_tell_how_many_bits_there_are(tmp_path, largest, bits, white, suffix):
    scans(tmp_path, "train", 200, largest, suffix=suffix)
    scans(tmp_path, "test", 100, 50176, suffix=suffix)
    for _ in range(2):
        train = datasets.load("folder", tmp_path, "train", image_size=8)
        assert train.bits == bits
        assert train.images[:2, :, 6, 0].tolist() == [[200 >> bits - 8] * 3, [white] * 3]
        assert (train.images[:, :, :4] == 0).all()
        assert (
            f"of which they use {bits}: their largest value is {largest:,}, and {2**bits - 1:,} becomes"
            in train.notes[0]
        )
        test = datasets.load("folder", tmp_path, "test", image_size=8, bits=train.bits)
        assert test.images[:2, :, 6, 0].tolist() == [[100 >> bits - 8] * 3, [min(50176 >> bits - 8, 255)] * 3]
        assert test.notes == (
            ()
            if bits == 16
            else (
                f"test images have values up to 50,176; what is above {2**bits - 1:,}, "
                "the range of the training images, becomes white",
            )
        )


def test_test_images_are_scaled_as_training_images_were_which_need_not_be_there(tmp_path):
    data = Data("folder", str(scans(tmp_path, "test", 200)), image_size=8)
    trained_on = TrainedOn(("cat", "dog"), 3, 8, (0.5,) * 3, (0.5,) * 3, bits=12)
    images = train_final.load_test_images(data, trained_on, torch.device("cpu"))
    assert images.split.images[0, :, 6, 0].tolist() == [200 >> 4] * 3


def test_beside_them_images_of_8_bits_stay_as_they_are_and_those_not_drawn_do_not_count(tmp_path):
    root = scans(tmp_path, "train", 1000, 1010, 60000)
    paint(root, "train/cat/z.png", colour=(1, 2, 3))
    split = datasets.load("folder", root, "train", image_size=8)
    assert split.bits == 16
    assert split.images[3, :, 0, 0].tolist() == [1, 2, 3]
    assert "6 images are grey with 16 bits" in str(split.notes)
    drawn = [seed for seed in range(20) if draws_no_bright_one(root, seed)]
    assert drawn
    for seed in drawn[:1]:
        few = datasets.load("folder", root, "train", image_size=8, limit=4, seed=seed)
        (root / ".nas-train-8.safetensors").unlink()
        again = datasets.load("folder", root, "train", image_size=8, limit=4, seed=seed)
        assert few.bits == again.bits == 10
        assert torch.equal(few.images, again.images)


def draws_no_bright_one(root, seed):
    return datasets.load("folder", root, "train", image_size=8, limit=4, seed=seed).bits < 16


def test_sixteen_bits_are_scaled_to_the_size_before_they_become_eight(tmp_path):
    pixels = np.tile([[0, 30], [30, 0]], (16, 16)).astype(np.uint16)
    pixels[0, 0] = 300
    image = read(tmp_path / "a.png", Image.fromarray(pixels), "squeeze")
    assert image[0, 8, 8] == 15 >> 2  # and not (30 >> 2) / 2


def test_colours_of_16_bits_are_read_with_a_word(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        pixels = b"".join(b"\0" + bytes([0, 200] * 3) * 8 for _ in range(8))
        chunks = [
            (b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(pixels)),
            (b"IEND", b""),
        ]
        png = b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
        (tmp_path / "train" / name / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n" + png)
    assert "2 images have colours of 16 bits, of which the upper 8" in str(
        datasets.load("folder", tmp_path, "train").notes
    )


@pytest.mark.parametrize("value", [-3, 2**16])
def test_a_cache_with_values_that_no_image_has_is_made_anew(tmp_path, value):
    root = scans(tmp_path, "train", 1000)
    first = datasets.load("folder", root, "train", image_size=8)
    cache = root / ".nas-train-8.safetensors"
    with safe_open(cache, framework="pt") as file:
        metadata, images, about = file.metadata(), file.get_tensor("images"), file.get_tensor("about")
    about[0, 2] = value
    metadata["checksum"] = hashlib.blake2b(
        images.numpy().tobytes() + about.numpy().tobytes(), digest_size=16
    ).hexdigest()
    save_file({"images": images, "about": about}, cache, metadata)
    again = datasets.load("folder", root, "train", image_size=8)
    assert torch.equal(again.images, first.images)
    assert again.bits == first.bits == 10


# As a user does, once more


def test_what_the_images_depend_on_is_kept_with_the_run(tmp_path, capfd):
    root = tmp_path / "images"
    for name, value in (("ant", 300), ("bee", 1200)):
        for number in range(12):
            (root / name / "sub").mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 24), 100 + number, np.uint16)
            pixels[:, :8] = value
            Image.fromarray(pixels).save(root / name / "sub" / f"{number}.png")
    own = ["--resize=squeeze", "--test-fraction=0.25", "--no-flip", "--crop-padding=0"]
    small = [
        "--dataset=folder",
        "--data-dir=images",
        "--image-size=8",
        "--init-channels=4",
        "--num-cells=3",
        "--epochs=6",
    ]
    small += ["--name=run", "--batch-size=9"]
    assert call("search", tmp_path, *small, *own, "--num-nodes=1", "--hypergradient=first-order", "--epochs=1") == 0
    out = capfd.readouterr().out
    assert "6 of 24 images are held back as the test set (--test-fraction 0.25" in out
    flags = "--image-size 8 --resize squeeze --test-fraction 0.25 --no-flip --crop-padding 0"
    assert f"train_final.py --genotype genotypes/run.json --dataset folder --data-dir images {flags}" in out
    (tmp_path / "runs/run").rename(tmp_path / "runs/search")
    assert call("train_final", tmp_path, *small, *own, "--genotype=DARTS_V2", "--cutout=0", "--drop-path=0") == 0
    out = capfd.readouterr().out
    assert "test accuracy after epoch 6: 100.00% of 6 images" in out
    about = json.loads((tmp_path / "runs/run/config.json").read_text())
    assert (about["trained_on"]["resize"], about["trained_on"]["bits"]) == ("squeeze", 12)
    assert call("train_final", tmp_path, "--evaluate=runs/run") == 0
    assert "test accuracy 100.00% of 6 images" in capfd.readouterr().out
    for flag in ("--resize=pad", "--test-fraction=0.3", "--crop-padding=1"):
        assert call("train_final", tmp_path, "--resume=runs/run", flag) == 2
        assert f"{flag.replace('=', ' ')}: the run in runs/run has" in capfd.readouterr().err
