"""The two commands, run for real at a small size, and a look at what they leave behind."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from nas.models.size import network_size
from nas.models.supernet import Alphas, Supernet
from nas.runs.checkpoint import Manifest
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile
from tests import bad_calls
from tests.in_process import TWO, call

ROOT = Path(__file__).parent.parent
# Small, and yet two epochs have enough steps for a record on every tenth step in each.
SMALL = ["--dataset=digits", "--train-limit=96", "--init-channels=2", "--num-cells=3", "--batch-size=8"]


def run(script, *arguments, cwd, code=0):
    """Run a script of the repository from another folder; returns standard output, or standard error where it fails."""
    environment = os.environ | {"NO_COLOR": "1"}
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with one finished search in it, and what the search printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, run("search.py", *SMALL, *TWO, "--epochs=2", "--seed=3", "--name=small", cwd=folder)


@pytest.fixture(scope="module")
def trained(searched):
    """The same folder with a final network trained in it."""
    folder, _ = searched
    arguments = ["--genotype=small", "--epochs=2", "--holdout-fraction=0.25", "--name=final", *SMALL]
    return folder, run("train_final.py", *arguments, cwd=folder)


def metrics(path, name="step"):
    """The records that have a scalar of that name."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


def test_search_leaves_what_a_run_folder_holds(searched):
    folder, _ = searched
    names = {path.name for path in (folder / "runs" / "small").iterdir()}
    states = {"checkpoint.safetensors", "checkpoint.previous.safetensors"}
    assert (
        names
        == {"config.json", "metrics.jsonl", "genotype.json", "cells", "tensorboard", "log.txt", "report.html"}
        | {"lock", "pid"}
        | states
    )
    assert {path.name for path in folder.iterdir()} >= {"runs", "genotypes"}
    drawings = {path.name for path in (folder / "runs" / "small" / "cells").iterdir()}
    assert {"normal.gv", "reduce.gv"} <= drawings
    assert Genotype.load(folder / "genotypes" / "small.json") == Genotype.load(
        folder / "runs" / "small" / "genotype.json"
    )


def test_the_checkpoint_holds_the_whole_state(searched):
    folder, _ = searched
    path = folder / "runs" / "small"
    tensors = load_file(path / "checkpoint.safetensors")
    space = DARTS.with_primitives(TWO[1:])
    supernet, alphas = Supernet(1, 2, 3, space=space), Alphas(space=space)
    for part, module in (("supernet", supernet), ("alphas", alphas)):
        module.load_state_dict({name: tensors.pop(f"{part}.{name}") for name in module.state_dict()})
    assert Genotype.derive(alphas, space) == Genotype.load(path / "genotype.json")
    for index, weight in enumerate(supernet.parameters()):
        assert tensors.pop(f"weight_optimizer.{index}.momentum_buffer").shape == weight.shape
    for index in range(2):
        assert tensors.pop(f"alpha_optimizer.{index}.step") == 12
        assert all(tensors.pop(f"alpha_optimizer.{index}.{name}").any() for name in ("exp_avg", "exp_avg_sq"))
    assert not tensors
    with safe_open(path / "checkpoint.safetensors", framework="pt") as file:
        manifest = Manifest.model_validate_json(file.metadata()["manifest"])
    assert (manifest.progress.steps, manifest.progress.epochs, manifest.finished) == (12, 2, True)
    assert manifest.genotype == Genotype.load(path / "genotype.json").to_text()
    assert manifest.config["lower"]["epochs"] == 2
    assert manifest.sizes["metrics.jsonl"] == (path / "metrics.jsonl").stat().st_size
    # One forward pass a step moves the batch norms of the live supernet: the other four leave them alone.
    assert supernet.stem[1].num_batches_tracked == 12


def test_search_says_where_the_cell_comes_from(searched):
    folder, _ = searched
    provenance = GenotypeFile.load(folder / "genotypes" / "small.json").provenance
    assert (provenance.dataset, provenance.seed, provenance.epochs) == ("digits", 3, 2)
    assert provenance.num_images == 96
    assert provenance.versions["torch"] == torch.__version__.partition("+")[0] or provenance.versions["torch"]
    assert 0 <= provenance.supernet_accuracy <= 1
    last = metrics(folder / "runs" / "small", "upper/accuracy")[-1]
    assert provenance.supernet_accuracy == last["upper/accuracy"]


