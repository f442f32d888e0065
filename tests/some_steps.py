"""Some steps of a search or of a final training, in float64, for `tests/test_distributed.py` to start several times."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import search
import train_final
from benchmarks.search_step import take_step
from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import FinalConfig, SearchConfig
from nas.data.loader import Batch
from nas.distributed import World, connect
from nas.models.batch_norm import estimate_anew
from nas.runs.checkpoint import state_tensors
from nas.search_space.genotype import Genotype
from nas.training.run import Run

CPU = torch.device("cpu")


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
    return {"scalars": torch.tensor(losses)} | state_tensors({"network": network}, {"optimizer": optimizer})


if __name__ == "__main__":
    kind, folder, num_steps, *flags = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    with connect() as world:
        tensors = {"search": search_steps, "final": final_steps}[kind](int(num_steps), flags, world)
        tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, Path(folder, f"{world.size}-{world.rank}.safetensors"))
