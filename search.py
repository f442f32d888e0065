"""Search a cell: the weights and the alphas of a supernet learn in turn (DARTS, ICLR 2019, algorithm 1)."""

import dataclasses
import functools
import sys
import time
from datetime import datetime
from pathlib import Path

import higher
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from nas import datasets, draw
from nas.checkpoint import save_state
from nas.config import SearchConfig, data_flags, run_script
from nas.errors import InputError
from nas.genotype import Genotype, Provenance
from nas.hypergradient import FirstOrder, Onestage, State
from nas.network_size import network_size
from nas.run_folder import RunFolder, duration, versions
from nas.search_space import PRIMITIVES, edges
from nas.supernet import Alphas, EdgeWeights, Supernet
from nas.training import Images, cosine, evaluate, pick_device, prepare

RECORD_EVERY_STEPS = 10


def objective(state: State) -> Tensor:
    """Cross entropy of the supernet; the same at both levels."""
    return F.cross_entropy(state.lower_model(state.data, state.upper_model()), state.target)


def search(config: SearchConfig) -> None:
    data, lower, upper, seed = config.data, config.lower, config.upper, config.run.seed
    device = pick_device(config.run.device)
    name = config.run.name or f"search-{data.dataset}-seed{seed}-{datetime.now():%Y%m%d-%H%M%S}"
    exported = Path("genotypes", f"{name}.json")
    if exported.exists():
        raise InputError(f"--name {name}: {exported} exists already; choose another --name.")
    images, lower_images, upper_images = load_images(config, device)
    _, in_channels, image_size, _ = images.split.images.shape
    num_classes = len(images.split.classes)

    torch.manual_seed(seed)
    alphas = Alphas(config.supernet.num_nodes).to(device)
    supernet = Supernet(
        in_channels,
        config.supernet.init_channels,
        config.supernet.num_cells,
        num_classes,
        config.supernet.num_nodes,
    ).to(device)
    weights = list(supernet.parameters())
    weight_optimizer = torch.optim.SGD(weights, lower.lower_lr, lower.momentum, weight_decay=lower.weight_decay)
    alpha_optimizer = torch.optim.Adam(
        alphas.parameters(), upper.alpha_lr, betas=(0.5, 0.999), weight_decay=upper.alpha_weight_decay
    )
    # One wrapper for the whole search: making one takes longer than giving it new weights.
    auxiliary = higher.monkeypatch(supernet, track_higher_grads=False)
    method = {"onestage": Onestage, "first-order": FirstOrder}[upper.hypergradient]
    hypergradient = method(objective, alphas, objective, supernet, lower.lower_lr, upper.r)

    run = RunFolder(Path(config.run.run_dir, name), {"config": dataclasses.asdict(config)})
    run.log(
        f"{data.dataset}: {len(lower_images.split.targets)} images for the weights, "
        f"{len(upper_images.split.targets)} for the alphas, {in_channels} × {image_size} × {image_size}, "
        f"{num_classes} classes; supernet of {sum(weight.numel() for weight in weights):,} weights on {device}"
    )
    run.log(f"{run.path}: tensorboard --logdir {run.path.parent} shows the search as it goes")

    genotype = Genotype.derive(alphas)
    drawn = genotype.draw(run.path / "cells")
    steps_an_epoch = datasets.num_batches(len(lower_images.split.targets), lower.batch_size)
    with run.progress(lower.epochs * steps_an_epoch) as advance:
        for epoch in range(lower.epochs):
            epoch_began = time.monotonic()
            learning_rate = cosine(epoch, lower.epochs, lower.lower_lr, lower.lower_lr_min)
            weight_optimizer.param_groups[0]["lr"] = learning_rate
            hypergradient.lower_learning_rate = learning_rate
            sums = torch.zeros(2, device=device)  # lower loss and correct answers, over the images of the epoch
            for step in range(epoch * steps_an_epoch, (epoch + 1) * steps_an_epoch):
                step_began = time.monotonic()
                train_data, train_target = lower_images.batch(lower.batch_size, seed, "lower", step)
                validate_data, validate_target = upper_images.batch(lower.batch_size, seed, "upper", step)

                # Upper level: w′ by a virtual step of the weights' optimizer, and there the alphas' hypergradient.
                auxiliary.update_params([weight.detach().requires_grad_() for weight in weights])  # pyrefly: ignore
                if upper.hypergradient == "onestage":
                    virtual_optimizer = higher.get_diff_optim(
                        weight_optimizer, weights, fmodel=auxiliary, track_higher_grads=False
                    )
                    virtual_optimizer.step(objective(State(train_data, train_target, alphas, auxiliary)))
                alpha_optimizer.zero_grad()
                upper_loss = hypergradient.compute_gradients(
                    validate_data, validate_target, auxiliary, train_data, train_target
                )
                alpha_gradients = [alpha.grad for alpha in alphas.parameters() if alpha.grad is not None]
                upper_norm = torch.nn.utils.get_total_norm(alpha_gradients)
                if not torch.isfinite(upper_norm):
                    raise FloatingPointError(f"step {step + 1}: the alphas' gradient is {upper_norm.item()}.")
                alpha_optimizer.step()

                # Lower level: the weights, at the new alphas.
                weight_optimizer.zero_grad()
                logits = supernet(train_data, alphas())
                lower_loss = F.cross_entropy(logits, train_target)
                lower_loss.backward(inputs=weights)
                lower_norm = torch.nn.utils.clip_grad_norm_(weights, lower.grad_clip)
                if not torch.isfinite(lower_norm):
                    raise FloatingPointError(f"step {step + 1}: the weights' gradient is {lower_norm.item()}.")
                weight_optimizer.step()

                sums += torch.stack([lower_loss.detach() * len(logits), (logits.argmax(1) == train_target).sum()])
                if step % RECORD_EVERY_STEPS == 0:
                    num_images = len(train_target) + len(validate_target)
                    scalars = {
                        "lower/step_loss": lower_loss.item(),
                        "lower/gradient_norm": lower_norm.item(),
                        "lower/learning_rate": learning_rate,
                        "upper/step_loss": upper_loss.item(),
                        "upper/gradient_norm": upper_norm.item(),
                        "upper/learning_rate": upper.alpha_lr,
                        "speed/images_per_s": num_images / (time.monotonic() - step_began),
                    }
                    run.record(epoch + 1, step + 1, scalars)
                advance()

            with torch.no_grad():
                edge_weights = alphas()
            supernet.eval()
            predict = functools.partial(supernet, edge_weights=edge_weights)
            upper_loss_mean, upper_accuracy = evaluate(predict, upper_images, 2 * lower.batch_size)
            supernet.train()
            lower_loss_mean, lower_accuracy = (sums / len(lower_images.split.targets)).tolist()
            previous, genotype = genotype, Genotype.derive(alphas)
            levels = {
                "lower/loss": lower_loss_mean,
                "lower/accuracy": lower_accuracy,
                "upper/loss": upper_loss_mean,
                "upper/accuracy": upper_accuracy,
                "speed/epoch_s": time.monotonic() - epoch_began,
            }
            cells = describe(edge_weights, genotype)
            run.record(epoch + 1, step + 1, levels | cells)
            provenance = Provenance(
                method=f"nas search, {upper.hypergradient}",
                dataset=data.dataset,
                num_images=len(images.split.targets),
                seed=seed,
                epochs=epoch + 1,
                supernet_accuracy=upper_accuracy,
                date=datetime.now().astimezone().isoformat(timespec="seconds"),
                versions=versions(),
            )
            genotype.save(run.path / "genotype.json", provenance)
            save_state(
                run.path / "checkpoint.safetensors",
                {"supernet": supernet, "alphas": alphas},
                {"weight_optimizer": weight_optimizer, "alpha_optimizer": alpha_optimizer},
                step + 1,
            )
            if genotype != previous:
                drawn = genotype.draw(run.path / "cells")
            show(run, edge_weights, step + 1)
            run.log(
                f"epoch {epoch + 1}/{lower.epochs}: lower loss {lower_loss_mean:.3f}, accuracy {lower_accuracy:.1%}; "
                f"upper loss {upper_loss_mean:.3f}, accuracy {upper_accuracy:.1%}; skips "
                f"{cells['cells/skip_connections_normal']:.0f} + {cells['cells/skip_connections_reduce']:.0f}; "
                f"{duration(levels['speed/epoch_s'])}"
            )

    genotype.save(exported, provenance)
    size = network_size(genotype, image_size, in_channels, num_classes=num_classes)
    run.log(genotype.to_text())
    run.log(
        f"as a final network (36 channels, 20 cells): {size.weights:,} weights, {size.multiply_adds:,} multiply-adds "
        "an image"
    )
    run.log(
        f"written: {exported}, and in {run.path}: genotype.json, cells/, checkpoint.safetensors, metrics.jsonl, "
        "tensorboard/, log.txt"
    )
    if not drawn:
        run.log(draw.HOW_TO_GET_PICTURES)
    run.log(f"retrain it: python train_final.py --genotype {exported}{data_flags(data)}")
    run.close()


