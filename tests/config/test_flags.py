import dataclasses
import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from nas.config import foreign_flags
from nas.config.cli import config_to_resume, data_flags, parse
from nas.config.file import from_json, to_json, validate
from nas.config.flags import Data, FinalConfig, Run, SearchConfig, TrainedOn
from nas.errors import InputError
from nas.runs.folder import RunFolder
from nas.search_space.darts import DARTS

KINDS = (SearchConfig, FinalConfig)


def test_the_defaults_are_the_published_ones():
    config, final = SearchConfig(), FinalConfig()
    assert config.data.dataset == "cifar10"
    assert dataclasses.astuple(config.supernet) == ("darts", 16, 8, 4, None, 1, None, "cifar")
    assert dataclasses.astuple(config.lower) == (50, 64, 0.025, 0.001, 0.9, 3e-4, 5.0)
    assert dataclasses.astuple(config.upper)[:6] == (3e-4, 1e-3, 0.5, "onestage", False, 0.01)
    selection = dataclasses.astuple(config.selection)
    assert selection == (None, 1, 0, None, 1, False, None, 100, 1, False, 36, 20, False, 600, 36, 20, None, None, 1.0)
    assert dataclasses.astuple(final.network) == (None, None, None, None, "cifar", 0.4, 0.2)
    assert DARTS.final_network == (36, 20)
    assert dataclasses.astuple(final.training) == (600, 96, 0.025, 0.9, 3e-4, 5.0, None, 0.0, False)
    assert [parse(kind, []) for kind in KINDS] == [config, final]


@pytest.mark.parametrize("kind", foreign_flags.SCRIPTS)
def test_what_is_said_of_a_foreign_flag_names_flags_of_the_script(kind):
    own, script = foreign_flags.flags_of(kind), foreign_flags.SCRIPTS[kind]
    assert "batch-size" in own
    for flag in foreign_flags.SENTENCES[kind]:
        assert flag not in own
        for given in ([f"--{flag}"], [f"--{flag}=0.25"], [f"--{flag.replace('-', '_')}", "0.25"]):
            sentence = foreign_flags.advice(kind, given)
            first, _, rest = sentence.partition(": ")
            assert (first, rest[-1]) == (given[0].partition("=")[0], ".")
            assert set(re.findall(r"--([a-z0-9-]+)", rest)) - {"nproc-per-node"} <= own, sentence
            assert script in rest or "torchrun" not in rest
    assert foreign_flags.advice(kind, ["--batch_size", "3", "--epochs=2", "--data-dir", "layers", "--seed", "-1"]) == ""


