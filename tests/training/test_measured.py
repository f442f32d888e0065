"""What both commands measure: by statistics of the weights as they are, and of the network that is saved."""

import copy
import functools
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import search
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.augment import normalise
from nas.data.datasets import load
from nas.distributed import SINGLE
from nas.models.final_network import FinalNetwork
from nas.runs import checkpoint
from nas.training.accuracy import FILE, AccuracyFile
from nas.training.run import Run
from nas.training.steps import estimate_statistics, evaluate
from tests.in_process import TWO, call

SMALL = ["--dataset=digits", "--init-channels=2", "--num-cells=3"]


def test_the_upper_level_is_measured_by_statistics_of_the_weights_as_they_are(tmp_path):
    flags = [*SMALL, "--train-limit=96", "--batch-size=24", "--num-nodes=1", *TWO]
    flags += ["--epochs=1", "--hypergradient=first-order"]
    assert call("search", tmp_path, *flags, "--name=a") == 0
    config, cpu = parse(SearchConfig, flags), torch.device("cpu")
    images = search.load_halves(config, Run(config, SINGLE, tmp_path, cpu, []))
    bilevel = build(config, 1, 10, cpu)
    checkpoint.load(tmp_path / "runs/a" / checkpoint.CURRENT, bilevel.state())
    with torch.no_grad():
        edge_weights = bilevel.alphas()
    new = copy.deepcopy(bilevel.supernet)
    estimate_statistics(new, bilevel.supernet, images.weights, 2, 0.25, lambda: None, edge_weights)
    expected, lagging = (
        evaluate(functools.partial(network, edge_weights=edge_weights), images.alphas).loss
        for network in (new, bilevel.supernet.eval())
    )
    last = json.loads((tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()[-1])
    assert last["upper/loss"] == expected != lagging


@pytest.mark.parametrize(("batch_size", "lags"), [(12, True), (2, False)])  # 9 steps an epoch, and 50
def test_what_a_training_says_is_what_its_weights_do(batch_size, lags, tmp_path, capfd):
    flags = ["--train-limit=100", f"--batch-size={batch_size}", "--genotype=DARTS_V2", "--epochs=1", "--name=a"]
    assert call("train_final", tmp_path, *SMALL, *flags) == 0
    said = capfd.readouterr().out.partition("accuracy of each class:")[2]
    assert call("train_final", tmp_path, "--evaluate=runs/a") == 0
    again = capfd.readouterr().out.partition("accuracy of each class:")[2]
    assert again == said.replace("\ntest accuracy after epoch 1: ", "\nruns/a: test accuracy ")

    network = FinalNetwork.from_run(tmp_path / "runs/a")
    test = load("digits", Path(), "test")
    mean, std = torch.tensor(network.trained_on.mean), torch.tensor(network.trained_on.std)
    with torch.no_grad():
        answers = network(normalise(test.images, mean, std))[0].argmax(1)
    pairs = torch.stack([test.targets, answers])
    confusion = AccuracyFile.load(tmp_path / "runs/a" / FILE, 10).confusion
    assert confusion == [[int((pairs == torch.tensor([[i], [j]])).all(0).sum()) for j in range(10)] for i in range(10)]

    saved = load_file(tmp_path / "runs/a/weights.safetensors")
    live = load_file(tmp_path / "runs/a" / checkpoint.CURRENT)
    differing = {name for name, tensor in saved.items() if not torch.equal(tensor, live[f"network.{name}"])}
    statistics = {name for name in saved if "running" in name or "num_batches" in name}
    assert differing == (statistics if lags else set())