def test_search_ends_with_cell_size_files_and_the_command_that_retrains_it(searched):
    folder, out = searched
    lines = out.strip().splitlines()
    genotype = Genotype.load(folder / "genotypes" / "small.json")
    assert lines[-4] == genotype.to_text()
    size = network_size(genotype, image_size=8, in_channels=1)
    assert f"{size.weights:,} weights, {size.multiply_adds:,} multiply-adds" in lines[-3]
    assert "genotypes/small.json" in lines[-2]
    assert lines[-1] == (
        "train it: python train_final.py --genotype genotypes/small.json --dataset digits --train-limit 96 --seed 3"
    )


def test_the_stem_of_imagenet_goes_from_the_search_to_the_final_network(tmp_path, capsys):
    (tmp_path / "own").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (16, 98, 98), np.uint8)
    for part in ("train", "test"):
        np.savez(tmp_path / "own" / f"{part}.npz", images=images, labels=np.arange(16) % 2)
    small = ["--init-channels=2", "--num-cells=3", "--batch-size=8", "--epochs=1"]
    own = ["--dataset=npz", "--data-dir=own", *small]
    hint = "--stem imagenet takes such images to 13 × 13 before the first cell"
    assert call("search", tmp_path, *own, *TWO, "--dry-run") == 0
    assert hint in capsys.readouterr().out
    assert call("search", tmp_path, *own, *TWO, "--stem=imagenet", "--name=large") == 0
    printed = capsys.readouterr().out
    assert hint not in printed
    size = network_size(Genotype.load(tmp_path / "genotypes/large.json"), 98, 1, num_classes=2, stem="imagenet")
    assert f"(36 channels, 20 cells, imagenet stem): {size.weights:,} weights, {size.multiply_adds:,} mul" in printed
    how = "--genotype genotypes/large.json --dataset npz --data-dir own --stem imagenet"
    assert printed.endswith(f"train it: python train_final.py {how}\n")
    assert f"python train_final.py --genotype runs/large/genotype.json{how[31:]}" in (
        tmp_path / "runs/large/report.html"
    ).read_text(encoding="utf-8")
    assert call("train_final", tmp_path, *how.split(), *small, "--name=final") == 0
    config = json.loads((tmp_path / "runs/final/config.json").read_text())["config"]
    assert config["network"]["stem"] == "imagenet"