@pytest.mark.parametrize("kind", KINDS)
def test_help_lists_and_explains_every_flag(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(kind, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "Example: python" in text
    for group in dataclasses.fields(kind):
        flags = type(getattr(kind(), group.name))
        assert all(f"--{field.name.replace('_', '-')}" in text for field in dataclasses.fields(flags))
        for part in flags.__mro__[:-1]:
            assert inspect.getsource(part).count('    """') == len(part.__annotations__) + 1, part


@pytest.mark.parametrize(
    ("group", "field", "value", "what"),
    [
        ("lower", "epochs", "3", "must be a valid integer, got '3'."),
        ("lower", "epochs", True, "must be a valid integer, got True."),
        ("lower", "lower_lr", 1e39, "must be at most 3e38, got 1e+39."),
        ("run", "surplus", 1, "unknown field."),
        ("run", "name", "a\n", "must be up to 100 letters, digits, '.', '_' or '-', and begin with a letter or"),
        ("selection", "searches", None, "must be a valid integer, got None."),
    ],
)
def test_a_config_file_is_read_strictly(group, field, value, what):
    content = dataclasses.asdict(parse(SearchConfig, ["--epochs", "3"]))
    assert validate(SearchConfig, content).lower.epochs == 3
    content[group][field] = value
    with pytest.raises(InputError, match=re.escape(f"config folder/config.json: {group}.{field}: {what}")):
        validate(SearchConfig, content, Path("folder/config.json"))


def test_what_a_network_was_trained_on_is_read_back():
    content = {"classes": ["a", "b"], "in_channels": 1, "image_size": 8, "mean": [0.5], "std": [0.25]}
    trained_on = validate(TrainedOn, content)
    assert (trained_on.classes, trained_on.resize, trained_on.bits) == (("a", "b"), "crop", 16)
    assert validate(TrainedOn, content | {"resize": "pad", "bits": 12}).bits == 12
    with pytest.raises(InputError, match="config c: in_channels: must be less"):
        validate(TrainedOn, content | {"in_channels": 10**9}, Path("c"))


@pytest.mark.parametrize(
    ("data", "seed", "stem", "flags"),
    [
        (Data(), 3, "cifar", ""),
        (Data(dataset="digits"), 0, "imagenet", " --dataset digits --stem imagenet"),
        (Data(balanced=True), 3, "cifar", " --balanced"),
        (Data("folder", "$HO '", 8, train_limit=4, skip_bad_images=True), 42, "cifar", " --skip-bad-images --seed 42"),
        (Data("npz", "ä", no_flip=True, crop_padding=0), 3, "cifar", " --no-flip --crop-padding 0"),
        (Data("folder", resize="pad", test_fraction=0.25), 3, "cifar", " --resize pad --test-fraction 0.25"),
    ],
)
def test_data_flags_give_the_final_training_the_same_images(data, seed, stem, flags):
    given = data_flags(data, seed, stem)
    assert flags in given
    config = parse(FinalConfig, ["--genotype=DARTS_V2", *shlex.split(given)])
    assert (config.data, config.network.stem) == (data, stem)
    assert config.data.train_limit is None or config.run.seed == seed


def write(path, config):
    environment = {"date": "2026-11-24T00:00:00+00:00"}
    path.write_text(json.dumps({"format_version": 1, "config": dataclasses.asdict(config), "environment": environment}))
    return str(path)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SearchConfig, []),
        (SearchConfig, ["--preset=quick", "--seed=7", "--run-dir=-odd one", "--balanced", "--alpha-lr=1e-5"]),
        (SearchConfig, ["--searches=4", "--ray", "--devices-per-search=0.5", "--threads=3", "--dataset=folder"]),
        (FinalConfig, ["--genotype=DARTS_V2", "--skip-test", "--holdout-fraction=0.5", "--cutout=0", "--data-dir=ä"]),
    ],
)
def test_a_config_is_the_same_from_a_file_and_in_another_process(kind, arguments, tmp_path):
    config = parse(kind, [*arguments, "--name=a"])
    assert from_json(kind, to_json(config)) == config
    file = write(tmp_path / "c.json", config)
    read = parse(kind, [f"--config={file}", "--name=a", "--threads=2"])
    assert read == dataclasses.replace(config, run=dataclasses.replace(config.run, config=file, threads=2))
    with pytest.raises(InputError, match=f"--config .*c.json: belongs to {foreign_flags.SCRIPTS[kind]}, not to this"):
        parse(next(other for other in KINDS if other is not kind), [f"--config={file}"])


def test_a_resumed_run_takes_from_a_config_file_what_may_change(tmp_path):
    began = parse(SearchConfig, ["--dataset=digits", "--seed=7", "--epochs=7"])
    RunFolder.create(tmp_path / "a", began).close()
    file = write(tmp_path / "c.json", dataclasses.replace(began, run=dataclasses.replace(began.run, threads=2)))
    resume = [f"--resume={tmp_path / 'a'}", f"--config={file}"]
    config = parse(SearchConfig, [*resume, "--device=cpu", "--epochs=9"])
    assert (config.run.threads, config.run.device, config.run.resume) == (2, "cpu", str(tmp_path / "a"))
    assert (config.run.seed, config.lower.epochs, config.data.dataset) == (7, 9, "digits")
    write(tmp_path / "c.json", dataclasses.replace(began, run=Run(seed=8)))
    with pytest.raises(InputError, match=r"--seed 8: the run in .* has 7, which cannot change; leave the flag out"):
        parse(SearchConfig, resume)
    assert config_to_resume(began, tmp_path / "a") == began


def test_a_cluster_is_not_taken_from_a_file_and_ray_needs_no_address(tmp_path):
    write(tmp_path / "config.json", parse(SearchConfig, ["--searches=2", "--ray=10.0.0.1:6379"]))
    resume = f"--resume={tmp_path}"
    with pytest.raises(InputError, match=r"--ray: missing; the run used the cluster 10\.0\.0\.1:6379"):
        parse(SearchConfig, [resume])
    for address in ([], ["auto"], ["head-1.net:6379"]):
        for flags in ([resume, "--ray", *address], ["--searches=2", "--ray", *address, "--seed=1"]):
            assert parse(SearchConfig, flags).selection.ray == (address or ["local"])[0]
