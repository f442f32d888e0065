"""What is said of a run before it begins, against what it then takes."""

import re

import pytest
import torch

import train_final
from benchmarks.search_step import peak_bytes, take_step
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import FinalConfig, SearchConfig
from nas.config.presets import PRESETS
from nas.data.datasets import Split
from nas.data.loader import Batch, training_loader
from nas.distributed import SINGLE, World
from nas.errors import InputError
from nas.models.final_network import FinalNetwork
from nas.search_space.genotype import Genotype
from nas.training import forecast
from nas.training.forecast import on_meta
from tests.in_process import TWO, call

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "channels", "cells", "batch", "size"),
    [([], 4, 3, 12, 24), (["--share-lower-step"], 2, 3, 16, 24)],
)
def test_the_memory_of_a_step_is_what_the_step_then_takes(flags, channels, cells, batch, size):
    config = parse(SearchConfig, [f"--init-channels={channels}", f"--num-cells={cells}", "--num-nodes=2", *flags])
    bilevel = build(config, 3, 10, CPU)
    train, validate = (Batch.whole(torch.randn(batch, 3, size, size), torch.randint(10, (batch,))) for _ in range(2))
    measured = peak_bytes(lambda: take_step(bilevel, train, validate), CPU)
    supernet, alphas = on_meta(bilevel.supernet), on_meta(bilevel.alphas)
    needed, an_image = forecast.bytes_of_step(
        lambda n: supernet(torch.zeros(n, 3, size, size, device="meta"), alphas()), batch
    )
    assert needed == pytest.approx(measured, rel=0.05)
    assert batch * an_image == pytest.approx(needed, rel=0.1)


@pytest.mark.parametrize("flags", [["--init-channels=8", "--num-cells=3"], ["--stem=imagenet", "--batch-size=4"]])
def test_the_memory_of_a_training_step_is_what_the_step_then_takes(flags):
    config = parse(FinalConfig, ["--genotype=DARTS_V2", "--num-cells=4", "--batch-size=16", *flags])
    size, batch = (96 if config.network.stem == "imagenet" else 32), config.training.batch_size
    split = Split(torch.zeros(20, 3, size, size, dtype=torch.uint8), torch.arange(20) % 10, tuple("0123456789"))
    loader = training_loader(split, config.data, CPU, batch, 0)
    network, optimizer = train_final.build(config, Genotype.load("DARTS_V2"), loader, SINGLE)
    images = Batch.whole(torch.randn(batch, 3, size, size), torch.randint(10, (batch,)))
    measured = peak_bytes(lambda: train_final.take_step(config, network, optimizer, SINGLE, 0.2, images), CPU)
    weightless = on_meta(network)
    needed, _ = forecast.bytes_of_step(lambda n: sum(weightless(torch.zeros(n, 3, size, size, device="meta"))), batch)
    assert needed == pytest.approx(measured, rel=0.05)


def test_a_forecast_takes_no_memory_and_leaves_the_network_as_it_was():
    network = FinalNetwork(Genotype.load("DARTS_V2"), 3, 8, 3)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def forecast_it():
        weightless = on_meta(network)
        forecast.bytes_of_step(lambda n: sum(weightless(torch.zeros(n, 3, 224, 224, device="meta"))), 1000)

    assert peak_bytes(forecast_it, CPU) < 1000
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_each_storage_counts_once_and_memory_grows_with_the_images():
    weight = torch.ones(1000, requires_grad=True)

    def forward(num_images):
        x = torch.ones(num_images, 1000) * weight  # keeps the ones
        return (x[:, :500] * x[:, 500:]).sum()  # keeps two views of one tensor

    needed, an_image = forecast.bytes_of_step(forward, 10)
    assert an_image == round(forecast.STEP_THROUGH_PASS * 2 * 4000)
    assert needed == 10 * an_image


@pytest.mark.parametrize("free", [9_000, 5_500, 2_100])
def test_the_batch_size_that_would_fit_fits_and_one_more_does_not(free):
    constant, an_image = 1_000, 100
    with pytest.raises(InputError) as error:
        forecast.require_memory(constant + 100 * an_image, an_image, 100, free)
    fitting = int(re.search(r"--batch-size 100: .*; --batch-size (\d+) would fit\.$", str(error.value))[1])
    assert constant + fitting * an_image <= free < constant + (fitting + 1) * an_image


def test_enough_memory_too_little_for_anything_and_memory_that_cannot_be_asked():
    assert forecast.require_memory(10**9, 1, 64, 2 * 10**9).endswith("1.00 GB of memory, of 2.00 GB that are free")
    assert forecast.require_memory(10**9, 1, 64, None) == "a step takes about 1.00 GB of memory"
    with pytest.raises(InputError, match="not even two images would fit"):
        forecast.require_memory(10**9, 10**7, 64, 10**6)


