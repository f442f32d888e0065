import dataclasses
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nas.config import foreign_flags
from nas.config.cli import data_flags, flags, parse
from nas.config.file import validate
from nas.config.flags import Data, FinalConfig, SearchConfig, TrainedOn
from nas.entry import run_script
from nas.errors import InputError, Stopped
from nas.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]


def test_the_defaults_are_the_published_ones():
    config = SearchConfig()
    assert config.data.dataset == "cifar10"
    assert dataclasses.astuple(config.supernet) == (16, 8, 4, "cifar")
    assert dataclasses.astuple(config.lower) == (50, 64, 0.025, 0.001, 0.9, 3e-4, 5.0)
    assert dataclasses.astuple(config.upper) == (3e-4, 1e-3, 0.5, "onestage", False, 0.01)
    assert dataclasses.astuple(config.several) == (1, 0, 100, 36, 20, None, 1.0)
    final = FinalConfig()
    assert dataclasses.astuple(final.network) == (None, None, 36, 20, "cifar", 0.4, 0.2)
    assert dataclasses.astuple(final.training) == (600, 96, 0.025, 0.9, 3e-4, 5.0, None, 0.0, False)


@pytest.mark.parametrize("kind", [SearchConfig, FinalConfig])
def test_the_stem_for_imagenet_halves_its_channels(kind):
    config = parse(kind, ["--stem=imagenet", "--init-channels=2"])
    assert (config.supernet if kind is SearchConfig else config.network).stem == "imagenet"
    with pytest.raises(InputError, match="--init-channels: must be at least 2 with --stem imagenet, got 1"):
        parse(kind, ["--stem=imagenet", "--init-channels=1"])


def test_flags_reach_their_fields():
    config = parse(
        SearchConfig,
        ["--dataset", "svhn", "--train-limit", "100", "--num-nodes", "5", "--lower-lr", "0.1", "--seed", "7"],
    )
    assert (config.data.dataset, config.data.train_limit, config.supernet.num_nodes) == ("svhn", 100, 5)
    assert (config.lower.lower_lr, config.run.seed) == (0.1, 7)
    assert parse(SearchConfig, []) == SearchConfig()


def test_a_cluster_is_not_taken_from_a_file(tmp_path):
    config = parse(SearchConfig, ["--searches=2", "--ray=10.0.0.1:6379", "--dataset=digits"])
    RunFolder.create(tmp_path / "a", config).close()
    resume = f"--resume={tmp_path / 'a'}"
    with pytest.raises(InputError, match=r"--ray: missing; the run was spread over 10\.0\.0\.1:6379"):
        parse(SearchConfig, [resume])
    assert parse(SearchConfig, [resume, "--ray"]).several.ray == "local"
    assert parse(SearchConfig, [resume, "--ray", "10.0.0.1:6379"]).several.ray == "10.0.0.1:6379"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--batchsize", "3"], "--batch-size INT"),  # the nearest one
        (["--epochs", "ten"], "--epochs"),
        (["--epochs=1.5"], "--epochs"),
        (["--lower-lr", "a 'b'"], "--lower-lr"),
        (["--name"], "--name"),
        (["stray"], "stray"),
    ],
)
def test_what_cannot_be_parsed_is_named(given, named, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(SearchConfig, given)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


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


def test_help_lists_every_flag_in_groups(capsys):
    for kind in (SearchConfig, FinalConfig):
        with pytest.raises(SystemExit) as stop:
            parse(kind, ["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        for group in dataclasses.fields(kind):
            for field in dataclasses.fields(getattr(kind(), group.name)):
                assert f"--{field.name.replace('_', '-')}" in text
        assert "Example: python" in text
        assert "DARTS" in text


def test_every_flag_says_what_it_is():
    for kind in (SearchConfig, FinalConfig):
        for group in dataclasses.fields(kind):
            for part in type(getattr(kind(), group.name)).__mro__[:-1]:
                assert inspect.getsource(part).count('    """') == len(part.__annotations__) + 1, part


def test_a_saved_config_is_read_back_strictly():
    content = dataclasses.asdict(parse(SearchConfig, ["--epochs", "3"]))
    assert validate(SearchConfig, content).lower.epochs == 3
    for group, field, value in (("lower", "epochs", "3"), ("lower", "epochs", True), ("run", "surplus", 1)):
        spoilt = {**content, group: {**content[group], field: value}}
        with pytest.raises(InputError, match=rf"config folder/config\.json: {group}\.{field}"):
            validate(SearchConfig, spoilt, Path("folder/config.json"))


def test_what_a_network_was_trained_on_is_read_back():
    content = {"classes": ["a", "b"], "in_channels": 1, "image_size": 8, "mean": [0.5], "std": [0.25]}
    trained_on = validate(TrainedOn, content)  # as runs have it that were begun before there was --resize
    assert (trained_on.classes, trained_on.resize, trained_on.bits) == (("a", "b"), "crop", 16)
    assert validate(TrainedOn, content | {"resize": "pad", "bits": 12}).bits == 12
    with pytest.raises(InputError, match="--in-channels: must be less"):
        validate(TrainedOn, content | {"in_channels": 10**9})


def test_data_flags_name_the_same_images_again():
    assert data_flags(Data()) == ""
    assert data_flags(Data(dataset="digits")) == " --dataset digits"
    own = Data("folder", "my images", image_size=48, train_limit=10, skip_bad_images=True, balanced=True)
    flags = " --dataset folder --data-dir 'my images' --image-size 48 --train-limit 10 --skip-bad-images --balanced"
    assert data_flags(own) == flags
    assert data_flags(own, seed=3) == f"{flags} --seed 3"  # which the draw of --train-limit follows from
    assert data_flags(Data(balanced=True), seed=3) == " --balanced"
    assert data_flags(Data(dataset="digits"), 0, "imagenet") == " --dataset digits --stem imagenet"


@pytest.mark.parametrize(
    ("data", "seed"),
    [
        (Data("folder", "it's $HOME", image_size=8, train_limit=4, skip_bad_images=True, balanced=True), 2**32 - 1),
        (Data("npz", "ä", balanced=True), 3),
        (Data("folder", resize="pad", test_fraction=0.25, no_flip=True, crop_padding=0), 3),
        (Data("digits", no_flip=True, crop_padding=2), 3),
        (Data(), 3),
    ],
)
def test_the_final_training_takes_the_flags_and_has_the_same_images(data, seed):
    config = parse(FinalConfig, ["--genotype=DARTS_V2", *shlex.split(data_flags(data, seed))])
    assert config.data == data
    assert config.data.train_limit is None or config.run.seed == seed


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (SearchConfig, []),
        (
            SearchConfig,
            ["--preset=quick", "--seed=7", "--run-dir=-odd one", "--balanced", "--alpha-lr=1e-5"],
        ),
        (
            SearchConfig,
            ["--searches=4", "--ray", "--devices-per-search=0.5", "--threads=3", "--dataset=folder", "--image-size=48"],
        ),
        (FinalConfig, ["--genotype=DARTS_V2", "--skip-test", "--holdout-fraction=0.5", "--cutout=0", "--device=cpu"]),
    ],
)
def test_the_flags_of_a_config_give_it_again(kind, arguments):
    config = parse(kind, arguments)
    if kind is SearchConfig:
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, preset="paper"))
    assert parse(kind, flags(config)) == config


