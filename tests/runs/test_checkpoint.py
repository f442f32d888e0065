import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nas.errors import InputError
from nas.runs import checkpoint
from nas.runs.checkpoint import CURRENT, MAX_HEADER_BYTES, PREVIOUS, LoopState, Manifest
from tests.damaged_json import damaged, spliced


def manifest(**changed):
    fields = {
        "config": {
            "lower": {"epochs": 2, "lower_lr": 1e-300, "primitives": ("a", "ü")},
            "run": {"name": None, "ray": ""},
        },
        "data": "0123456789abcdef" * 2,
        "genotype": "Genotype(…)",
        "progress": LoopState(
            1, 12, 2, 1, 0.1 + 0.2, 5.0, 8, {"upper/loss": 1.25, "ü": -1e308}, 9.5, "a cell", 3, [0.5, 2.0], True
        ),
        "elapsed_s": 17.3,
        "sizes": {"metrics.jsonl": 300, "tensorboard/events.out.tfevents.17.0": 20},
        "finished": False,
    }
    return Manifest(**fields | changed)


def tensors(seed=0):
    """One of each kind: a convolution's channels_last, a batch norm's count without dimensions, special values."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "supernet.0.weight": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "supernet.1.num_batches_tracked": torch.tensor(7 + seed),
        "supernet.1.running_var": torch.tensor([torch.inf, -0.0, 1e-45, torch.nan]),
        "alphas.normal": torch.randn(2, 8, generator=generator, dtype=torch.float64),
        "network.empty": torch.zeros(0, 3),
    }


def bits(these):
    return {name: (tensor.dtype, tensor.shape, tensor.numpy().tobytes()) for name, tensor in these.items()}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rebuilt(whole, **changed):
    """A checkpoint file with other metadata, its checksum right unless given."""
    size = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    metadata = header["__metadata__"] | changed
    if "checksum" not in changed:
        metadata["checksum"] = checkpoint._checksum(tensors(), metadata.get("manifest") or "")
    header["__metadata__"] = {name: value for name, value in metadata.items() if value is not None}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + whole[8 + size :]


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path, tensors(), manifest())
    return tmp_path / CURRENT


def refusal(path, into=None):
    """The sentence by which a file is refused; the run's tensors are as they were."""
    into = tensors(1) if into is None else into
    before = bits(into)
    with pytest.raises(InputError) as error:
        checkpoint.load(path, into)
    assert bits(into) == before
    assert str(error.value).isprintable()
    return str(error.value)


def test_tensors_and_manifest_round_trip_bit_for_bit_and_the_checkpoint_before_is_kept(saved):
    for seed in (1, 2):
        checkpoint.save(saved.parent, tensors(seed), manifest(elapsed_s=float(seed)))
    loaded = tensors()
    for name, seed in ((CURRENT, 2), (PREVIOUS, 1)):
        assert checkpoint.load(saved.with_name(name), loaded) == manifest(elapsed_s=seed)
        assert bits(loaded) == bits(tensors(seed))
        assert loaded["supernet.0.weight"].is_contiguous(memory_format=torch.channels_last)
    assert set(os.listdir(saved.parent)) == {CURRENT, PREVIOUS}


@pytest.mark.parametrize("call", ["write", "half a write", "sync", "swap"])
def test_a_write_that_fails_leaves_the_last_two_as_they_are(saved, monkeypatch, call):
    checkpoint.save(saved.parent, tensors(1), manifest())
    before = contents(saved.parent)

    def fail(*arguments, **options):
        if call == "half a write":
            arguments[0].open("wb").write(b"half")
        raise OSError(28, "No space left on device")

    owner, name = {"sync": (os, "fsync"), "swap": (os, "replace")}.get(call, (Path, "write_bytes"))
    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(saved.parent, tensors(2), manifest())
    assert contents(saved.parent) == before


def test_the_state_of_a_run_is_named_and_not_copied():
    network = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = checkpoint.state_tensors({"network": network}, {"optimizer": optimizer})
    momenta = {f"optimizer.{index}.momentum_buffer" for index in range(2)}
    assert state.keys() == {"network.bias", "network.weight", *momenta}
    assert state["network.weight"].data_ptr() == network.weight.data_ptr()
    assert state["optimizer.0.momentum_buffer"] is optimizer.state[network.weight]["momentum_buffer"]


def test_finished_is_said_of_a_finished_run_alone(saved):
    assert checkpoint.finished(saved.parent) is None
    checkpoint.save(saved.parent, tensors(), manifest(finished=True))
    assert checkpoint.finished(saved.parent) == manifest(finished=True)
    assert checkpoint.finished(saved.parent / "nowhere") is None


