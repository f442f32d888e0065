"""What a search says, records and leaves: curves, pictures and cells of each epoch, and the genotype at its end."""

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from nas.config.flags import SearchConfig, Stem
from nas.errors import InputError
from nas.machine.environment import versions
from nas.machine.memory import peak_memory_gb
from nas.models.size import network_size
from nas.models.supernet import EdgeWeights
from nas.report import page
from nas.runs.checkpoint import Progress
from nas.runs.folder import RunFolder
from nas.runs.follower import Follower
from nas.runs.progress_bar import duration
from nas.search_space import pictures
from nas.search_space.genotype import Genotype, GenotypeFile, Provenance
from nas.search_space.space import PRIMITIVES, edges
from nas.training.accuracy import Measured, in_words
from nas.training.steps import Images


def note_epoch(
    config: SearchConfig,
    run: RunFolder | Follower,
    progress: Progress,
    upper: Measured,
    edge_weights: EdgeWeights,
    genotype: Genotype,
    images: Images,
) -> None:
    """Record and show what an epoch has come to; `upper` is of the images of the upper level."""
    epoch_s = run.elapsed_s() - progress.epoch_began_s
    speed = {"speed/epoch_s": epoch_s, "speed/peak_memory_gb": peak_memory_gb(images.mean.device)}
    scalars = progress.scalars("lower") | upper.scalars("upper") | speed | describe(edge_weights, genotype)
    run.record(progress.epochs, progress.steps, scalars)
    provenance = Provenance(
        method=f"nas search, {config.upper.hypergradient}",
        dataset=config.data.dataset,
        num_images=len(images.split.targets),
        seed=config.run.seed,
        epochs=progress.epochs,
        supernet_accuracy=upper.accuracy,
        date=run.started,
        versions=versions(),
    )
    genotype.save(run.path / "genotype.json", provenance)
    show(run, edge_weights, progress.steps)
    run.log(
        f"epoch {progress.epochs}/{config.lower.epochs}: {progress.line('lower ')}; upper loss {in_words(upper.loss)}, "
        f"accuracy {upper.accuracy:.1%}, balanced {upper.balanced_accuracy:.1%}; {skips(genotype)}; {duration(epoch_s)}"
    )


def export_cell(run: RunFolder | Follower, exported: Path, images: Images, stem: Stem) -> None:
    """Leave the derived cell where `train_final.py` finds it, and the report; say what they are."""
    found = GenotypeFile.load(run.path / "genotype.json")
    genotype = Genotype(**found.cells())
    genotype.save(exported, found.provenance)
    _, in_channels, image_size, _ = images.split.images.shape
    size = network_size(genotype, image_size, in_channels, num_classes=len(images.split.classes), stem=stem)
    run.log(genotype.to_text())
    run.log(
        f"as a final network (36 channels, 20 cells, {stem} stem): {size.weights:,} weights, {size.multiply_adds:,} "
        "multiply-adds an image"
    )
    names = "genotype.json, cells/, checkpoint.safetensors, metrics.jsonl, tensorboard/, log.txt"
    try:
        page.write([run.path], run.path / "report.html")
        names = f"report.html, {names}"
    except InputError as error:  # such as somebody else's page in that place: no reason not to finish
        run.log(f"no report: {error}")
    run.log(f"written: {exported}, and in {run.path}: {names}")


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


def status(progress: Progress, upper_accuracy: float | None, genotype: Genotype) -> str:
    """What stands beside the bar: accuracies of this epoch's steps and of the last epoch's cell, and its skips."""
    upper = "" if upper_accuracy is None else f", upper {upper_accuracy:.1%}"
    return f"{progress.status('lower')}{upper}; {skips(genotype)}"


def skips(genotype: Genotype) -> str:
    """How many skip connections each derived cell has; where they take over, a search has failed."""
    normal, reduction = (sum(name == "skip_connect" for name, _ in cell) for cell in (genotype.normal, genotype.reduce))
    return f"skips {normal} + {reduction}"


def show(run: RunFolder | Follower, edge_weights: EdgeWeights, step: int) -> None:
    """In TensorBoard: edge weights as heat maps and, where they were drawn, the derived cells."""
    for cell, weights in edge_weights._asdict().items():
        run.picture(f"heat_map/{cell}", pictures.heat_map(weights.tolist(), edge_names(weights), PRIMITIVES), step)
        drawing = run.path / "cells" / f"{cell}.png"
        if drawing.is_file():
            run.picture(f"cells/{cell}", Image.open(drawing), step)


def edge_names(weights: Tensor) -> list[str]:
    """Such as 0-2, from the first input to the first node."""
    num_nodes = next(nodes for nodes in range(1, len(weights) + 1) if len(edges(nodes)) == len(weights))
    return [f"{source}-{node}" for source, node in edges(num_nodes)]
