import copy
import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nas import image_folder
from nas.config import ConfigFile, FinalConfig, SearchConfig, TrainedOn, read_config, validate
from nas.errors import InputError

TRAINED_ON = {"classes": ["a", "b"], "in_channels": 1, "image_size": 8, "mean": [0.5], "std": [0.25]}
ENVIRONMENT = {"date": "2026-11-24T00:00:00+00:00", "command": "python search.py", "versions": {"nas": "1"}}
SEARCH = {"format_version": 1, "config": dataclasses.asdict(SearchConfig()), "environment": ENVIRONMENT}
FINAL = {
    "format_version": 1,
    "config": dataclasses.asdict(FinalConfig()),
    "trained_on": TRAINED_ON,
    "environment": ENVIRONMENT,
    "resumed": [ENVIRONMENT],
}

SCRAPS = st.text(max_size=3) | st.sampled_from(
    [*'[]{},:"\\\n\0²0123456789', "NaN", "-Infinity", "1e999", "\\ud800", "9" * 5000, "[" * 300, "date", "config"]
)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | SCRAPS
    | st.sampled_from([10**400, "\x1b[31m\n", "folder"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCRAPS, inner, max_size=3),
    max_leaves=4,
)


@st.composite
def mutated(draw, content):
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        item = content
        while True:
            key = draw(st.sampled_from(sorted(item) if isinstance(item, dict) else range(len(item))))
            if not (isinstance(item[key], dict | list) and item[key] and draw(st.integers(0, 3))):
                break
            item = item[key]
        match draw(st.sampled_from(["replace", "add", "delete"])):
            case "replace":
                item[key] = draw(JUNK)
            case "add" if isinstance(item, dict):
                item[draw(SCRAPS)] = draw(JUNK)
            case "add":
                item.insert(key, draw(JUNK))
            case "delete" if len(item) > 1:
                del item[key]
    return content


@st.composite
def spliced(draw, whole):
    """Bytes with up to three pieces in the place of others."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(whole)))
        piece = draw(st.binary(max_size=9) | SCRAPS.map(lambda scrap: scrap.encode()))
        whole = whole[:start] + piece + whole[start + draw(st.integers(0, 12)) :]
    return whole


def outcome(read, *arguments):
    try:
        return read(*arguments)
    except InputError as error:
        return str(error)


def check(result, kind):
    """Either a sentence or an object of that kind."""
    if isinstance(result, str):
        assert result.isprintable()
    else:
        assert type(result) is kind


@pytest.mark.fuzz
@pytest.mark.parametrize("content", [SEARCH, FINAL], ids=["search", "final"])
@given(data=st.data())
def test_any_config_file_is_read_or_refused_by_a_sentence(tmp_path_factory, content, data):
    folder = tmp_path_factory.getbasetemp()
    text = mutated(content).map(lambda changed: json.dumps(changed).encode()) | spliced(json.dumps(content).encode())
    (folder / "config.json").write_bytes(data.draw(text))
    check(outcome(read_config, folder), ConfigFile)


@pytest.mark.fuzz
@pytest.mark.parametrize(
    ("kind", "content"), [(SearchConfig, SEARCH["config"]), (FinalConfig, FINAL["config"]), (TrainedOn, TRAINED_ON)]
)
@given(data=st.data())
def test_any_config_is_valid_or_refused_by_a_sentence(tmp_path_factory, kind, content, data):
    path = tmp_path_factory.getbasetemp() / "config.json"
    result = outcome(validate, kind, data.draw(mutated(content) | JUNK), path)
    check(result, kind)
    if not isinstance(result, str):
        assert validate(kind, dataclasses.asdict(result), path) == result


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two images, those images, and its cache as bytes."""
    root = tmp_path_factory.mktemp("images")
    for name, colour in (("cat", (1, 2, 3)), ("dog", (4, 5, 6))):
        (root / "train" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8), colour).save(root / "train" / name / "0.png")
    loaded, _, _ = image_folder.load(root, "train", 8, torch.arange)
    cache = root / ".nas-train-8.safetensors"
    return root, loaded, cache, cache.read_bytes()


@pytest.mark.fuzz
@given(data=st.data())
def test_a_damaged_cache_gives_the_images_that_are_in_the_folder(images, data):
    root, expected, cache, whole = images
    cut = st.integers(0, len(whole) - 1).map(lambda length: whole[:length])
    cache.write_bytes(data.draw(spliced(whole) | cut))
    with pytest.MonkeyPatch.context() as patch:  # the disk's sync takes most of the time
        patch.setattr(image_folder.files, "sync", lambda path: None)
        loaded, targets, classes = image_folder.load(root, "train", 8, torch.arange)
    assert torch.equal(loaded, expected)
    assert (targets.tolist(), classes) == ([0, 1], ("cat", "dog"))
