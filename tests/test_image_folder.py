import os
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nas import datasets, image_folder
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


def read(path, image, **options):
    """An image as it comes out, 16 × 16, after it went through a file."""
    image.save(path, **options)
    return image_folder._read_image(path, 16)


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
    with pytest.raises(InputError, match=r"a\.tif: cannot be read as an image \(32 bits a pixel"):
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
        pixels = read(tmp_path / name, Image.new("CMYK", (16, 16), (0, 255, 255, 0)))
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

    monkeypatch.setattr(image_folder.ImageOps, "fit", fail)
    with pytest.raises(InputError, match=r"a\.png: cannot be read as an image") as refused:
        read(tmp_path / "a.png", Image.new("L", (9, 9)))
    assert str(refused.value).isprintable()
    assert "()" not in str(refused.value)


def test_a_signal_while_an_image_is_read_stops_the_run(tmp_path, monkeypatch):
    def terminate(*_):
        raise Stopped("by SIGTERM.", 143)

    root = folder_data(tmp_path)
    monkeypatch.setattr(image_folder.ImageOps, "fit", terminate)
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
            r"class .*cat holds no image \(folders inside it are not read\)",
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
    read = image_folder._read_image
    monkeypatch.setattr(image_folder, "_read_image", lambda path, size: [paths.append(path), read(path, size)][1])
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
    with image_folder.safe_open(path, framework="pt") as file:
        metadata, images = file.metadata(), change_images(file.get_tensor("images"))
    save_file({name: images}, path, metadata | ({"fingerprint": fingerprint} if fingerprint else {}))


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


def test_bad_images_can_be_left_out_and_are_counted_and_named(tmp_path, capsys):
    root = folder_data(tmp_path)
    whole = datasets.load("folder", root, "train", image_size=16)
    spoil(root, "cat/0.png", "dog/1.png")
    for _ in range(2):  # no cache hides them the second time
        capsys.readouterr()
        split = datasets.load("folder", root, "train", image_size=16, skip_bad=True)
        out = capsys.readouterr().out
        assert f"Left out 2 of 6 files: {root / 'train/cat/0.png'}, {root / 'train/dog/1.png'}.\n" in out
        assert torch.equal(split.images, whole.images[[1, 2, 3, 5]])
        assert split.targets.tolist() == [0, 0, 1, 1]
        assert split.classes == ("cat", "dog")
    with pytest.raises(InputError, match=r"cat/0\.png"):
        datasets.load("folder", root, "train", image_size=16)


def test_many_bad_images_are_counted_and_some_are_named(tmp_path, capsys):
    root = folder_data(tmp_path, num_images=9)
    spoil(root, *(f"cat/{index}.png" for index in range(8)))
    datasets.load("folder", root, "train", skip_bad=True)
    out = capsys.readouterr().out
    assert "Left out 8 of 18 files: " in out
    assert out.count("cat/") == 5


def test_bad_images_among_those_that_were_drawn_are_left_out(tmp_path, capsys):
    root = folder_data(tmp_path, num_images=20)
    whole = datasets.load("folder", root, "train", limit=8, seed=3)
    spoil(root, f"{whole.classes[int(whole.targets[0])]}/{int(whole.images[0, 1, 0, 0]) // 12}.png")
    split = datasets.load("folder", root, "train", limit=8, seed=3, skip_bad=True)
    assert "Left out 1 of 8 files" in capsys.readouterr().out
    assert torch.equal(split.images, whole.images[1:])
    assert torch.equal(split.targets, whole.targets[1:])


def test_a_class_of_bad_images_alone_is_refused(tmp_path):
    root = folder_data(tmp_path)
    spoil(root, "cat/0.png", "cat/1.png", "cat/2.png")
    with pytest.raises(InputError, match=r"--skip-bad-images: no image is left of the class .*train/cat\."):
        datasets.load("folder", root, "train", skip_bad=True)


def test_good_images_are_kept_in_the_cache_whatever_the_flag(tmp_path, num_read, capsys):
    root = folder_data(tmp_path)
    for _ in range(2):
        assert len(datasets.load("folder", root, "train", skip_bad=True).targets) == 6
        assert "Left out" not in capsys.readouterr().out
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
