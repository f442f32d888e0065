"""How image files become arrays, and the cache that keeps these."""

import hashlib
import json
import os
import shutil
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

import train_final
from nas.config.flags import Data, FinalConfig, TrainedOn
from nas.data import datasets, image_folder
from nas.errors import InputError, Stopped
from tests.damaged_json import spliced
from tests.data.folders import colours, folder_data, paint
from tests.in_process import TWO, call


@pytest.fixture
def num_read(monkeypatch):
    """How many image files were opened, by the number of entries."""
    paths = []
    read = Image.open
    monkeypatch.setattr(Image, "open", lambda path: [paths.append(path), read(path)][1])
    return paths


def load(root, size=32, part="train", **options):
    return datasets.load("folder", root, part, image_size=size, **options)


def read(path, image, resize="crop", **options):
    """An image as it comes out, 16 × 16, after it went through a file in a folder of two classes."""
    for name in ("own", "same"):
        (path.parent / "train" / name).mkdir(parents=True, exist_ok=True)
        image.save(path.parent / "train" / name / path.name, **options)
    return load(path.parent, 16, resize=resize).images[0]


def with_middle(mode, outside, inside):
    image = Image.new(mode, (16, 16), outside)
    image.paste(inside, (4, 4, 12, 12))
    return image


def plain(*colour, size=(16, 16)):
    return Image.new("RGB", size, colour or (0, 0, 0))


PALETTE = with_middle("RGB", (9, 8, 7), (0, 0, 0)).quantize(2)
WHITE = with_middle("RGB", (255, 255, 255), (0, 0, 0))  # what is transparent becomes white, as on paper
GREYS = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
RAMP, RAMP_OF_8_BITS = Image.fromarray(GREYS), Image.fromarray((GREYS >> 8).astype("u1"))
WIDE = with_middle("RGB", (0, 255, 0), (0, 255, 0)).resize((32, 16))
WIDE.paste((255, 0, 0), (0, 0, 8, 16))
TURN = Image.Exif()
TURN[0x0112] = 6  # to be turned by 90 degrees
HALF = np.repeat([[60000], [0]], 8, 0).repeat(16, 1).astype(np.uint16)
ANIMATION = {"save_all": True, "append_images": [plain(0, 0, 255)]}
CONVERTED = {  # file, image, options of saving it, and the image expected
    "RGBA": ("a.png", with_middle("RGBA", (0, 0, 0, 0), (0, 0, 0, 255)), {}, WHITE),
    "grey, transparent": ("a.png", with_middle("LA", (0, 0), (0, 255)), {}, WHITE),
    "a transparent grey": ("a.png", with_middle("L", 7, 0), {"transparency": 7}, WHITE),
    "a transparent colour": ("a.png", with_middle("RGB", (9, 8, 7), (0, 0, 0)), {"transparency": (9, 8, 7)}, WHITE),
    "an entry of a palette": ("a.png", PALETTE, {"transparency": 0}, WHITE),
    "all entries": ("a.png", PALETTE, {"transparency": b"\0\xff"}, WHITE),
    "grey": ("a.gif", Image.new("L", (40, 10), 7), {}, plain(7, 7, 7)),
    "BMP": ("a.bmp", plain().convert("P"), {}, plain()),
    "CMYK": ("a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {}, plain(255, 0, 0)),
    "CMYK TIFF": ("a.tif", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {}, plain(255, 0, 0)),
    **{
        suffix: (f"a.{suffix}", plain(255, 0, 0), ANIMATION, plain(255, 0, 0))
        for suffix in ("gif", "png", "webp", "tif")
    },
    **{f"{suffix} of 16 bits": (f"a.{suffix}", RAMP, {}, RAMP_OF_8_BITS) for suffix in ("png", "tif", "pgm")},
    "turned": ("a.tif", Image.fromarray(HALF), {"exif": TURN}, Image.fromarray((HALF.T[:, ::-1] >> 8).astype("u1"))),
    "the middle": ("a.png", WIDE, {}, plain(0, 255, 0)),
    **{
        f"{size}": ("a.png", Image.new("L", size, 200), {}, plain(200, 200, 200))
        for size in ((1, 1), (1, 5000), (3, 2))
    },
}


@pytest.mark.parametrize("case", CONVERTED)
def test_any_format_becomes_a_square_of_rgb(case, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)  # Pillow warns from there on, and refuses twice as many
    name, image, options, expected = CONVERTED[case]
    with warnings.catch_warnings(action="error"):
        pixels = read(tmp_path / name, image, **options)
    expected = torch.from_numpy(np.array(expected.convert("RGB"))).permute(2, 0, 1)
    assert (pixels.int() - expected.int()).abs().max() <= (6 if name.endswith(("jpg", "webp")) else 0)


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("a.tif", Image.fromarray(np.ones((9, 9), np.int32)), "signed or with 32 bits per pixel, where white is not"),
        ("a.tif", Image.new("F", (9, 9)), "signed or with 32 bits"),
        ("a.eps", plain(), "PostScript is a program, which is not run"),
        ("a.png", Image.new("L", (200, 200)), "decompression bomb"),
        *(("a.png", plain(), error) for error in (RuntimeError("no\nluck"), MemoryError(), EOFError(), KeyError(3))),
    ],
)
def test_whatever_cannot_be_decoded_is_one_sentence(tmp_path, monkeypatch, name, image, reason):
    def fail(*_):
        raise reason

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    if isinstance(reason, Exception):
        monkeypatch.setattr(image_folder.ImageOps, "exif_transpose", fail)
    with pytest.raises(InputError) as refused:
        read(tmp_path / name, image)
    sentence = str(refused.value)
    assert f"{name}: cannot be read as an image (" in sentence
    assert (str(reason).partition("\n")[0] or type(reason).__name__) in sentence
    assert sentence.isprintable()
    assert sentence.endswith("remove or replace it, or add --skip-bad-images.")


