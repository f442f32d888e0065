"""Some steps of a search or of a final training, in float64, for `tests/test_distributed.py` to start several times."""

import copy
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import search
import train_final
from nas.bilevel import step as search_step
from nas.config.cli import parse
from nas.config.flags import FinalConfig, SearchConfig
from nas.distributed import Processes, together
from nas.models.batch_norm import estimate_anew
from nas.models.final_network import FinalNetwork
from nas.runs.checkpoint import state_tensors
from nas.search_space.genotype import Genotype
from nas.training.steps import start_states

CPU = torch.device("cpu")


def search_steps(num_steps: int, flags: list[str], processes: Processes) -> dict[str, torch.Tensor]:
    """State after the steps, new statistics, the gradients of the alphas at each step, and the losses."""
    config = parse(SearchConfig, ["--dataset=digits", "--train-limit=66", "--seed=3", *flags])
    _, lower_images, upper_images = search.load_images(config, CPU, processes)
    models = search_step.build(config, 1, 10, CPU, processes)
    take_step = search_step.shared_step if config.upper.share_lower_step else search_step.exact_step
    found: dict[str, torch.Tensor] = {}
    for step in range(num_steps):
        # 11 images a batch: parts of different sizes.
        train, validate = (
            (batch.double(), target)
            for batch, target in (
                part.batch(config.lower.batch_size, 3, level, step)
                for part, level in ((lower_images, "lower"), (upper_images, "upper"))
            )
        )
        result = take_step(models, train, validate, 0.025)
        found |= {f"step {step} {name}": alpha.grad for name, alpha in models.alphas.named_parameters()}
        found[f"step {step} scalars"] = torch.stack(list(result))
    batches = (lower_images.batch(config.lower.batch_size, 3, "statistics", step)[0].double() for step in range(3))
    measured = copy.deepcopy(models.supernet)
    estimate_anew(measured, models.supernet, ((batch, models.alphas()) for batch in batches), processes.average)
    found |= {f"new {name}": buffer for name, buffer in measured.named_buffers() if buffer.is_floating_point()}
    return found | state_tensors(
        {"supernet": models.supernet, "alphas": models.alphas},
        {"weight_optimizer": models.weight_optimizer, "alpha_optimizer": models.alpha_optimizer},
    )


def final_steps(num_steps: int, flags: list[str], processes: Processes) -> dict[str, torch.Tensor]:
    """The same of a final network, with cutout, drop path and auxiliary head."""
    config = parse(FinalConfig, ["--genotype=DARTS_V2", "--dataset=digits", "--train-limit=70", "--cutout=2", *flags])
    images, _ = train_final.load_images(config, CPU, processes)
    torch.manual_seed(0)
    network = FinalNetwork(Genotype.load("DARTS_V2"), 1, 4, 3, 10)
    if config.run.sync_batch_norm and processes.count > 1:
        train_final.synchronise(network, processes.gather)
    optimizer = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=3e-4)
    start_states(optimizer)
    losses = []
    for step in range(num_steps):
        batch, target = images.batch(config.training.batch_size, 0, "final", step)
        scalars = train_final.take_step(config, network, optimizer, batch.double(), target, step, 0.3, processes)
        losses.append([scalar.item() for scalar in scalars.values()])
    return {"scalars": torch.tensor(losses)} | state_tensors({"network": network}, {"optimizer": optimizer})


if __name__ == "__main__":
    kind, folder, num_steps, *flags = sys.argv[1:]
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    with together() as processes:
        tensors = {"search": search_steps, "final": final_steps}[kind](int(num_steps), flags, processes)
        tensors = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(tensors, Path(folder, f"{processes.count}-{processes.rank}.safetensors"))
