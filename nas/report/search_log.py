"""Records and prints each epoch of a search (curves, pictures, cells), and exports the cell at its end."""

import shlex

import torch
from PIL import Image
from torch import Tensor

from nas.config.cli import data_flags
from nas.config.flags import SearchConfig
from nas.data.loader import Loader
from nas.errors import InputError
from nas.machine.environment import versions
from nas.machine.memory import peak_memory_gb
from nas.models.size import network_size
from nas.models.supernet import Alphas, EdgeWeights
from nas.report import page
from nas.runs.folder import RunFolder
from nas.runs.progress_bar import duration
from nas.runs.silent import SilentRun
from nas.search_space import pictures
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile, Provenance
from nas.search_space.space import SKIP, SearchSpace
from nas.training.accuracy import Measured, in_words
from nas.training.loop import Loop
from nas.training.run import Run


def check_export(run: Run) -> None:
    """Check that the genotype can be exported under the name of the run.

    Raises:
        InputError: there is a genotype of that name, and it does not come from this run.
    """

    def check() -> None:
        if not run.exported.exists():
            return
        if not run.is_resumed:
            raise InputError(f"--name {run.path.name}: {run.exported} exists already; choose another --name.")
        if GenotypeFile.load(run.exported).provenance.date != run.started:
            raise InputError(f"--resume {run.path}: {run.exported} comes from another run; move it away.")

    run.on_main(check)


def log_epoch(loop: Loop, alphas: Alphas, upper: Measured, images: Loader) -> None:
    """Record the epoch that ends, and save, draw and log its cell.

    Args:
        upper: accuracy of the supernet on the images that the alphas learn from.
        images: all training images.
    """
    folder, state, genotype, epoch = loop.folder, loop.state, loop.genotype, loop.state.epochs + 1
    config = loop.run.config
    assert isinstance(config, SearchConfig)
    loop.status = status(genotype, upper)
    if folder.is_silent:
        return
    with torch.no_grad():
        edge_weights = alphas.mean()
    epoch_s = folder.elapsed_s() - state.epoch_began_s
    speed = {"speed/epoch_s": epoch_s, "speed/peak_memory_gb": peak_memory_gb(images.device)}
    cells = cell_scalars(edge_weights, genotype, alphas.space)
    scalars = state.scalars("lower") | upper.scalars("upper") | speed | cells
    truth = genotype.truth()
    if truth is not None:
        scalars |= truth.scalars()
    folder.record(epoch, state.steps, scalars)
    provenance = Provenance(
        method=f"nas search, {config.upper.hypergradient}",
        dataset=config.data.dataset,
        num_images=images.num_images,
        seed=config.run.seed,
        epochs=epoch,
        supernet_accuracy=upper.accuracy,
        date=folder.started,
        versions=versions(),
    )
    folder.save_genotype(genotype, provenance)
    folder.draw(genotype)
    write_pictures(folder, edge_weights, alphas.space, state.steps)
    folder.log(
        f"epoch {epoch}/{loop.num_epochs}: {state.line('lower ')}; upper loss {in_words(upper.loss)}, "
        f"accuracy {upper.accuracy:.1%}, balanced {upper.balanced_accuracy:.1%}; {skips(genotype)}; {duration(epoch_s)}"
    )
    if truth is not None:
        folder.log(f"its cell: {genotype.to_text()}: {truth}")


def export_cell(loop: Loop, images: Loader) -> None:
    """Export the derived cell, write the report, and log what was written and how to train the cell."""
    run, folder, config = loop.run, loop.folder, loop.run.config
    assert isinstance(config, SearchConfig)
    if folder.is_silent:
        return
    found = GenotypeFile.load(folder.path / "genotype.json")
    genotype = Genotype(**found.cells())
    genotype.save(run.exported, found.provenance)
    in_channels, image_size, num_classes = images.shape
    stem = config.supernet.stem
    size = network_size(genotype, image_size, in_channels, num_classes=num_classes, stem=stem)
    folder.log(genotype.to_text())
    folder.log(
        f"as a final network ({genotype.space.final_network_in_words}, {stem} stem): {size.weights:,} weights, "
        f"{size.multiply_adds:,} multiply-adds per image"
    )
    if truth := genotype.truth():
        folder.log(f"the exported cell: {truth}")
    names = "genotype.json, cells/, checkpoint.safetensors, metrics.jsonl, tensorboard/, log.txt"
    try:
        page.write([folder.path], folder.path / "report.html")
        names = f"report.html, {names}"
    except InputError as error:  # such as another file of that name: the search still ends well
        folder.log(f"no report: {error}")
    folder.log(f"written: {run.exported}, and in {folder.path}: {names}")
    if not folder.has_pictures:
        folder.log(pictures.HOW_TO_GET_PICTURES)
    how = f"--genotype {shlex.quote(str(run.exported))}{data_flags(config.data, config.run.seed, stem)}"
    folder.log(f"train it: python train_final.py {how}")


def cell_scalars(edge_weights: EdgeWeights, genotype: Genotype, space: SearchSpace) -> dict[str, float]:
    """Return scalars of the cells: weights of edges and primitives, entropies of edges, numbers of skip connections."""
    scalars: dict[str, float] = {}
    for cell, weights in edge_weights._asdict().items():
        shares = weights / weights.sum(1, keepdim=True).clamp(min=1e-30)
        scalars[f"cells/entropy_{cell}_nats"] = -torch.special.xlogy(shares, shares).sum(1).mean().item()
        skips = [primitive == SKIP for primitive, _ in genotype.edges(cell)]
        scalars[f"cells/skip_connections_{cell}"] = sum(skips)
        for edge, row in zip(edge_names(weights, space), weights.tolist(), strict=True):
            for primitive, weight in zip(space.primitives, row, strict=True):
                scalars[f"edge_weights_{cell}/{edge}_{primitive}"] = weight
    return scalars


def status(genotype: Genotype, upper: Measured | None = None) -> str:
    """Return the text after the accuracy on the progress bar: upper accuracy of the last epoch, skips of its cell."""
    accuracy = "" if upper is None else f", upper {upper.accuracy:.1%}"
    return f"{accuracy}; {skips(genotype)}"


def skips(genotype: Genotype) -> str:
    """Return how many skip connections each derived cell has; a search whose cells hold little else has failed."""
    return f"skips {' + '.join(map(str, count_skips(genotype)))}"


def count_skips(genotype: Genotype) -> list[int]:
    """Count the skip connections of each cell."""
    return [sum(name == SKIP for name, _ in cell) for cell in map(genotype.edges, genotype.space.cells)]


def write_pictures(folder: RunFolder | SilentRun, edge_weights: EdgeWeights, space: SearchSpace, step: int) -> None:
    """Write pictures for TensorBoard: edge weights as heat maps and, if Graphviz drew them, the derived cells."""
    for cell, weights in edge_weights._asdict().items():
        heat_map = pictures.heat_map(weights.tolist(), edge_names(weights, space), space.primitives)
        folder.picture(f"heat_map/{cell}", heat_map, step)
        drawing = folder.path / "cells" / f"{cell}.png"
        if drawing.is_file():
            folder.picture(f"cells/{cell}", Image.open(drawing), step)


def edge_names(weights: Tensor, space: SearchSpace) -> list[str]:
    """Return the names of edges, such as 0-2, from the first input to the first node."""
    return [f"{source}-{node}" for source, node in space.edges(space.nodes_of(len(weights)))]
