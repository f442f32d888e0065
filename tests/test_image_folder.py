import os

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from nas import datasets, image_folder
from nas.errors import InputError


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
        (lambda root: (root / "train" / "cat").mkdir(parents=True), r"holds 1 class folders, but two at least"),
        (lambda root: folder_data(root) and (root / "train" / "ant").mkdir(), r"class .*ant holds no image"),
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
