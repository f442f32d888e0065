"""The two commands, run for real at a small size, and a look at what they leave behind."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from nas.models.size import network_size
from nas.models.supernet import Alphas, Supernet
from nas.runs import checkpoint
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile
from tests import bad_calls, torture
from tests.bad_calls import KINDS
from tests.in_process import TWO, call

ROOT = Path(__file__).parent.parent
# Small, and yet two epochs have enough steps for a record on every tenth step in each.
SEARCH = [*torture.SMALL, "--num-nodes=1", *TWO]
FINAL = [*torture.SMALL, "--epochs=2", "--holdout-fraction=0.25"]


def called(script, folder, *arguments):
    """What a script prints that is called in a folder."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert call(script, folder, *arguments) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder with one finished search in it, and what the search printed."""
    folder = tmp_path_factory.mktemp("searched")
    return folder, called("search", folder, *SEARCH, "--epochs=2", "--seed=3", "--name=small")


@pytest.fixture(scope="module")
def run_folder(searched):
    return searched[0] / "runs" / "small"


@pytest.fixture(scope="module")
def events(run_folder):
    return EventAccumulator(str(run_folder / "tensorboard")).Reload()


@pytest.fixture(scope="module")
def trained(searched):
    """The same folder with a final network trained in it, and what the training printed."""
    folder, _ = searched
    return folder / "runs" / "final", called("train_final", folder, *FINAL, "--genotype=small", "--name=final")


