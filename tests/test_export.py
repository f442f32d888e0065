"""Networks written for others: the same logits, all that it takes to use them, and nothing half-written."""

import importlib.util
import json
import re
import runpy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import torch
from PIL import Image
from safetensors import safe_open

from nas import export, predict
from nas.config.flags import FinalConfig, SearchConfig, TrainedOn
from nas.data import datasets
from nas.errors import InputError, Stopped
from nas.models.final_network import FinalNetwork
from nas.runs.folder import RunFolder
from nas.search_space.genotype import Genotype
from tests.in_process import call

DOCS = Path(__file__).parent.parent / "docs"
USES = re.compile(r"```python\n([^`]*onnxruntime[^`]*)```")
EXAMPLE, OF_TUTORIAL = (USES.search((DOCS / name).read_text())[1] for name in ("export.md", "tutorial.md"))
# A network of one cell, which is a reduction cell.
CELL = (("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_3x3", 0), ("max_pool_3x3", 2))
SMALL = Genotype(normal=CELL, reduce=CELL, normal_concat=(2, 3), reduce_concat=(2, 3))
TRAIN = ["--dataset=folder", "--data-dir=images", "--batch-size=6", "--init-channels=4", "--num-cells=1"]
TRAIN += ["--genotype=small", "--cutout=0", "--drop-path=0"]


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
    SMALL.save(folder / "genotypes" / "small.json")
    assert call("train_final", folder, *TRAIN, "--image-size=8", "--epochs=6", "--name=mine") == 0
    return folder / "runs" / "mine"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    """By format, the file and the difference that was measured."""
    folder = tmp_path_factory.mktemp("exported")
    return {kind: export.export(str(run), kind, str(folder / kind)) for kind in export.SUFFIXES}


