"""The network that a genotype stands for, trained from scratch to judge it (DARTS, ICLR 2019, appendix A.2.1)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.config.file import read_config, validate
from nas.config.flags import FinalConfig, TrainedOn
from nas.errors import InputError
from nas.models.batch_norm import BatchNorm2d
from nas.models.primitives import FactorizedReduce, ReLUConvBN, concatenate, make_operation, make_stem
from nas.runs.checkpoint import load_weights
from nas.search_space.genotype import Genotype
from nas.search_space.space import EDGES_PER_NODE, NUM_INPUTS, reduction_cells


class FinalNetwork(nn.Module):
    """Stem, cells, classifier, and an auxiliary head after the second reduction cell.

    Args:
        genotype: the cells.
        in_channels: of the images.
        init_channels: of the first cell; each of the two reduction cells doubles them.
        num_cells: cells `num_cells // 3` and `2 * num_cells // 3` reduce.
        num_classes: logits an image.
        auxiliary: whether there is an auxiliary head. It serves training alone.
        stem: "cifar" leaves images as large as they are, "imagenet" divides their sides by eight (the authors' code).

    Attributes:
        genotype: the cells.
        trained_on: of a network that comes `from_run`: its classes, and the size and statistics of its images.
    """

    trained_on: TrainedOn | None = None

    def __init__(
        self,
        genotype: Genotype,
        in_channels: int = 3,
        init_channels: int = 36,
        num_cells: int = 20,
        num_classes: int = 10,
        auxiliary: bool = True,
        stem: str = "cifar",
    ):
        super().__init__()
        self.genotype = genotype
        self.stem, self.second_stem, channels = make_stem(stem, in_channels, init_channels)
        before, previous, channels = channels, channels, init_channels
        self.cells = nn.ModuleList()
        self.auxiliary_head = None
        self.auxiliary_after = 2 * num_cells // 3
        halved = stem == "imagenet"
        for index in range(num_cells):
            reduction = index in reduction_cells(num_cells)
            channels *= 2 if reduction else 1
            edges, concat = (
                (genotype.reduce, genotype.reduce_concat) if reduction else (genotype.normal, genotype.normal_concat)
            )
            self.cells.append(FinalCell(edges, concat, before, previous, channels, reduction, halved))
            before, previous, halved = previous, len(concat) * channels, reduction
            if auxiliary and index == self.auxiliary_after:
                self.auxiliary_head = AuxiliaryHead(previous, num_classes, stem)
        self.classifier = nn.Linear(previous, num_classes)

    @classmethod
    def from_run(cls, folder: str | os.PathLike) -> Self:
        """The network that a run of train_final.py has trained, on the CPU, to be evaluated.

        Its images are (batch, in_channels, image_size, image_size), of pixels in [0, 1] less `trained_on.mean`, divided
        by `trained_on.std`; logit i is that of `trained_on.classes[i]`.

        Raises:
            InputError: no such run, one of search.py, one that has not ended, or a damaged one; the file is named.
        """
        path = Path(folder)
        file = read_config(path)
        if file.trained_on is None:
            raise InputError(f"{path}: a run of search.py; give that of a trained network.")
        config = validate(FinalConfig, file.config, path / "config.json")
        trained_on = validate(TrainedOn, file.trained_on, path / "config.json")
        if not len(trained_on.mean) == len(trained_on.std) == trained_on.in_channels or min(trained_on.std) <= 0:
            raise InputError(
                f"config {path / 'config.json'}: trained_on: mean and std need one positive value a channel."
            )
        with torch.device("meta"):  # the weights come from the file
            network = cls(
                Genotype.load(path / "genotype.json"),
                trained_on.in_channels,
                config.network.init_channels,
                config.network.num_cells,
                len(trained_on.classes),
                auxiliary=config.network.auxiliary_weight > 0,
                stem=config.network.stem,
            )
        load_weights(path / "weights.safetensors", network)
        network.trained_on = trained_on
        return network.eval()

    def forward(
        self,
        images: Tensor,
        drop_path: float = 0.0,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        rows: slice = slice(None),
    ) -> tuple[Tensor, Tensor | None]:
        """Logits and, in training and with an auxiliary head, the head's logits; each (batch, num_classes).

        Args:
            images: (batch, in_channels, height, width), square, at least 8 × 8.
            drop_path: probability that an operation other than identity is dropped for an image, in [0, 1).
            generator: draws what is dropped; on the device of the images.
            batch_size, rows: where the images are some rows of a batch, its size and these rows; what is dropped is
                what would be in the whole batch.
        """

        def draw() -> Tensor:  # (images, 1, 1, 1), in [0, 1)
            shape = (batch_size or len(images), 1, 1, 1)
            return torch.rand(shape, device=images.device, dtype=images.dtype, generator=generator)[rows]

        before = self.stem(images)
        previous = self.second_stem(before)
        auxiliary_logits = None
        for index, cell in enumerate(self.cells):
            before, previous = previous, cell(before, previous, drop_path, draw)
            if self.training and self.auxiliary_head is not None and index == self.auxiliary_after:
                auxiliary_logits = self.auxiliary_head(previous)
        return self.classifier(previous.mean(dim=(2, 3))), auxiliary_logits


class FinalCell(nn.Module):
    """A derived cell: each node adds up two operations."""

    def __init__(
        self,
        edges: tuple[tuple[str, int], ...],
        concat: tuple[int, ...],
        before: int,
        previous: int,
        channels: int,
        reduction: bool,
        halved: bool,
    ):
        super().__init__()
        self.sources = [source for _, source in edges]
        self.concat = concat
        self.preprocess_0 = (FactorizedReduce if halved else ReLUConvBN)(before, channels)
        self.preprocess_1 = ReLUConvBN(previous, channels)
        self.operations = nn.ModuleList(
            make_operation(primitive, channels, 2 if reduction and source < NUM_INPUTS else 1)
            for primitive, source in edges
        )

    def forward(self, before: Tensor, previous: Tensor, drop_path: float, draw: Callable[[], Tensor]) -> Tensor:
        """The nodes that count, concatenated; `draw` gives a number in [0, 1) an image."""
        states = [self.preprocess_0(before), self.preprocess_1(previous)]
        for first in range(0, len(self.sources), EDGES_PER_NODE):
            node = None
            for edge in range(first, first + EDGES_PER_NODE):
                operation = self.operations[edge]
                x = operation(states[self.sources[edge]])
                if self.training and drop_path > 0 and not isinstance(operation, nn.Identity):
                    x = _drop_path(x, drop_path, draw())
                node = x if node is None else node + x
            assert node is not None
            states.append(node)
        return concatenate([states[state] for state in self.concat])


class AuxiliaryHead(nn.Module):
    """Classifier on features that are pooled to 2 × 2: in the published way of 8 × 8 (CIFAR) or 7 × 7 (ImageNet) ones.

    For ImageNet the authors' code has no second batch norm.
    """

    def __init__(self, channels: int, num_classes: int, stem: str = "cifar"):
        super().__init__()
        norm = nn.Identity() if stem == "imagenet" else BatchNorm2d(768)
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            norm,
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)
        self.published_size, self.stride = (7, 2) if stem == "imagenet" else (8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        published = x.shape[-1] == self.published_size
        x = F.avg_pool2d(x, 5, self.stride) if published else F.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.features(x).flatten(1))


def _drop_path(x: Tensor, probability: float, draws: Tensor) -> Tensor:
    """Drop an operation's output for some images, and scale it for the others (Larsson et al., "FractalNet", 2017)."""
    return x * ((draws >= probability).to(x.dtype) / (1 - probability))