@pytest.mark.parametrize(("given", "address"), [([], "local"), (["auto"], "auto"), (["head-1.net:6379"], None)])
def test_ray_goes_with_and_without_an_address(given, address):
    for more in ([], ["--seed=1"]):
        config = parse(SearchConfig, ["--searches=2", "--ray", *given, *more])
        assert config.several.ray == (address or given[0])


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (InputError("--name x: exists."), 2, "error: --name x: exists."),
        (Stopped("after step 3.", 143), 143, "stopped: after step 3."),
        (InputError("data\x1b[2J\nerror: all is well"), 2, r"error: data\x1b[2J\nerror: all is well"),
        (Stopped("\x1b]0;\a"), 1, r"stopped: \x1b]0;\x07"),
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C."),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried"),
            1,
            r"stopped: out of memory (CUDA out of memory.\nTried); take a smaller --batch-size.",
        ),
        (None, 0, ""),
    ],
)
def test_exit_codes(monkeypatch, capsys, raised, code, said):
    def run(*_):
        if raised is not None:
            raise raised

    monkeypatch.setattr(sys, "argv", ["search.py"])
    assert run_script(run, SearchConfig) == code
    assert capsys.readouterr().err.strip() == said


def test_help_that_nobody_reads_to_its_end_and_a_full_disk():
    command = [sys.executable, str(ROOT / "train_final.py"), "--help"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
    if Path("/dev/full").exists():
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE)
        assert (done.returncode, done.stderr) == (2, b"error: standard output: No space left on device.\n")


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    def run(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(sys, "argv", ["search.py"])
    with pytest.raises(RuntimeError):
        run_script(run, SearchConfig)


def test_with_restarts_a_run_needs_a_name_and_is_then_found_again(monkeypatch, tmp_path, capsys):
    configs = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    monkeypatch.setattr(sys, "argv", ["search.py", "--dataset=digits"])
    assert run_script(lambda config, _: configs.append(config), SearchConfig) == 2
    assert "--name: missing; torchrun --max-restarts needs it" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["search.py", "--dry-run"])  # which leaves nothing that might be found again
    assert run_script(lambda *_: None, SearchConfig) == 0
    trained_on = TrainedOn(("a", "b"), 1, 8, (0.5,), (0.5,))
    RunFolder.create(tmp_path / "runs" / "b", FinalConfig(), trained_on).close()
    monkeypatch.setattr(sys, "argv", ["train_final.py", "--evaluate=runs/b"])
    assert run_script(lambda *_: None, FinalConfig) == 0
    monkeypatch.setattr(sys, "argv", ["search.py", "--dataset=digits", "--name=a", "--seed=7"])
    assert run_script(lambda config, _: configs.append(config), SearchConfig) == 0
    RunFolder.create(tmp_path / "runs" / "a", configs[0]).close()
    assert run_script(lambda config, _: configs.append(config), SearchConfig) == 0
    assert [config.run.resume for config in configs] == [None, "runs/a"]
    assert configs[1].run.seed == 7
    monkeypatch.setattr(sys, "argv", ["search.py", "--dataset=digits", "--name=a", "--seed=8"])  # not what it has begun
    assert run_script(lambda config, _: configs.append(config), SearchConfig) == 2
    assert "--seed 8: the run in runs/a has 7" in capsys.readouterr().err
    assert len(configs) == 2