def test_a_signal_while_an_image_is_read_stops_the_run(tmp_path, monkeypatch):
    def terminate(*_):
        raise Stopped("by SIGTERM.", 143)

    monkeypatch.setattr(image_folder.ImageOps, "exif_transpose", terminate)
    with pytest.raises(Stopped, match="by SIGTERM"):
        load(folder_data(tmp_path), skip_bad=True)


def test_more_than_fits_into_memory_is_refused_before_it_is_read(tmp_path, monkeypatch, num_read):
    root = folder_data(tmp_path)
    monkeypatch.setattr(image_folder, "MAX_BYTES", 5 * 3 * 16 * 16)
    with pytest.raises(InputError, match=r"--image-size 16: 6 images of this size take .* but this machine can hold"):
        load(root, 16)
    assert num_read == []
    assert len(load(root, 16, limit=5).targets) == 5


def test_each_part_and_size_has_a_cache_and_the_second_load_opens_no_image(tmp_path, num_read, capsys):
    root = folder_data(tmp_path)
    for part, size in (("train", 16), ("test", 16), ("train", 8)):
        num_read.clear()
        first = load(root, size, part)
        assert first.images.shape == (6, 3, size, size)
        assert {path.parts[-3] for path in num_read} == {part}  # and the other part is never opened
        assert f".nas-{part}-{size}.safetensors" in capsys.readouterr().out
        num_read.clear()
        second = load(root, size, part)
        assert (num_read, capsys.readouterr().out) == ([], "")
        assert datasets.fingerprint(first) == datasets.fingerprint(second)
        limited = load(root, size, part, limit=2, seed=1)
        assert {*colours(limited)} < {*colours(first)}
    caches = [f".nas-{name}.safetensors" for name in ("test-16", "train-16", "train-8")]
    assert sorted(path.name for path in root.iterdir()) == [*caches, "test", "train"]


def test_a_limited_load_opens_no_other_image_leaves_no_cache_and_leaves_bad_images_out(tmp_path, num_read):
    root = folder_data(tmp_path, num_images=20)
    first, again, other = (load(root, limit=8, seed=seed) for seed in (3, 3, 4))
    assert len(num_read) == 24
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert list(root.glob(".nas-*")) == []
    spoil(root, f"{first.classes[int(first.targets[0])]}/{int(first.images[0, 1, 0, 0]) // 12}.png")
    split = load(root, limit=8, seed=3, skip_bad=True)
    assert "left out 1 of 8 files" in str(split.notes)
    assert torch.equal(split.images, first.images[1:])
    assert torch.equal(split.targets, first.targets[1:])


def same_size_another_time(path):
    """Another image in as many bytes; its time of change is the only trace."""
    status = path.stat()
    plain(size=(12, 9)).save(path)
    path.write_bytes(path.read_bytes().ljust(status.st_size, b"\0"))  # what follows a PNG is not read
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def same_time_another_size(path):
    time = path.stat().st_mtime_ns
    plain(1, 2, 3, size=(700, 900)).save(path)
    os.utime(path, ns=(time, time))


CHANGES = [
    same_size_another_time,
    same_time_another_size,
    lambda path: path.unlink(),
    lambda path: plain().save(path.with_name("new.png")),
    lambda path: path.rename(path.with_name("9.png")),
    lambda path: path.parent.rename(path.parent.with_name("eel")),
    lambda path: path.rename(path.parent.with_name("dog") / "9.png"),
]