def load_images(config: SearchConfig, device: torch.device) -> tuple[Images, Images, Images]:
    """All training images, those of the lower level and those of the upper level; the test set is not read."""
    data, fraction, seed = config.data, config.upper.upper_fraction, config.run.seed
    train = datasets.load(data.dataset, Path(data.data_dir), "train", data.image_size, data.train_limit, seed)
    lower_half, upper_half = datasets.halves(len(train.targets), fraction, seed)
    if min(len(lower_half), len(upper_half)) < 2:
        raise InputError(
            f"--upper-fraction {fraction}: {len(lower_half)} images for the weights and {len(upper_half)} for the "
            "alphas, but each level needs two at least."
        )
    images = prepare(train, data.dataset, device)
    lower_images, upper_images = (
        images._replace(split=images.split.select(half.to(device))) for half in (lower_half, upper_half)
    )
    return images, lower_images, upper_images


def describe(edge_weights: EdgeWeights, genotype: Genotype) -> dict[str, float]:
    """Scalars of the cells: one an edge and primitive, entropy of the edges, skip connections of the derived cells."""
    scalars: dict[str, float] = {}
    for cell, weights in edge_weights._asdict().items():
        scalars[f"cells/entropy_{cell}_nats"] = -torch.special.xlogy(weights, weights).sum(1).mean().item()
        skips = [primitive == "skip_connect" for primitive, _ in getattr(genotype, cell)]
        scalars[f"cells/skip_connections_{cell}"] = sum(skips)
        for edge, row in zip(edge_names(weights), weights.tolist(), strict=True):
            for primitive, weight in zip(PRIMITIVES, row, strict=True):
                scalars[f"edge_weights_{cell}/{edge}_{primitive}"] = weight
    return scalars


def show(run: RunFolder, edge_weights: EdgeWeights, step: int) -> None:
    """In TensorBoard: edge weights as heat maps and, where they were drawn, the derived cells."""
    for cell, weights in edge_weights._asdict().items():
        run.picture(f"heat_map/{cell}", draw.heat_map(weights.tolist(), edge_names(weights), PRIMITIVES), step)
        drawing = run.path / "cells" / f"{cell}.png"
        if drawing.is_file():
            run.picture(f"cells/{cell}", Image.open(drawing), step)


def edge_names(weights: Tensor) -> list[str]:
    """Such as 0-2, from the first input to the first node."""
    num_nodes = next(nodes for nodes in range(1, len(weights) + 1) if len(edges(nodes)) == len(weights))
    return [f"{source}-{node}" for source, node in edges(num_nodes)]


if __name__ == "__main__":
    sys.exit(run_script(search, SearchConfig))