def test_a_gpu_has_memory_of_its_own_and_a_machine_shares_it_among_its_processes(monkeypatch):
    weight, gpu = torch.ones(1000, requires_grad=True), torch.device("cuda", 0)

    def said(batch_size, device, world):
        return forecast.memory_of_step(lambda rows: torch.ones(rows, 1000) * weight, batch_size, device, world)

    figures = {"mem_get_info": (5000, 9000), "memory_reserved": 700, "memory_allocated": 300}
    for name, figure in figures.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, figure=figure: figure)
    assert forecast.free_memory(gpu) == 5400
    two_on_two_gpus = World(0, 2, local_size=2)
    with pytest.raises(InputError, match=r"^--batch-size 4: .*; --batch-size 2 would fit\.$"):
        said(4, gpu, two_on_two_gpus)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (9000, 9000))
    assert "0.00 GB that are free" in said(4, gpu, two_on_two_gpus)
    monkeypatch.setattr(forecast, "free_bytes", lambda: round(10.5 * forecast.STEP_THROUGH_PASS * 4000))
    with pytest.raises(InputError, match=r"^--batch-size 40: .*; --batch-size 20 would fit\.$"):  # five a process
        said(40, CPU, World(0, 4, local_size=2))


SMALL = ["--dataset=digits", "--train-limit=48", "--init-channels=2", "--num-cells=3", "--batch-size=12"]
COMMANDS = {"search": [*SMALL, "--num-nodes=1", *TWO], "train_final": [*SMALL, "--genotype=DARTS_V2"]}


@pytest.mark.parametrize(("script", "steps"), [("search", 6), ("train_final", 12)])
def test_a_dry_run_says_what_would_happen_or_that_it_does_not_fit_and_writes_nothing(
    script, steps, tmp_path, monkeypatch, capfd
):
    assert call(script, tmp_path, *COMMANDS[script], "--epochs=3", "--dry-run") == 0
    lines = capfd.readouterr().out.splitlines()
    assert re.match(r"\d+ threads?: ", lines[0])
    assert "digits: " in lines[1]
    assert "weights" in lines[1]
    assert re.match(r"a step takes about \d+\.\d\d GB of memory", lines[-2])
    assert re.search(rf"images per second, [\d.]+ s per step: \d+:\d\d:\d\d for {steps} steps, until ", lines[-1])
    monkeypatch.setattr(forecast, "free_bytes", lambda: 10**3)
    assert call(script, tmp_path, *COMMANDS[script]) == 2
    assert re.fullmatch(r"error: --batch-size 12: a step takes about 0\..*\n", capfd.readouterr().err)
    assert list(tmp_path.iterdir()) == []


# --config and --preset


def test_a_preset_is_what_is_not_given(capsys):
    assert parse(SearchConfig, []) == parse(SearchConfig, ["--preset=darts"]) == SearchConfig()
    quick = parse(SearchConfig, ["--preset=quick", "--epochs=3"])
    assert (quick.supernet.init_channels, quick.upper.alpha_lr, quick.lower.epochs) == (8, 0.01, 3)
    assert quick.run.preset == "quick"
    for name, preset in PRESETS.items():
        assert parse(SearchConfig, [f"--preset={name}"]).upper == preset.upper
    flags = ["--preset=darts", "--space", "nas-bench-201", "--seed=1", "--preset", "robust"]
    robust = parse(SearchConfig, flags)  # of two the last one counts
    assert (robust.run.preset, robust.upper, robust.supernet.num_cells) == ("robust", PRESETS["robust"].upper, 5)
    with pytest.raises(SystemExit):
        parse(SearchConfig, ["--preset=quick", "--help"])
    assert "(default: quick)" in (said := capsys.readouterr().out)
    assert "(default: 0.01)" in said  # its --alpha-lr


def test_flags_of_another_run_and_what_is_given_beside_them(tmp_path, capfd):
    assert call("search", tmp_path, *COMMANDS["search"], "--epochs=1", "--name=first", "--seed=5") == 0
    for path in (tmp_path / "runs" / "first", tmp_path / "runs" / "first" / "config.json"):
        config = parse(SearchConfig, [f"--config={path}", "--epochs=2"])
        assert (config.lower.epochs, config.lower.batch_size, config.supernet.num_nodes) == (2, 12, 1)
        assert (config.run.seed, config.run.name, config.data.dataset) == (5, None, "digits")
    assert call("search", tmp_path, "--config=runs/first", "--name=second") == 0
    first, second = ((tmp_path / "runs" / name / "metrics.jsonl").read_text() for name in ("first", "second"))
    timed = re.compile(r'"(time_s|speed/\w+)": [\d.]+')
    assert timed.sub("", first) == timed.sub("", second)
    for script, flags, sentence in (
        ("train_final", ["--config=runs/first"], "--config runs/first: belongs to search.py, not to this script."),
        ("train_final", ["--resume=runs/first"], "--resume runs/first: belongs to search.py; use: python search.py "),
        ("search", ["--resume=runs/first", "--dry-run"], "--dry-run: cannot be combined with --resume, "),
    ):
        capfd.readouterr()
        assert call(script, tmp_path, *flags) == 2
        assert capfd.readouterr().err.startswith(f"error: {sentence}")
