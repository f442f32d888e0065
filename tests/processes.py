"""Processes that compute together, and what they do in `tests/test_distributed.py`."""

import datetime
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import search
import train_final
from benchmarks.search_step import take_step
from nas import distributed
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import FinalConfig, SearchConfig
from nas.data.loader import Batch
from nas.distributed import World, connect
from nas.entry import exit_code
from nas.models.batch_norm import estimate_anew
from nas.runs.checkpoint import state_tensors
from nas.search_space.genotype import Genotype
from nas.training.run import Run

CPU = torch.device("cpu")
FORKS = multiprocessing.get_context("forkserver")  # of a process that has imported what is slow
FORKS.set_forkserver_preload([__name__, "torch._dynamo", "sklearn.datasets"])


def start(count, folder, body, *arguments, **more):
    """Start the processes of one group, with the environment that torchrun gives them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = []
    for rank in range(count):
        environment = size | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | more
        process = FORKS.Process(target=begin, args=(folder, environment, body, arguments), name=f"{folder}.{rank}")
        process.start()
        processes.append(process)
        if more:  # the first one sees what earlier processes have left in a store, not what the others write
            time.sleep(0.5)
    return processes


def begin(folder, environment, body, arguments):
    os.chdir(folder)
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(f"{folder}.{environment['RANK']}.{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.exit(body(*arguments))


def ends(processes):
    """Exit code, output and complaints of each."""
    for process in processes:
        process.join(280)
    return [(each.exitcode, *(Path(f"{each.name}.{number}").read_text() for number in (1, 2))) for each in processes]


def wait_for_a_record(folder, is_running):
    """Until a run has a record, which is that of its first step."""
    records, end = Path(folder, "metrics.jsonl"), time.monotonic() + 200
    while not (records.exists() and records.stat().st_size):
        assert is_running()
        assert time.monotonic() < end
        time.sleep(0.01)


# What they do


def connected(act, *arguments):
    def run():
        with connect() as world:
            act(world, *arguments)
        return 0

    return exit_code(run)


def save_steps(world, kind, num_steps, *flags):
    """Some steps of a search or of a final training, in float64."""
    torch.set_default_dtype(torch.float64)
    tensors = {"search": search_steps, "final": final_steps}[kind](num_steps, flags, world)
    tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, f"{world.size}-{world.rank}.safetensors")


def double(batch: Batch) -> Batch:
    return batch._replace(images=batch.images.double())


def search_steps(num_steps: int, flags: list[str], world: World) -> dict[str, torch.Tensor]:
    """State after the steps, new statistics, the gradients of the alphas at each step, and the losses."""
    config = parse(SearchConfig, ["--dataset=digits", "--train-limit=66", "--seed=3", *flags])  # 11 images a batch
    images = search.load_halves(config, Run(config, world, Path("run"), CPU, []))
    bilevel = build(config, 1, 10, CPU, world)
    found: dict[str, torch.Tensor] = {}
    for step in range(num_steps):
        scalars = take_step(bilevel, double(images.weights.batch(step)), double(images.alphas.batch(step)))
        found |= {f"step {step} {name}": alpha.grad for name, alpha in bilevel.alphas.named_parameters()}
        found[f"step {step} scalars"] = torch.stack(list(scalars.values()))
    drawn = images.weights._replace(purpose="statistics")
    inputs = ((double(drawn.batch(step)).images, bilevel.alphas()) for step in range(3))
    estimate_anew(bilevel.evaluated, bilevel.supernet, inputs, world.average)
    found["answers"] = bilevel.evaluated(torch.ones(5, 1, 8, 8), bilevel.alphas())
    statistics = bilevel.evaluated.named_buffers()
    return (
        found | {f"new {name}": buffer for name, buffer in statistics if buffer.is_floating_point()} | bilevel.state()
    )


def final_steps(num_steps: int, flags: list[str], world: World) -> dict[str, torch.Tensor]:
    """The same of a final network, with cutout, drop path and auxiliary head."""
    small = ["--genotype=DARTS_V2", "--dataset=digits", "--train-limit=70", "--cutout=2", "--skip-test"]
    config = parse(FinalConfig, [*small, "--holdout-fraction=0.1", "--init-channels=4", "--num-cells=3", *flags])
    images = train_final.load_images(config, Run(config, world, Path("run"), CPU, [])).train
    network, optimizer = train_final.build(config, Genotype.load("DARTS_V2"), images, world)
    losses = []
    for step in range(num_steps):
        scalars = train_final.take_step(config, network, optimizer, world, 0.3, double(images.batch(step)))
        losses.append([scalar.item() for scalar in scalars.values()])
    state = state_tensors({"network": network}, {"optimizer": optimizer})
    return state | {"scalars": torch.tensor(losses), "answers": network.eval()(torch.ones(5, 1, 8, 8))[0]}


def come_late():
    """Wait long for data, and then too long for a step."""
    distributed.LONGEST_WAIT = datetime.timedelta(seconds=2)

    def wait(world):
        world.local_first(lambda: time.sleep(3 * (world.rank == 0)))
        print("loaded", flush=True)
        time.sleep(4 * world.rank)
        world.any(False)

    return connected(wait)


def differ(world):
    """Hold the same tensors, and then others."""
    world.check_identical({"w": torch.zeros(3)})
    world.check_identical({"w": torch.tensor([0.0, 1e-30 * (world.rank == 1), 0.0])})
