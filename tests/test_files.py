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
def test_json_is_the_same_after_it_was_laid_out(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    files.write_json(path, content)
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_a_flat_list_takes_one_line(tmp_path):
    files.write_json(tmp_path / "a.json", {"edges": [["a  b", 1], ["c", 2]]})
    assert (tmp_path / "a.json").read_text() == '{\n "edges": [\n  ["a  b", 1],\n  ["c", 2]\n ]\n}\n'


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


def test_weights_round_trip_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    saved, loaded = network(), network()
    save_weights(tmp_path / "w.safetensors", saved)
    load_weights(tmp_path / "w.safetensors", loaded)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_weights_are_loaded_into_a_network_without_storage(tmp_path):
    saved = network()
    save_weights(tmp_path / "w.safetensors", saved)
    with torch.device("meta"):
        loaded = network()
    load_weights(tmp_path / "w.safetensors", loaded)
    loaded.to(memory_format=torch.channels_last)
    image = torch.rand(2, 1, 8, 8)
    assert torch.equal(loaded.eval()(image), saved.eval()(image))


def spoilt_weights():
    weights = {name: tensor.contiguous() for name, tensor in network().state_dict().items()}
    missing = {name: tensor for name, tensor in weights.items() if name != "0.bias"}
    return [
        (missing, "of another network: only one of the two has '0.bias'"),
        (weights | {"surplus": torch.zeros(1)}, "of another network: only one of the two has 'surplus'"),
        (weights | {"0.bias": torch.zeros(3)}, r"0.bias has the shape \(3,\), not \(2,\)"),
        (weights | {"0.bias": torch.zeros(2).double()}, "0.bias is of dtype F64, not F32"),
    ]


@pytest.mark.parametrize(("weights", "sentence"), spoilt_weights())
def test_weights_of_another_network_are_refused(tmp_path, weights, sentence):
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=sentence):
        load_weights(tmp_path / "w.safetensors", network())


def test_damaged_weights_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(InputError, match="no such file"):
        load_weights(path, network())
    save_weights(path, network())
    whole = path.read_bytes()
    torch_file = tmp_path / "w.pt"
    torch.save(network().state_dict(), torch_file)
    for content in (b"", whole[:20], whole[:-1], b"\xff" * len(whole), torch_file.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a safetensors file, or a damaged one"):
            load_weights(path, network())