@pytest.mark.parametrize(("script", "more"), [("search", []), ("train_final", ["--genotype=DARTS_V2"])])
def test_images_that_are_too_small_for_the_stem_of_imagenet_are_refused(script, more, tmp_path, capsys):
    assert call(script, tmp_path, *SMALL, *more, "--stem=imagenet") == 2
    assert capsys.readouterr().err == (
        "error: --stem imagenet: it divides the sides of the images by eight, so it needs at least 32 pixels per side; "
        "these images have 8. Use --stem cifar.\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_metrics_and_tensorboard_hold_the_same_scalars(searched):
    folder, _ = searched
    lines = metrics(folder / "runs" / "small")
    assert [line["epoch"] for line in lines if "upper/accuracy" in line] == [1, 2]
    events = EventAccumulator(str(folder / "runs" / "small" / "tensorboard")).Reload()
    recorded = {name for line in lines for name in line} - {"epoch", "step", "time_s"}
    assert set(events.Tags()["scalars"]) == recorded
    for name in recorded:
        pairs = [(line["step"], line[name]) for line in lines if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in pairs
        ]
    levels = {f"{level}/{what}" for level in ("lower", "upper") for what in ("loss", "accuracy", "step_loss")}
    levels |= {f"{level}/{what}" for level in ("lower", "upper") for what in ("learning_rate", "gradient_norm")}
    cells = {f"cells/{what}" for what in ("entropy_normal_nats", "entropy_reduce_nats", "skip_connections_normal")}
    assert levels | cells | {"speed/images_per_s", "cells/skip_connections_reduce"} <= recorded
    # One curve an edge and primitive: 2 cells, 14 edges, 2 primitives.
    assert sum(name.startswith("edge_weights_") for name in recorded) == 2 * 14 * 2
    assert {"heat_map/normal", "heat_map/reduce"} <= set(events.Tags()["images"])


def test_tensorboard_compares_runs_by_their_flags(searched):
    folder, _ = searched
    events = EventAccumulator(str(folder / "runs" / "small" / "tensorboard")).Reload()
    start, experiment = (
        HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{part}").plugin_data.content)
        for part in ("session_start_info", "experiment")
    )
    flags = start.session_start_info.hparams
    assert (flags["init_channels"].number_value, flags["seed"].number_value) == (2, 3)
    assert (flags["dataset"].string_value, flags["share_lower_step"].string_value) == ("digits", "no")
    compared = {metric.name.tag for metric in experiment.experiment.metric_infos}
    assert {"upper/accuracy", "lower/accuracy"} <= compared & set(events.Tags()["scalars"])


def test_pictures_are_in_the_folder_and_in_tensorboard(searched):
    folder, _ = searched
    if not (folder / "runs" / "small" / "cells" / "normal.png").exists():
        pytest.skip("Graphviz is not installed")
    for cell in ("normal", "reduce"):
        assert Image.open(folder / "runs" / "small" / "cells" / f"{cell}.png").width > 300
        assert "<svg" in (folder / "runs" / "small" / "cells" / f"{cell}.svg").read_text()
    events = EventAccumulator(str(folder / "runs" / "small" / "tensorboard")).Reload()
    assert [image.step for image in events.Images("cells/normal")] == [6, 12]


def test_the_learning_rate_is_that_of_the_epoch(searched):
    folder, _ = searched
    lines = metrics(folder / "runs" / "small", "lower/learning_rate")
    assert {line["epoch"]: line["lower/learning_rate"] for line in lines} == {1: 0.025, 2: pytest.approx(0.013)}


def test_the_same_seed_gives_the_same_bits(searched, tmp_path):
    folder, _ = searched
    assert call("search", tmp_path, *SMALL, *TWO, "--epochs=2", "--seed=3", "--name=again") == 0

    def without_times(path):
        return [
            {name: value for name, value in line.items() if name != "time_s" and not name.startswith("speed/")}
            for line in metrics(path)
        ]

    assert without_times(folder / "runs" / "small") == without_times(tmp_path / "runs" / "again")
    assert call("search", tmp_path, *SMALL, *TWO, "--epochs=1", "--seed=4", "--name=other") == 0
    assert without_times(folder / "runs" / "small")[0] != without_times(tmp_path / "runs" / "other")[0]


def test_first_order_and_its_own_number_of_nodes(tmp_path):
    arguments = [*SMALL, *TWO, "--epochs=1", "--hypergradient=first-order", "--num-nodes=2", "--upper-fraction=0.25"]
    assert call("search", tmp_path, *arguments, "--name=a", "--run-dir=elsewhere") == 0
    assert len(Genotype.load(tmp_path / "genotypes" / "a.json").normal) == 4
    first = (tmp_path / "elsewhere" / "a" / "log.txt").read_text().splitlines()[1]
    assert "digits: 72 images for the weights, 24 for the alphas" in first


def test_search_never_opens_the_test_set(tmp_path, capfd):
    for name, colour in (("ant", 10), ("bee", 240)):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (20, 16), (colour, index, 0)).save(tmp_path / "images" / "train" / name / f"{index}.png")
    arguments = [
        "--dataset=folder",
        "--data-dir=images",
        "--image-size=8",
        "--epochs=1",
        "--name=own",
        "--batch-size=4",
    ]
    assert call("search", tmp_path, *arguments, *TWO, "--init-channels=2", "--num-cells=3") == 0
    # There is no test folder at all.
    command = "python train_final.py --genotype genotypes/own.json --dataset folder --data-dir images --image-size 8"
    assert capfd.readouterr().out.strip().endswith(command)
    assert call("train_final", tmp_path, *command.split()[2:]) == 2
    assert "no folder images/test" in capfd.readouterr().err
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["own"]


def test_final_training_leaves_what_it_takes_to_evaluate(trained):
    folder, out = trained
    path = folder / "runs" / "final"
    names = {entry.name for entry in path.iterdir()}
    expected = {
        "config.json",
        "metrics.jsonl",
        "genotype.json",
        "cells",
        "tensorboard",
        "log.txt",
        "weights.safetensors",
        "accuracy.json",
        "checkpoint.safetensors",
        "checkpoint.previous.safetensors",
        "lock",
        "pid",
    }
    assert names == expected
    assert Genotype.load(path / "genotype.json") == Genotype.load(folder / "genotypes" / "small.json")
    config = json.loads((path / "config.json").read_text())
    assert config["trained_on"]["classes"] == list("0123456789")
    assert all(tensor.isfinite().all() for tensor in load_file(path / "weights.safetensors").values())
    accuracy = re.search(r"test accuracy after epoch 2: ([\d.]+)% of 360 images", out.strip().splitlines()[-1])
    assert accuracy
    again = run("train_final.py", "--evaluate=runs/final", cwd=folder)
    assert f"test accuracy {accuracy[1]}% of 360 images" in again