def metrics(path, name="step"):
    """The records that have a scalar of that name."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


IN_EVERY_RUN = {
    *("config.json", "metrics.jsonl", "genotype.json", "cells", "tensorboard", "log.txt", "lock", "pid"),
    *("checkpoint.safetensors", "checkpoint.previous.safetensors"),
}


def test_both_scripts_leave_what_a_run_folder_holds(searched, run_folder, trained):
    assert {path.name for path in run_folder.iterdir()} == IN_EVERY_RUN | {"report.html"}
    assert {path.name for path in trained[0].iterdir()} == IN_EVERY_RUN | {"weights.safetensors", "accuracy.json"}
    assert {"normal.gv", "reduce.gv"} <= {path.name for path in (run_folder / "cells").iterdir()}
    exported = Genotype.load(searched[0] / "genotypes" / "small.json")
    assert exported == Genotype.load(run_folder / "genotype.json") == Genotype.load(trained[0] / "genotype.json")


def test_the_checkpoint_holds_the_whole_state(run_folder):
    tensors = load_file(run_folder / "checkpoint.safetensors")
    space = DARTS.with_primitives(TWO[1:])
    supernet, alphas = Supernet(1, 2, 3, num_nodes=1, space=space), Alphas(num_nodes=1, space=space)
    for part, module in (("supernet", supernet), ("alphas", alphas)):
        module.load_state_dict({name: tensors.pop(f"{part}.{name}") for name in module.state_dict()})
    assert Genotype.derive(alphas, space) == Genotype.load(run_folder / "genotype.json")
    for index, weight in enumerate(supernet.parameters()):
        assert tensors.pop(f"weight_optimizer.{index}.momentum_buffer").shape == weight.shape
    for index in range(2):
        assert tensors.pop(f"alpha_optimizer.{index}.step") == 12
        assert all(tensors.pop(f"alpha_optimizer.{index}.{name}").any() for name in ("exp_avg", "exp_avg_sq"))
    assert not tensors
    manifest = checkpoint.finished(run_folder)
    assert (manifest.progress.steps, manifest.progress.epochs) == (12, 2)
    assert manifest.genotype == Genotype.load(run_folder / "genotype.json").to_text()
    assert manifest.config["lower"]["epochs"] == 2
    assert manifest.sizes["metrics.jsonl"] == (run_folder / "metrics.jsonl").stat().st_size
    # One forward pass a step moves the batch norms of the live supernet: the other four leave them alone.
    assert supernet.stem[1].num_batches_tracked == 12


def test_search_says_where_the_cell_comes_from_and_how_to_retrain_it(searched, run_folder):
    folder, out = searched
    provenance = GenotypeFile.load(folder / "genotypes" / "small.json").provenance
    assert (provenance.dataset, provenance.seed, provenance.epochs) == ("digits", 3, 2)
    assert provenance.num_images == 96
    assert provenance.versions["torch"]
    last = metrics(run_folder, "upper/accuracy")[-1]
    assert 0 <= provenance.supernet_accuracy == last["upper/accuracy"] <= 1
    genotype = Genotype.load(folder / "genotypes" / "small.json")
    size = network_size(genotype, image_size=8, in_channels=1)
    *_, cell, line, files, how = out.strip().splitlines()
    assert cell == genotype.to_text()
    assert f"{size.weights:,} weights, {size.multiply_adds:,} multiply-adds" in line
    assert "genotypes/small.json" in files
    data = "--dataset digits --train-limit 96 --seed 3"
    assert how == f"train it: python train_final.py --genotype genotypes/small.json {data}"


def test_the_stem_of_imagenet_goes_from_the_search_to_the_final_network(tmp_path):
    (tmp_path / "own").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (8, 98, 98), np.uint8)
    for part in ("train", "test"):
        np.savez(tmp_path / "own" / f"{part}.npz", images=images, labels=np.arange(8) % 2)
    small = ["--init-channels=2", "--num-cells=1", "--batch-size=4", "--epochs=1"]
    own = ["--dataset=npz", "--data-dir=own", *small, "--num-nodes=1", *TWO]
    hint = "--stem imagenet takes such images to 13 × 13 before the first cell"
    assert hint in called("search", tmp_path, *own, "--dry-run")
    printed = called("search", tmp_path, *own, "--stem=imagenet", "--name=large")
    assert hint not in printed
    size = network_size(Genotype.load(tmp_path / "genotypes/large.json"), 98, 1, num_classes=2, stem="imagenet")
    assert f"(36 channels, 20 cells, imagenet stem): {size.weights:,} weights, {size.multiply_adds:,} mul" in printed
    how = "--genotype genotypes/large.json --dataset npz --data-dir own --stem imagenet"
    assert printed.endswith(f"train it: python train_final.py {how}\n")
    report = (tmp_path / "runs/large/report.html").read_text(encoding="utf-8")
    assert f"python train_final.py --genotype runs/large/genotype.json{how[31:]}" in report
    called("train_final", tmp_path, *how.split(), *small, "--name=final")
    assert json.loads((tmp_path / "runs/final/config.json").read_text())["config"]["network"]["stem"] == "imagenet"


def test_metrics_and_tensorboard_hold_the_same_scalars(run_folder, events):
    lines = metrics(run_folder)
    assert [line["epoch"] for line in lines if "upper/accuracy" in line] == [1, 2]
    recorded = {name for line in lines for name in line} - {"epoch", "step", "time_s"}
    assert set(events.Tags()["scalars"]) == recorded
    for name in recorded:
        expected = [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in lines if name in line]
        assert [(event.step, event.value) for event in events.Scalars(name)] == expected
    of_a_level = ("loss", "accuracy", "step_loss", "learning_rate", "gradient_norm")
    assert {f"{level}/{what}" for level in ("lower", "upper") for what in of_a_level} <= recorded
    for cell in ("normal", "reduce"):
        assert {f"cells/entropy_{cell}_nats", f"cells/skip_connections_{cell}", "speed/images_per_s"} <= recorded
    # One curve an edge and primitive: 2 cells, 2 edges, 2 primitives.
    assert sum(name.startswith("edge_weights_") for name in recorded) == 2 * 2 * 2
    assert {"heat_map/normal", "heat_map/reduce"} <= set(events.Tags()["images"])
    rates = {line["epoch"]: line["lower/learning_rate"] for line in metrics(run_folder, "lower/learning_rate")}
    assert rates == {1: 0.025, 2: pytest.approx(0.013)}


def test_tensorboard_compares_runs_by_their_flags(events):
    start, experiment = (
        HParamsPluginData.FromString(events.SummaryMetadata(f"_hparams_/{part}").plugin_data.content)
        for part in ("session_start_info", "experiment")
    )
    flags = start.session_start_info.hparams
    assert (flags["init_channels"].number_value, flags["seed"].number_value) == (2, 3)
    assert (flags["dataset"].string_value, flags["share_lower_step"].string_value) == ("digits", "no")
    compared = {metric.name.tag for metric in experiment.experiment.metric_infos}
    assert {"upper/accuracy", "lower/accuracy"} <= compared & set(events.Tags()["scalars"])


def test_pictures_are_in_the_folder_and_in_tensorboard(run_folder, events):
    if not (run_folder / "cells" / "normal.png").exists():
        pytest.skip("Graphviz is not installed")
    for cell in ("normal", "reduce"):
        assert Image.open(run_folder / "cells" / f"{cell}.png").width > 200
        assert "<svg" in (run_folder / "cells" / f"{cell}.svg").read_text()
    assert [image.step for image in events.Images("cells/normal")] == [6, 12]


def test_another_seed_gives_other_bits(run_folder, tmp_path):
    called("search", tmp_path, *SEARCH, "--epochs=1", "--seed=4", "--name=a")
    assert torture.metrics(run_folder)[0] != torture.metrics(tmp_path / "runs" / "a")[0]


def test_search_never_opens_the_test_set_and_takes_its_own_share_and_number_of_nodes(tmp_path, capfd):
    for name, colour in (("ant", 10), ("bee", 240)):
        (tmp_path / "images" / "train" / name).mkdir(parents=True)
        for index in range(8):
            Image.new("RGB", (20, 16), (colour, index, 0)).save(tmp_path / "images" / "train" / name / f"{index}.png")
    images = ["--dataset=folder", "--data-dir=images", "--image-size=8", "--epochs=1", "--batch-size=4"]
    own = ["--num-nodes=2", "--hypergradient=first-order", "--upper-fraction=0.25", "--run-dir=elsewhere"]
    out = called("search", tmp_path, *images, *own, *TWO, "--init-channels=2", "--num-cells=1", "--name=own")
    # There is no test folder at all.
    command = "python train_final.py --genotype genotypes/own.json --dataset folder --data-dir images --image-size 8"
    assert out.endswith(f"{command}\n")
    assert len(Genotype.load(tmp_path / "elsewhere" / "own" / "genotype.json").normal) == 4
    assert "folder: 12 images for the weights, 4 for the alphas" in out
    assert call("train_final", tmp_path, *command.split()[2:]) == 2
    assert "no folder images/test" in capfd.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"images", "genotypes", "elsewhere"}


def test_final_training_leaves_what_it_takes_to_evaluate(trained):
    path, out = trained
    config = json.loads((path / "config.json").read_text())
    assert config["trained_on"]["classes"] == list("0123456789")
    assert all(tensor.isfinite().all() for tensor in load_file(path / "weights.safetensors").values())
    accuracy = re.search(r"test accuracy after epoch 2: ([\d.]+)% of 360 images", out.strip().splitlines()[-1])
    again = called("train_final", path.parent, "--evaluate=final")
    assert f"test accuracy {accuracy[1]}% of 360 images" in again


def test_test_accuracy_is_measured_once_after_the_last_epoch(trained):
    path, _ = trained
    lines = metrics(path)
    assert [("test/accuracy" in line) for line in lines] == [False] * (len(lines) - 1) + [True]
    assert [line["epoch"] for line in lines if "holdout/accuracy" in line] == [1, 2]
    drop_path = {line["epoch"]: line["train/drop_path"] for line in metrics(path, "train/drop_path")}
    assert drop_path == {1: 0.0, 2: 0.1}
    log = (path / "log.txt").read_text()
    assert "72 training images (24 held out)" in log.splitlines()[1]
    assert re.search(r"weights, [\d,]+ multiply-adds \(\d\.\d+ GFLOP\) per image", log.splitlines()[1])
    assert re.search(r" [\d.]+ images per second, [\d.]+ s per step: \d+:\d\d:\d\d for 7 steps, until 20", log)


def test_a_damaged_run_is_refused_by_name(trained, tmp_path, capfd):
    path = tmp_path / "run"
    shutil.copytree(trained[0], path)
    (path / "weights.safetensors").write_bytes(b"damaged")
    assert call("train_final", tmp_path, "--evaluate=run") == 2
    assert "weights run/weights.safetensors" in capfd.readouterr().err
    config = json.loads((path / "config.json").read_text())
    config["config"]["network"]["num_cells"] = 10**9
    (path / "config.json").write_text(json.dumps(config))
    assert call("train_final", tmp_path, "--evaluate=run") == 2
    assert "config run/config.json: network.num_cells: must be less than or equal to 200" in capfd.readouterr().err


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surroundings")
    bad_calls.make_surroundings(folder)
    return folder, bad_calls.content(folder)


@pytest.mark.parametrize(("script", "arguments", "sentence"), bad_calls.CALLS)
def test_a_bad_call_is_one_sentence_and_changes_nothing(surroundings, capsys, script, arguments, sentence):
    folder, before = surroundings
    code = call(script.removesuffix(".py"), folder, *arguments)
    assert bad_calls.fault(code, capsys.readouterr().err, sentence) is None
    assert bad_calls.content(folder) == before


@pytest.mark.parametrize(
    ("script", "calls"), [KINDS[2], *(pytest.param(*kind, marks=pytest.mark.slow) for kind in KINDS[:2] + KINDS[3:])]
)
def test_the_first_bad_call_of_a_kind_in_a_process_of_its_own(surroundings, script, calls):
    folder, before = surroundings
    arguments, sentence = calls[0]
    command = [sys.executable, str(ROOT / script), *arguments.split()]
    environment = os.environ | {"NO_COLOR": "1", "PYTHONIOENCODING": "ascii"}  # which has no letters for tyro's box
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    assert bad_calls.fault(done.returncode, done.stderr, sentence) is None
    assert bad_calls.content(folder) == before


@pytest.mark.slow
def test_without_graphviz_the_source_is_written_and_one_line_says_how_to_get_pictures(tmp_path):
    # A module that hides pygraphviz, and a PATH without dot.
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'pygraphviz' else find(name, *rest)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "PATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / "search.py"), *SEARCH, "--epochs=1", "--name=bare"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "runs" / "bare" / "cells").iterdir()) == ["normal.gv", "reduce.gv"]
    assert [line for line in done.stdout.splitlines() if "pip install 'pygraphviz>=2.0'" in line]