def test_a_checkpoint_that_was_cut_or_in_which_a_bit_flipped_is_refused(saved):
    whole, flipped = saved.read_bytes(), bytearray(saved.read_bytes())
    flipped[-1] ^= 1
    other_manifest = whole.replace(b"17.3", b"17.4")
    cut = (whole[:length] for length in (0, 7, 8, 40, len(whole) // 2, -1))
    for content in (*cut, whole + b"\0", flipped, other_manifest):
        saved.write_bytes(content)
        assert "damaged" in refusal(saved)


@pytest.mark.parametrize("size", [2**60, 2**63, 2**64 - 1, MAX_HEADER_BYTES + 1])
def test_a_header_that_would_fill_the_memory_is_refused(saved, size):
    whole = saved.read_bytes()
    saved.write_bytes(size.to_bytes(8, "little") + whole[8:])
    assert "damaged (its header is too long)" in refusal(saved)
    assert checkpoint.finished(saved.parent) is None


def test_what_a_damaged_header_says_gives_a_terminal_no_orders(saved):
    """Found by `tests.fuzz_atheris`: the reader quotes the file."""
    whole = saved.read_bytes()
    for orders in (b"F\x1b[31m2", b"F\\u00002", b"F\x0a2"):
        size = int.from_bytes(whole[:8], "little")
        header = whole[8 : 8 + size].replace(b'"F32"', b'"' + orders + b'"', 1)
        saved.write_bytes(len(header).to_bytes(8, "little") + header + whole[8 + size :])
        assert refusal(saved).isprintable()


def test_what_is_no_checkpoint_is_refused(saved):
    for is_zip in (True, False):  # which could run code
        torch.save(tensors(), saved, _use_new_zipfile_serialization=is_zip)
        assert "damaged" in refusal(saved)
    save_file(tensors() | {"supernet.0.weight": torch.zeros(4, 3, 3, 3)}, saved)  # such as weights
    assert "its manifest cannot be read" in refusal(saved)
    saved.unlink()
    assert "No such file" in refusal(saved)
    for make in (os.mkdir, os.mkfifo):  # a pipe would be waited for
        make(saved)
        assert "damaged (no regular file)" in refusal(saved)
        assert checkpoint.finished(saved.parent) is None
        saved.rename(saved.with_name(make.__name__))


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        *(({"checksum": text}, "its checksum does not match") for text in ("", "0" * 32, None)),
        *(({"manifest": text}, "its manifest cannot be read") for text in (None, "", "{}", "[" * 1000, "1" * 5000)),
    ],
)
def test_another_checksum_and_a_file_without_a_manifest_are_refused(saved, changed, sentence):
    saved.write_bytes(rebuilt(saved.read_bytes(), **changed))
    assert sentence in refusal(saved)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"alphas.normal": None}, "of another network: only one of the two has 'alphas.normal'"),
        ({"surplus": torch.zeros(1)}, "of another network: only one of the two has 'surplus'"),
        ({"alphas.normal": torch.zeros(8, 2).double()}, "alphas.normal has the shape (2, 8), not (8, 2)"),
        ({"alphas.normal": torch.zeros(2, 8)}, "alphas.normal is of dtype F64, not F32"),
    ],
)
def test_tensors_of_another_network_are_refused_before_any_is_read(saved, monkeypatch, changed, sentence):
    into = {name: tensor for name, tensor in (tensors(1) | changed).items() if tensor is not None}
    monkeypatch.setattr(checkpoint, "_checksum", lambda *_: pytest.fail("the tensors were read"))
    assert sentence in refusal(saved, into)


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_two_are_both_named(saved):
    assert checkpoint.load_newest(saved.parent / "nowhere", tensors()) == (None, [])
    checkpoint.save(saved.parent, tensors(1), manifest(elapsed_s=99.0))
    saved.write_bytes(saved.read_bytes()[:-1])
    loaded = tensors(2)
    read, (problem,) = checkpoint.load_newest(saved.parent, loaded)
    assert (read, bits(loaded)) == (manifest(), bits(tensors()))
    assert str(saved) in problem
    whole, before = saved.read_bytes(), saved.with_name(PREVIOUS)
    saved.unlink()  # as after a kill between two swaps
    assert checkpoint.load_newest(saved.parent, loaded) == (manifest(), [])
    saved.write_bytes(whole)
    before.write_bytes(b"damaged")
    with pytest.raises(InputError, match=rf"{saved}: damaged.*{before}: damaged.*start a new run"):
        checkpoint.load_newest(saved.parent, loaded)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "null", "true", '"1"'])
