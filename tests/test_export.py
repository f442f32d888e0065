"""Networks written for others: the same logits, all that it takes to use them, and nothing half-written."""

import importlib.util
import json
import re
import runpy
from pathlib import Path

import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from nas import export
from nas.config.flags import FinalConfig, SearchConfig, TrainedOn
from nas.data import datasets
from nas.errors import InputError, Stopped
from nas.models.final_network import FinalNetwork
from nas.runs.folder import RunFolder
from nas.search_space.genotype import Genotype
from tests.in_process import call

PAGE = (Path(__file__).parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
EXAMPLE = next(block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "onnxruntime" in block)
FORMATS = ["onnx", "torch-export", "safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A network trained on colour images of two classes, 8 × 8: dark ants and bright bees."""
    folder = tmp_path_factory.mktemp("export")
    for part in ("train", "test"):
        for name, shade in (("ant", 20), ("bee", 200)):
            (folder / "images" / part / name).mkdir(parents=True)
            for index in range(12):
                image = Image.new("RGB", (8, 8), (shade + index, shade, index))
                image.save(folder / "images" / part / name / f"{index}.png")
    arguments = ["--dataset=folder", "--data-dir=images", "--image-size=8", "--batch-size=6", "--init-channels=4"]
    arguments += ["--genotype=DARTS_V2", "--num-cells=3", "--epochs=6", "--name=mine", "--cutout=0", "--drop-path=0"]
    assert call("train_final", folder, *arguments) == 0
    return folder / "runs" / "mine"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """By format, the file and the difference that was measured."""
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export.export(str(run), kind, str(folder / kind)) for kind in FORMATS}


def random_images(batch_size, generator):
    return torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(generator))


@torch.no_grad()
def logits_here(run, images):
    return FinalNetwork.from_run(run)(images)[0]