def test_test_accuracy_is_measured_once_after_the_last_epoch(trained):
    folder, _ = trained
    lines = metrics(folder / "runs" / "final")
    assert [("test/accuracy" in line) for line in lines] == [False] * (len(lines) - 1) + [True]
    assert [line["epoch"] for line in lines if "holdout/accuracy" in line] == [1, 2]
    log = (folder / "runs" / "final" / "log.txt").read_text()
    assert "72 training images (24 held out)" in log.splitlines()[1]
    assert re.search(r"weights, [\d,]+ multiply-adds \(\d\.\d+ GFLOP\) per image", log.splitlines()[1])
    assert re.search(r" [\d.]+ images per second, [\d.]+ s per step: \d+:\d\d:\d\d for 7 steps, until 20", log)


def test_drop_path_rises_linearly_from_zero(trained):
    folder, _ = trained
    by_epoch = {
        line["epoch"]: line["train/drop_path"] for line in metrics(folder / "runs" / "final", "train/drop_path")
    }
    assert by_epoch == {1: 0.0, 2: 0.1}


def test_retraining_is_the_same_bit_for_bit(trained, tmp_path):
    """The second one is given the text of the cell, with a field that it has not."""
    folder, _ = trained
    text = Genotype.load(folder / "genotypes" / "small.json").to_text().removesuffix(")") + ", aux=[])"
    assert call("train_final", tmp_path, f"--genotype={text}", "--epochs=2", "--holdout-fraction=0.25", *SMALL) == 0
    (path,) = (tmp_path / "runs").glob("final-genotype-seed*")
    assert "these fields are left out: aux." in (path / "log.txt").read_text()
    first = load_file(folder / "runs" / "final" / "weights.safetensors")
    again = load_file(path / "weights.safetensors")
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_damaged_run_is_refused_by_name(trained, tmp_path, capfd):
    folder, _ = trained
    path = tmp_path / "run"
    shutil.copytree(folder / "runs" / "final", path)
    (path / "weights.safetensors").write_bytes(b"damaged")
    assert call("train_final", tmp_path, "--evaluate=run") == 2
    assert "weights run/weights.safetensors" in capfd.readouterr().err
    config = json.loads((path / "config.json").read_text())
    config["config"]["network"]["num_cells"] = 10**9
    (path / "config.json").write_text(json.dumps(config))
    assert call("train_final", tmp_path, "--evaluate=run") == 2
    assert "config run/config.json: network.num_cells: must be less than or equal to 200" in capfd.readouterr().err


@pytest.mark.parametrize(("script", "arguments", "sentence"), bad_calls.CALLS)
def test_a_bad_call_is_one_sentence_and_changes_nothing(tmp_path, monkeypatch, capsys, script, arguments, sentence):
    bad_calls.make_surroundings(tmp_path)
    before = bad_calls.content(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    # In this process, as starting torch takes longer than failing.
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert bad_calls.fault(stop.value.code, capsys.readouterr().err, sentence) is None
    assert bad_calls.content(tmp_path) == before


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_bad_call_in_a_process_of_its_own(tmp_path, monkeypatch, encoding):
    monkeypatch.setenv("PYTHONIOENCODING", encoding)
    error = run("search.py", "--batchsize=3", cwd=tmp_path, code=2)
    assert "Unrecognized options: --batchsize=3" in error
    assert "--batch-size INT" in error


@pytest.mark.slow
def test_without_graphviz_the_source_is_written_and_one_line_says_how_to_get_pictures(tmp_path):
    # A module that hides pygraphviz, and a PATH without dot.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'pygraphviz' else find(name, *rest)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "search.py"), *SMALL, "--num-nodes=1", *TWO, "--epochs=1", "--name=bare"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs" / "bare" / "cells").iterdir()) == ["normal.gv", "reduce.gv"]
    assert [line for line in done.stdout.splitlines() if "pip install 'pygraphviz>=2.0'" in line]