@pytest.mark.parametrize("alter", CHANGES)
def test_a_changed_folder_is_read_anew(tmp_path, num_read, alter):
    root = folder_data(tmp_path)
    load(root, 16)
    alter(root / "train" / "cat" / "0.png")
    num_read.clear()
    split = load(root, 16)
    assert len(num_read) == len(split.targets)
    (root / ".nas-train-16.safetensors").unlink()
    assert datasets.fingerprint(load(root, 16)) == datasets.fingerprint(split)


def rewrite(path, name="images", images=lambda images: images, about=lambda about: about, **changed):
    """The cache with something other than it should be; its checksum is right."""
    with safe_open(path, framework="pt") as file:
        metadata, about = file.metadata(), about(file.get_tensor("about"))
        images = images(file.get_tensor("images"))
    digest = hashlib.blake2b(images.numpy().tobytes() + about.numpy().tobytes(), digest_size=16).hexdigest()
    save_file({name: images, "about": about}, path, metadata | {"checksum": digest} | changed)


def largest(value):
    return lambda about: about.index_fill(1, torch.tensor([2]), value)


DAMAGE = [
    lambda path: path.write_bytes(path.read_bytes()[:-1]),
    lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    lambda path: rewrite(path, name="pictures"),
    lambda path: rewrite(path, fingerprint="0" * 32),
    lambda path: rewrite(path, checksum="0" * 32, images=lambda images: images.zero_()),
    lambda path: rewrite(path, images=lambda images: images[1:].clone()),
    lambda path: rewrite(path, images=lambda images: images.view(torch.int8).clone()),
    lambda path: rewrite(path, about=largest(-3)),
    lambda path: rewrite(path, about=largest(2**16)),
    lambda path: save_file({"images": torch.zeros(6, 3, 16, 16, dtype=torch.uint8)}, path),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_anew(tmp_path, num_read, damage):
    root = folder_data(tmp_path)
    first = load(root, 16)
    damage(root / ".nas-train-16.safetensors")
    num_read.clear()
    for _ in range(2):
        assert torch.equal(load(root, 16).images, first.images)
        assert len(num_read) == 6


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """A folder of images, what is loaded of it, and its cache as bytes."""
    root = folder_data(tmp_path_factory.mktemp("images"), ("train",), num_images=1)
    return root, load(root, 8), (root / ".nas-train-8.safetensors").read_bytes()


@pytest.mark.fuzz
@given(data=st.data())
def test_any_damage_of_a_cache_gives_the_images_that_are_in_the_folder(cached, data):
    root, expected, whole = cached
    cut = st.integers(0, len(whole) - 1).map(lambda length: whole[:length])
    (root / ".nas-train-8.safetensors").write_bytes(data.draw(spliced(whole, ("folder",)) | cut))
    with pytest.MonkeyPatch.context() as patch:  # the disk's sync takes most of the time
        patch.setattr(image_folder.files, "sync", lambda path: None)
        assert datasets.fingerprint(load(root, 8)) == datasets.fingerprint(expected)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: (path / "in the way").mkdir(parents=True)])
def test_what_is_in_the_place_of_the_cache_is_not_waited_for(tmp_path, num_read, capsys, make):
    root = folder_data(tmp_path)
    make(root / ".nas-train-16.safetensors")
    for _ in range(2):
        assert load(root, 16).images.shape == (6, 3, 16, 16)
    printed = ".nas-train-16.safetensors cannot be written" in capsys.readouterr().out
    assert len(num_read) == 6 + 6 * printed  # a pipe is replaced
    assert sorted(path.name for path in root.iterdir()) == [".nas-train-16.safetensors", "test", "train"]


def spoil(root, *names):
    for name in names:
        (root / "train" / name).write_bytes(b"\x89PNG no more")


def test_bad_images_can_be_left_out_and_are_counted_and_named(tmp_path, num_read):
    root = folder_data(tmp_path, num_images=9)
    for _ in range(2):  # without any of them the cache is kept whatever the flag
        whole = load(root, 16, skip_bad=True)
        assert len(num_read) == 18
    spoil(root, *(f"cat/{index}.png" for index in range(1, 8)))
    good = [0, *range(8, 18)]
    names = ", ".join(f"{root}/train/cat/{index}.png" for index in range(1, 6))
    for _ in range(2):  # no cache hides them the second time
        split = load(root, 16, skip_bad=True)
        assert f"left out 7 of 18 files: {names}, …" in split.notes
        assert torch.equal(split.images, whole.images[good])
        assert torch.equal(split.targets, whole.targets[good])
    with pytest.raises(InputError, match=r"cat/1\.png: cannot be read as an image .*--skip-bad-images"):
        load(root, 16)
    spoil(root, "cat/0.png", "cat/8.png")
    with pytest.raises(InputError, match=r"--skip-bad-images: all images of the class .*train/cat are bad\."):
        load(root, skip_bad=True)