@torch.no_grad()
def logits_there(kind, path, images):
    """Of the file alone."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    return torch.export.load(path).module()(images)


@pytest.mark.parametrize(("kind", "tolerance"), [("onnx", 1e-4), ("torch-export", 0.0)])
def test_the_file_gives_the_logits_of_the_network_for_batches_of_any_size(kind, tolerance, run, exported):
    path, difference = exported[kind]
    assert difference <= tolerance
    for batch_size in (1, 2, 7):
        images = random_images(batch_size, generator=batch_size)
        here, there = logits_here(run, images), logits_there(kind, path, images)
        assert there.shape == (batch_size, 2)
        assert (here - there).abs().max() <= tolerance
        assert here.abs().max() > 0.1


def test_the_weights_are_those_of_the_network(run, exported):
    weights = safetensors.torch.load_file(exported["safetensors"][0])
    wanted = FinalNetwork.from_run(run).state_dict()
    assert {name for name in wanted if not name.startswith("auxiliary_head.")} == set(weights)
    assert all(torch.equal(wanted[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("kind", FORMATS)
def test_classes_normalisation_and_cells_are_in_the_file(kind, run, exported):
    path, _ = exported[kind]
    if kind == "onnx":
        texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    elif kind == "torch-export":
        texts = dict.fromkeys(("classes", "mean", "std", "image_size", "genotype"), "")
        torch.export.load(path, extra_files=texts)
    else:
        with safe_open(path, framework="pt") as file:
            texts = file.metadata()
    network = FinalNetwork.from_run(run)
    content = {name: json.loads(text) for name, text in texts.items()}
    assert (content["classes"], content["image_size"]) == (["ant", "bee"], 8)
    assert content["mean"] == pytest.approx(network.trained_on.mean)
    assert content["std"] == pytest.approx(network.trained_on.std)
    assert (content["resize"], content["bits"]) == ("crop", 16)
    assert content["genotype"] == network.genotype.to_text()


def test_the_example_of_readme_classifies_images(run, exported, monkeypatch, capsys):
    monkeypatch.chdir(run.parent.parent)
    code = EXAMPLE.replace('"runs/mine-final/network.onnx"', repr(str(exported["onnx"][0])))
    said = []
    for name in ("ant", "bee"):
        Path("example.py").write_text(code.replace('"image.png"', repr(f"images/test/{name}/3.png")))
        runpy.run_path("example.py")
        said.append(capsys.readouterr().out.strip())
    assert said == ["ant", "bee"]


@pytest.mark.parametrize("resize", ["crop", "squeeze", "pad"])
def test_the_example_of_the_docs_makes_squares_as_the_training_does(resize, run, exported, tmp_path, monkeypatch):
    model = onnx.load(exported["onnx"][0])
    next(entry for entry in model.metadata_props if entry.key == "resize").value = json.dumps(resize)
    onnx.save(model, tmp_path / "network.onnx")
    pixels = torch.randint(256, (20, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name in ("ant", "bee"):
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.fromarray(pixels.numpy()).save(tmp_path / "train" / name / "image.png")
    code = EXAMPLE.replace("runs/mine-final/network.onnx", "network.onnx")
    (tmp_path / "example.py").write_text(code.replace("image.png", "train/ant/image.png"))
    monkeypatch.chdir(tmp_path)
    found = torch.from_numpy(runpy.run_path("example.py")["pixels"]).permute(2, 0, 1)
    trained_on = FinalNetwork.from_run(run).trained_on
    mean, std = (torch.tensor(values)[:, None, None] for values in (trained_on.mean, trained_on.std))
    expected = datasets.load("folder", tmp_path, "train", image_size=8, resize=resize).images[0]
    torch.testing.assert_close(found.float(), (expected / 255 - mean) / std)


@pytest.mark.parametrize("other", [1e-6, float("nan")])
def test_a_file_that_computes_something_else_is_not_left_behind(run, tmp_path, monkeypatch, other):
    write = export._write_safetensors

    def write_other(logits, images, texts, path):
        computed = write(logits, images, texts, path)
        return lambda batch: computed(batch) + other

    monkeypatch.setattr(export, "_write_safetensors", write_other)
    with pytest.raises(Stopped, match=r"network was not written: its logits would differ by ([\d.e-]+|nan) from"):
        export.export(str(run), "safetensors", str(tmp_path / "network"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_and_packages_that_are_missing(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"--output .*: there is no folder"):
        export.export(str(run), "onnx", str(tmp_path / "nowhere" / "network"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    with pytest.raises(InputError, match="--format onnx: needs onnx; pip install onnx"):
        export.export(str(run), "onnx", str(tmp_path / "network"))


def test_only_a_trained_network_can_be_exported(tmp_path):
    with pytest.raises(InputError, match="nowhere: not a run folder"):
        export.export("nowhere", "onnx")
    RunFolder.create(tmp_path / "found", SearchConfig()).close()
    with pytest.raises(InputError, match=r"found: this is a run of search\.py; give a run of train_final\.py"):
        FinalNetwork.from_run(tmp_path / "found")
    trained_on = TrainedOn(("ant", "bee"), 1, 8, (0.5,), (0.25,))
    RunFolder.create(tmp_path / "begun", FinalConfig(), trained_on).close()
    Genotype.load("DARTS_V2").save(tmp_path / "begun" / "genotype.json")
    with pytest.raises(
        InputError, match=r"begun/weights.safetensors: no such file; the run may not have been finished"
    ):
        FinalNetwork.from_run(tmp_path / "begun")


def test_the_command_says_what_it_wrote(run, tmp_path, capsys):
    path = tmp_path / "network.pt2"
    arguments = [str(run), "--format=torch-export", f"--output={path}"]
    assert export.main(arguments) == 0
    assert f"{path}: {path.stat().st_size:,} bytes; " in capsys.readouterr().out
    assert export.main(arguments) == 2
    assert capsys.readouterr().err == f"error: --output {path}: exists already and was not changed.\n"


def test_the_form_for_imagenet_is_trained_measured_again_and_exported(run, tmp_path, capfd):
    folder = run.parent.parent
    arguments = ["--dataset=folder", "--data-dir=images", "--image-size=32", "--batch-size=6", "--init-channels=4"]
    arguments += ["--genotype=DARTS_V2", "--num-cells=3", "--epochs=1", "--stem=imagenet", "--name=large"]
    assert call("train_final", folder, *arguments) == 0
    accuracy = re.search(r"test accuracy after epoch 1: ([\d.]+)%", capfd.readouterr().out)[1]
    assert call("train_final", folder, "--evaluate=runs/large") == 0
    assert f"test accuracy {accuracy}% of 24 images" in capfd.readouterr().out
    assert export.export(str(folder / "runs" / "large"), "torch-export", str(tmp_path / "network"))[1] == 0