@pytest.mark.parametrize("place", ["elapsed_s", "loss", "num_correct", "epoch_began_s", "upper/loss"])
def test_a_number_that_is_none_is_refused(saved, value, place):
    text = manifest().model_dump_json()
    start = text.index(f'"{place}":') + len(place) + 3
    end = min(text.index(sign, start) for sign in ",}")
    saved.write_bytes(rebuilt(saved.read_bytes(), manifest=text[:start] + value + text[end:]))
    assert place in refusal(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("format_version", number) for number in (0, True, checkpoint.FORMAT_VERSION + 1)),
        *(("data", text) for text in ("0" * 31, "0" * 32 + "\n")),
        ("genotype", "x" * 100_001),
        *(("config", content) for content in ([], {"lower": 1.0}, *({"lower": {"epochs": lr}} for lr in ([1], {})))),
        ("finished", 1),
        ("elapsed_s", -1.0),
        *(("sizes", {"metrics.jsonl": size}) for size in (-1, 10**16)),
        *(
            ("sizes", {name: 0})
            for name in ("../x", "/etc/passwd", "config.json", "", "metrics.jsonl\n", "./metrics.jsonl")
        ),
        *(("sizes", {name: 0}) for name in ("tensorboard/../../x", "metrics.jsonl/../x")),
        *(("sizes", {f"tensorboard/events.out.tfevents.{end}": 0}) for end in ("/../x", "1" * 41)),
        *(("progress", content) for content in ({"steps": 1.0}, {"steps": -1}, {"surplus": 1})),
        ("surplus", 1),
        ("\x1b[31m\n", 1),
    ],
)
def test_a_field_out_of_its_range_is_named(saved, field, value):
    text = json.dumps(manifest().model_dump(mode="json") | {field: value})
    saved.write_bytes(rebuilt(saved.read_bytes(), manifest=text))
    assert repr(field)[1:-1] in refusal(saved)


def test_progress_counts_steps_and_keeps_sums():
    progress = LoopState()
    progress.good_step(2.0, 3.0, 4)
    progress.good_step(1.0, 1.0, 4)
    progress.bad_step()
    assert (progress.steps, progress.bad_steps, progress.bad_steps_in_a_row) == (3, 1, 1)
    assert progress.means() == (1.5, 0.5)
    assert progress.scalars("lower") == {"lower/loss": 1.5, "lower/accuracy": 0.5}
    assert (progress.line("lower "), progress.status("lower")) == ("lower loss 1.500, accuracy 50.0%", "lower 50.0%")
    progress.good_step(1.0, 1.0, 4)
    assert (progress.bad_steps, progress.bad_steps_in_a_row) == (1, 0)
    progress.track_max({"a": 1.0, "b": -2.0})
    progress.track_max({"a": 0.5, "b": -1.0})
    assert progress.pop_max() == {"a": 1.0, "b": -1.0, "steps/bad": 1}
    assert progress.pop_max() == {"steps/bad": 1}
    progress.begin_epoch(9.0)
    assert (progress.num_images, progress.loss, progress.epoch_began_s, progress.steps) == (0, 0.0, 9.0, 4)
    assert (progress.means(), progress.scalars("lower")) == (None, {})
    assert {progress.line("lower "), progress.status("lower")} == {"no step was applied"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of one checkpoint; a test replaces it."""
    path = tmp_path_factory.mktemp("checkpoint")
    checkpoint.save(path, tensors(), manifest())
    return path


def check(path):
    """Either a sentence, with the tensors as they were, or a manifest that is one."""
    loaded = tensors(1)
    try:
        read = checkpoint.load(path, loaded)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017, as it may also be read
        assert bits(loaded) == bits(tensors(1))
        return None
    assert Manifest.model_validate_json(read.model_dump_json()) == read
    assert all(name == "metrics.jsonl" or name.count("/") == 1 for name in read.sizes)
    assert bits(loaded) == bits(tensors())
    return read


WORDS = ("sizes",)
WRITTEN = manifest().model_dump_json()


@pytest.mark.fuzz
@given(text=damaged(json.loads(WRITTEN), WORDS).map(json.dumps) | spliced(WRITTEN, WORDS))
def test_any_manifest_is_read_or_refused_by_a_sentence(folder, text):
    path = folder / "mutated.safetensors"
    path.write_bytes(rebuilt((folder / CURRENT).read_bytes(), manifest=text))
    check(path)


@pytest.mark.fuzz
@given(data=st.data())
def test_any_bytes_are_the_same_checkpoint_or_refused_by_a_sentence(folder, data):
    whole, path = (folder / CURRENT).read_bytes(), folder / "spliced.safetensors"
    cut = st.integers(0, len(whole) - 1).map(lambda length: whole[:length])
    path.write_bytes(data.draw(spliced(whole, WORDS) | cut))
    assert check(path) in (None, manifest())
