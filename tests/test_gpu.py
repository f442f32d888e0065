"""Both scripts on a GPU; `tests/test_devices.py` stands in where there is none."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.search_step import take_step
from nas import export
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.report import page
from nas.training.forecast import bytes_of_step, on_meta
from tests.in_process import call

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SMALL = ["--dataset=digits", "--init-channels=4", "--batch-size=24", "--train-limit=144", "--device=cuda"]
COMMANDS = {
    "search": [*SMALL, "--num-cells=3", "--num-nodes=2"],
    "train_final": [*SMALL, "--num-cells=3", "--genotype=DARTS_V2", "--cutout=2"],
}


@pytest.mark.parametrize("script", COMMANDS)
def test_equal_runs_give_equal_bits_whether_or_not_they_were_stopped(script, tmp_path, restored_determinism):
    for name, epochs in {"a": 2, "b": 2, "c": 1}.items():
        flags = [f"--name={name}", f"--epochs={epochs}", "--deterministic"]
        assert call(script, tmp_path, *COMMANDS[script], *flags) == 0
    assert call(script, tmp_path, "--resume=runs/c", "--epochs=2") == 0
    first, second, resumed = (load_file(tmp_path / f"runs/{name}/checkpoint.safetensors") for name in "abc")
    for other in (second, resumed):
        assert first.keys() == other.keys()
        assert [name for name in first if not torch.equal(first[name], other[name])] == []


@pytest.mark.parametrize("flags", [[], ["--share-lower-step", "--balanced"], ["--hypergradient=first-order"]])
def test_a_search_is_resumed_and_reported(flags, tmp_path):
    assert call("search", tmp_path, *COMMANDS["search"], "--name=a", "--epochs=1", *flags) == 0
    assert call("search", tmp_path, "--resume=runs/a", "--epochs=2") == 0
    last = json.loads((tmp_path / "runs/a/metrics.jsonl").read_text().splitlines()[-1])
    assert last["epoch"] == 2
    page.write([tmp_path / "runs/a"], tmp_path / "report.html")


def test_a_training_is_resumed_measured_again_and_exported(tmp_path, capfd):
    assert call("train_final", tmp_path, *COMMANDS["train_final"], "--name=a", "--epochs=1", "--balanced") == 0
    assert call("train_final", tmp_path, "--resume=runs/a", "--epochs=2") == 0
    assert call("train_final", tmp_path, "--evaluate=runs/a") == 0
    _, trained, evaluated = re.findall(r"test accuracy[^%]* (\d+\.\d+)%", capfd.readouterr().out)
    assert trained == evaluated
    assert export.main([str(tmp_path / "runs/a"), "--format=safetensors"]) == 0


@pytest.mark.parametrize("flags", [[], ["--share-lower-step"]])
def test_steps_in_float64_are_those_of_the_cpu(flags, float64_and_seed):
    config = parse(SearchConfig, ["--init-channels=4", "--num-cells=3", "--num-nodes=2", *flags])
    here, there = (build(config, 3, 10, device) for device in (CPU, GPU))
    for mine, theirs in zip(here.state().values(), there.state().values(), strict=True):
        theirs.data.copy_(mine)
    batches = [(torch.randn(8, 3, 16, 16), torch.randint(10, (8,))) for _ in range(2)]
    for _ in range(3):
        for bilevel, device in ((here, CPU), (there, GPU)):
            take_step(bilevel, *(Batch.whole(*(part.to(device) for part in pair)) for pair in batches))
        for mine, theirs in zip(here.alphas.parameters(), there.alphas.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad.cpu(), mine.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("channels", "batch_size"), [(8, 32), (16, 64)])
def test_the_forecast_of_memory_holds(channels, batch_size):
    bilevel = build(parse(SearchConfig, [f"--init-channels={channels}", "--num-cells=4"]), 3, 10, GPU)
    classes = torch.zeros(batch_size, dtype=int, device=GPU)
    batch = Batch.whole(torch.randn(batch_size, 3, 32, 32, device=GPU), classes)
    supernet, alphas = on_meta(bilevel.supernet), on_meta(bilevel.alphas)
    forecast, _ = bytes_of_step(lambda n: supernet(torch.zeros(n, 3, 32, 32, device="meta"), alphas()), batch_size)
    take_step(bilevel, batch, batch)  # makes the buffers of the optimizers
    before = torch.cuda.memory_allocated(GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    take_step(bilevel, batch, batch)
    measured = torch.cuda.max_memory_allocated(GPU) - before
    assert measured == pytest.approx(forecast, rel=0.15)
