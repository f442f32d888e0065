import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nas import files
from nas.errors import InputError
from nas.runs.checkpoint import load_weights, save_weights

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(json_values)
def test_json_is_the_same_after_it_was_laid_out(content):
    assert json.loads(files.json_text(content)) == content


def test_a_flat_list_takes_one_line(tmp_path):
    files.write_json(tmp_path / "a.json", {"edges": [["a  ä", 1], ["c", 2]]})
    laid_out = '{\n "edges": [\n  ["a  ä", 1],\n  ["c", 2]\n ]\n}\n'
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == laid_out


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})

    def half(aside):
        aside.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk is full"):
        files.replace(path, half)
    assert os.listdir(tmp_path) == ["a.json"]
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_link_in_the_place_of_the_file_aside_is_not_followed(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "a.json"
    victim.write_text("precious")
    (tmp_path / f".a.json.{os.getpid()}").symlink_to(victim)
    files.write_json(path, {"a": 1})
    assert victim.read_text() == "precious"
    assert not path.is_symlink()
    assert json.loads(path.read_text()) == {"a": 1}


def test_a_key_that_is_given_twice_is_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"b": {"c": 1, "c": 2}}')
    with pytest.raises(InputError, match=r"genotype .*a\.json: not JSON \('c' is given twice\)"):
        files.read_json(tmp_path / "a.json", "genotype", 1)


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).to(memory_format=torch.channels_last)


def test_weights_round_trip_bit_for_bit_even_into_a_network_without_storage(tmp_path):
    saved, loaded = network(), network()
    with torch.device("meta"):
        without_storage = network()
    save_weights(tmp_path / "w.safetensors", saved)
    for other in (loaded, without_storage):
        load_weights(tmp_path / "w.safetensors", other)
        other.to(memory_format=torch.channels_last)
        for name, tensor in saved.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"0.bias": None}, "of another network: only one of the two has '0.bias'"),
        ({"surplus": torch.zeros(1)}, "of another network: only one of the two has 'surplus'"),
        ({"0.bias": torch.zeros(3)}, r"0.bias has the shape \(3,\), not \(2,\)"),
        ({"0.bias": torch.zeros(2).double()}, "0.bias is of dtype F64, not F32"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, changed, sentence):
    weights = {name: tensor.contiguous() for name, tensor in network().state_dict().items()} | changed
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=sentence):
        load_weights(tmp_path / "w.safetensors", network())


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_weights(path, network())
    save_weights(path, network())
    whole = path.read_bytes()
    for content in (b"", whole[:20], whole[:-1], b"\xff" * len(whole)):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a safetensors file, or a damaged one"):
            load_weights(path, network())