def written(kind, path):
    """The texts and the function in a file, or its weights."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        texts = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
        return texts, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
    if kind == "torch-export":
        texts = dict.fromkeys(("classes", "mean", "std", "image_size", "resize", "bits", "genotype"), "")
        return texts, torch.export.load(path, extra_files=texts).module()
    with safe_open(path, framework="pt") as file:
        return file.metadata(), safetensors.torch.load_file(path)


@pytest.mark.parametrize(("kind", "tolerance"), [("onnx", 1e-4), ("torch-export", 0.0), ("safetensors", 0.0)])
def test_the_file_computes_what_the_network_does_and_says_for_which_images(kind, tolerance, run, exported):
    (path, difference), network = exported[kind], FinalNetwork.from_run(run)
    texts, found = written(kind, path)
    assert difference <= tolerance
    if kind == "safetensors":
        weights = network.state_dict()
        assert {name for name in weights if not name.startswith("auxiliary_head.")} == set(found)
        assert all(torch.equal(weights[name], tensor) for name, tensor in found.items())
    else:
        torch.manual_seed(0)
        for batch_size in (1, 2, 7):
            images = torch.randn(batch_size, 3, 8, 8)
            with torch.no_grad():
                logits = network(images)[0]
            assert found(images).shape == (batch_size, 2)
            assert (found(images) - logits).abs().max() <= tolerance
            assert logits.abs().max() > 0.1
    content = {name: json.loads(text) for name, text in texts.items()}
    assert (content["classes"], content["image_size"]) == (["ant", "bee"], 8)
    assert content["mean"] == pytest.approx(network.trained_on.mean)
    assert content["std"] == pytest.approx(network.trained_on.std)
    assert (content["resize"], content["bits"]) == ("crop", 16)
    assert content["genotype"] == SMALL.to_text()


def test_the_example_of_the_docs_makes_squares_as_the_training_does(run, exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pixels = torch.randint(256, (20, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for name in ("ant", "bee"):
        Path("train", name).mkdir(parents=True)
        Image.fromarray(pixels.numpy()).save(Path("train", name, "image.png"))

    def run_example(code, image):
        code = re.sub(r'"[^"]*network.onnx"', '"network.onnx"', re.sub(r'"[^"]*\.png"', repr(str(image)), code))
        Path("example.py").write_text(code)
        return runpy.run_path("example.py")["pixels"]

    trained_on = FinalNetwork.from_run(run).trained_on
    mean, std = (torch.tensor(values)[:, None, None] for values in (trained_on.mean, trained_on.std))
    for resize in ("squeeze", "pad", "crop"):
        model = onnx.load(exported["onnx"][0])
        next(entry for entry in model.metadata_props if entry.key == "resize").value = json.dumps(resize)
        onnx.save(model, "network.onnx")
        found = torch.from_numpy(run_example(EXAMPLE, "train/ant/image.png")).permute(2, 0, 1)
        expected = datasets.load("folder", tmp_path, "train", image_size=8, resize=resize).images[0]
        torch.testing.assert_close(found.float(), (expected / 255 - mean) / std)
    capsys.readouterr()
    for code in (EXAMPLE, OF_TUTORIAL):
        for name in ("ant", "bee"):
            run_example(code, run.parents[1] / f"images/test/{name}/3.png")
    assert capsys.readouterr().out == "ant\nbee\n" * 2


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


def test_only_a_trained_network_can_be_exported_to_a_folder_and_with_the_packages(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="nowhere: not a run folder"):
        export.export("nowhere", "onnx")
    RunFolder.create(tmp_path / "found", SearchConfig()).close()
    with pytest.raises(InputError, match=r"found: this is a run of search\.py; give a run of train_final\.py"):
        FinalNetwork.from_run(tmp_path / "found")
    trained_on = TrainedOn(("ant", "bee"), 1, 8, (0.5,), (0.25,))
    RunFolder.create(tmp_path / "begun", FinalConfig(), trained_on).close()
    SMALL.save(tmp_path / "begun" / "genotype.json")
    with pytest.raises(InputError, match=r"begun/weights.safetensors: no such file; the run may not have been finish"):
        FinalNetwork.from_run(tmp_path / "begun")
    with pytest.raises(InputError, match=r"--output .*: there is no folder"):
        export.export(str(run), "onnx", str(tmp_path / "nowhere" / "network"))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else find(name, *rest))
    with pytest.raises(InputError, match="--format onnx: needs onnx; pip install onnx"):
        export.export(str(run), "onnx", str(tmp_path / "network"))


def test_the_command_says_what_it_wrote(run, tmp_path, capsys):
    path = tmp_path / "network.safetensors"
    arguments = [str(run), "--format=safetensors", f"--output={path}"]
    assert export.main(arguments) == 0
    assert f"{path}: {path.stat().st_size:,} bytes; " in capsys.readouterr().out
    assert export.main(arguments) == 2
    assert capsys.readouterr().err == f"error: --output {path}: exists already and was not changed.\n"


def test_the_form_for_imagenet_is_trained_measured_again_and_exported(run, tmp_path, capfd):
    folder = run.parents[1]
    assert call("train_final", folder, *TRAIN, "--image-size=32", "--epochs=1", "--stem=imagenet", "--name=large") == 0
    accuracy = re.search(r"test accuracy after epoch 1: ([\d.]+)%", capfd.readouterr().out)[1]
    assert call("train_final", folder, "--evaluate=runs/large") == 0
    assert f"test accuracy {accuracy}% of 24 images" in capfd.readouterr().out
    assert export.export(str(folder / "runs" / "large"), "safetensors", str(tmp_path / "network"))[1] == 0


def test_classes_of_images_are_said_here_too(run, tmp_path, capsys):
    images = run.parent.parent / "images" / "test"
    Image.new("L", (30, 20), 10).save(tmp_path / "grey.png")
    files = [*sorted(images.rglob("*.png")), tmp_path / "grey.png"]
    assert predict.main([str(run), *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == list(map(str, files))
    assert {line.split()[1] for line in lines} <= {"ant", "bee"}
    (probabilities,) = predict.predict(str(run), [str(files[0])])
    assert [*probabilities.values()] == sorted(probabilities.values(), reverse=True)
    network = FinalNetwork.from_run(run)
    about = network.trained_on
    pixels = torch.from_numpy(np.array(Image.open(files[0]))).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (about.mean, about.std))
    expected = network((pixels - mean) / std)[0].softmax(-1)[0].tolist()
    assert probabilities == pytest.approx(dict(zip(about.classes, expected, strict=True)), abs=1e-6)
    for wrong, sentence in (("none.png", "none.png: cannot be read as an image"), ("", "IMAGE: missing")):
        assert predict.main([str(run), *([wrong] if wrong else [])]) == 2
        assert sentence in capsys.readouterr().err
