import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.config.file import ConfigFile, read_config, validate
from nas.config.flags import FinalConfig, SearchConfig, TrainedOn
from nas.errors import InputError
from tests.damaged_json import damaged, junk, spliced

TRAINED_ON = {"classes": ["a", "b"], "in_channels": 1, "image_size": 8, "mean": [0.5], "std": [0.25]}
ENVIRONMENT = {"date": "2026-11-24T00:00:00+00:00", "command": "python search.py", "versions": {"nas": "1"}}
SEARCH = {"format_version": 1, "config": dataclasses.asdict(SearchConfig()), "environment": ENVIRONMENT}
FINAL = SEARCH | {"config": dataclasses.asdict(FinalConfig()), "trained_on": TRAINED_ON, "resumed": [ENVIRONMENT]}

WORDS = ("date", "config")


def outcome(kind, read, *arguments):
    """An object of that kind, or None after a sentence."""
    try:
        result = read(*arguments)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017, as it may also be read
        return None
    assert type(result) is kind
    return result


@pytest.mark.fuzz
@given(data=st.data())
def test_any_config_file_is_read_or_refused_by_a_sentence(tmp_path_factory, data):
    folder, content = tmp_path_factory.getbasetemp(), data.draw(st.sampled_from([SEARCH, FINAL]))
    text = damaged(content, WORDS).map(json.dumps).map(str.encode) | spliced(json.dumps(content).encode(), WORDS)
    (folder / "config.json").write_bytes(data.draw(text))
    outcome(ConfigFile, read_config, folder)


@pytest.mark.fuzz
@given(data=st.data())
def test_any_config_is_valid_or_refused_by_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "config.json"
    kinds = [(SearchConfig, SEARCH["config"]), (FinalConfig, FINAL["config"]), (TrainedOn, TRAINED_ON)]
    kind, content = data.draw(st.sampled_from(kinds))
    result = outcome(kind, validate, kind, data.draw(damaged(content, WORDS) | junk(WORDS)), path)
    if result is not None:
        assert validate(kind, dataclasses.asdict(result), path) == result