@pytest.mark.parametrize("size", [(64, 32), (32, 64)])
def test_an_oblong_image_is_cropped_squeezed_or_padded(tmp_path, size):
    pixels = np.zeros((64, 32), np.uint8)  # black ends, white between them along the longer side
    pixels[16:48] = 255
    image = Image.fromarray(pixels if size == (32, 64) else pixels.T)
    crop, squeeze, pad = (read(tmp_path / "a.png", image, resize)[0] for resize in ("crop", "squeeze", "pad"))
    if size == (32, 64):
        crop, squeeze, pad = crop.T, squeeze.T, pad.T
    assert (crop[:, 1:15] == 255).all()
    assert (squeeze[:, [0, 2, 13, 15]] == 0).all()
    assert (squeeze[:, 6:10] == 255).all()
    assert (pad[[0, 3, 12, 15]] == 0).all()
    assert (pad[4:12, 6:10] == 255).all()
    assert (pad[4:12, [0, 2, 13, 15]] == 0).all()
    assert len(list(tmp_path.glob(".nas-train-16*"))) == 3  # each is kept for itself


def test_a_line_of_which_padding_would_leave_nothing_is_no_image(tmp_path):
    with pytest.raises(InputError, match="so long and thin that nothing of it would be left"):
        read(tmp_path / "a.png", Image.new("L", (32, 1), 200), "pad")
    assert (read(tmp_path / "a.png", Image.new("L", (31, 1), 200), "pad") == 200).any()


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        ([(400, 64)], "64 × 400 images: the crop keeps 16% of each; --resize squeeze or --resize pad keeps everything"),
        ([(40, 40), (30, 40), (20, 40)], "50% of the longest one (40 × 20), 75% of the median one; --resize"),
        ([(20, 19), (10, 10)], None),
    ],
)
def test_what_the_crop_loses_is_said_each_time(tmp_path, sizes, line):
    paint(tmp_path, "test/cat/0.png", "test/dog/0.png")
    for number, size in enumerate(sizes):
        paint(tmp_path / "train", f"cat/{number}.png", f"dog/{number}.png", size=size)
    for resize in ("crop", "crop", "squeeze", "pad"):
        notes = load(tmp_path, 8, resize=resize).notes
        assert bool(notes) == (line is not None and resize == "crop")
        assert not notes or line in notes[0]


def scans(root, part, *values, suffix="png"):
    """Grey images of 16 bits, half of each black and half of one value."""
    for number, value in enumerate(values):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True, exist_ok=True)
            pixels = np.repeat([[0], [value]], 4, 0).repeat(8, 1).astype(np.uint16)
            Image.fromarray(pixels).save(root / part / name / f"{number}.{suffix}")
    return root


@pytest.mark.parametrize(
    ("largest", "bits", "white", "suffix"),
    [
        *((255, 8, 255, "png"), (256, 10, 64, "tif"), (4095, 12, 255, "png")),
        *((9000, 14, 140, "tif"), (65535, 16, 255, "png")),
    ],
)
def test_the_training_images_tell_how_many_bits_there_are(tmp_path, largest, bits, white, suffix):
    scans(tmp_path, "train", 200, largest, suffix=suffix)
    scans(tmp_path, "test", 100, 50176, suffix=suffix)
    said = f"use {bits} of them: their largest value is {largest:,}, and {2**bits - 1:,} becomes white"
    for _ in range(2):
        train = load(tmp_path, 8)
        assert train.bits == bits
        assert train.images[:2, :, 6, 0].tolist() == [[200 >> bits - 8] * 3, [white] * 3]
        assert (train.images[:, :, :4] == 0).all()
        assert said in train.notes[0]
        test = load(tmp_path, 8, "test", bits=train.bits)
        assert test.images[:2, :, 6, 0].tolist() == [[100 >> bits - 8] * 3, [min(50176 >> bits - 8, 255)] * 3]
        above = f"test images have values up to 50,176; all above {2**bits - 1:,}, the range of the training images"
        assert [note.startswith(above) for note in test.notes] == [True] * (bits < 16)


def test_beside_them_images_of_8_bits_stay_as_they_are_and_those_not_drawn_do_not_count(tmp_path):
    root = scans(tmp_path, "train", 1000, 1010, 60000)
    paint(root, "train/cat/z.png", colour=(1, 2, 3))
    split = load(root, 8)
    assert split.bits == 16
    assert split.images[3, :, 0, 0].tolist() == [1, 2, 3]
    assert "6 images are grey with 16 bits" in str(split.notes)
    few, seed = next((few, seed) for seed in range(20) if (few := load(root, 8, limit=4, seed=seed)).bits < 16)
    (root / ".nas-train-8.safetensors").unlink()
    again = load(root, 8, limit=4, seed=seed)
    assert few.bits == again.bits == 10
    assert torch.equal(few.images, again.images)


def test_sixteen_bits_are_scaled_to_the_size_before_they_become_eight(tmp_path):
    pixels = np.tile([[0, 30], [30, 0]], (16, 16)).astype(np.uint16)
    pixels[0, 0] = 300
    assert read(tmp_path / "a.png", Image.fromarray(pixels), "squeeze")[0, 8, 8] == 15 >> 2  # and not (30 >> 2) / 2


def test_colours_of_16_bits_are_read_with_a_word(tmp_path):
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes([0, 200] * 3) * 8) * 8)
    png = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")):
        png += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    for name in ("cat", "dog"):
        paint(tmp_path, f"train/{name}/0.png")
        (tmp_path / "train" / name / "0.png").write_bytes(png)
    assert "2 images have colours with 16 bits, of which the upper 8 are read" in str(load(tmp_path).notes)


def test_what_the_images_depend_on_is_kept_with_the_run(tmp_path, capfd):
    for name, value in (("ant", 300), ("bee", 1200)):
        for number in range(12):
            (tmp_path / "images" / name / "sub").mkdir(parents=True, exist_ok=True)
            pixels = np.full((8, 24), 100 + number, np.uint16)
            pixels[:, :8] = value
            Image.fromarray(pixels).save(tmp_path / "images" / name / "sub" / f"{number}.png")
    kept = "--image-size 8 --resize squeeze --test-fraction 0.25 --no-flip --crop-padding 0"
    own = f"--dataset folder --data-dir images {kept}"
    small = [*own.split(), "--batch-size=9", "--num-cells=3", "--name=run"]
    search = [*small, "--init-channels=2", "--num-nodes=1", *TWO, "--hypergradient=first-order", "--epochs=1"]
    assert call("search", tmp_path, *search) == 0
    out = capfd.readouterr().out
    assert "6 of 24 images are held back as the test set (--test-fraction 0.25" in out
    assert f"train_final.py --genotype genotypes/run.json {own}" in out
    (tmp_path / "runs/run").rename(tmp_path / "runs/search")
    train = [*small, "--init-channels=4", "--genotype=DARTS_V2", "--cutout=0", "--drop-path=0", "--epochs=6"]
    assert call("train_final", tmp_path, *train) == 0
    assert "test accuracy after epoch 6: 100.00% of 6 images" in capfd.readouterr().out
    about = json.loads((tmp_path / "runs/run/config.json").read_text())
    assert (about["trained_on"]["resize"], about["trained_on"]["bits"]) == ("squeeze", 12)
    # Measured again: on the same images, and on a test set of another folder.
    for name in ("ant", "bee"):
        shutil.copytree(tmp_path / "images" / name, tmp_path / "other/test" / name)
    evaluate = ["--evaluate=runs/run", "--data-dir=other"]
    assert call("train_final", tmp_path, "--evaluate=runs/run") == 0
    assert "test accuracy 100.00% of 6 images" in capfd.readouterr().out
    assert call("train_final", tmp_path, *evaluate) == 2
    assert "other/test is already a test set; " in (error := capfd.readouterr().err)
    assert "With --evaluate, add --test-fraction 0 to measure on that test set." in error
    assert call("train_final", tmp_path, *evaluate, "--test-fraction=0") == 0
    assert "test accuracy 100.00% of 24 images" in capfd.readouterr().out


def test_test_images_are_scaled_as_training_images_were_which_need_not_be_there(tmp_path):
    scans(tmp_path, "test", 200)
    trained_on = TrainedOn(("cat", "dog"), 3, 8, (0.5,) * 3, (0.5,) * 3, bits=12)
    config = FinalConfig(data=Data("folder", str(tmp_path), image_size=8))
    images = train_final.load_test_images(config, trained_on, torch.device("cpu"))
    assert images.split.images[0, :, 6, 0].tolist() == [200 >> 4] * 3
