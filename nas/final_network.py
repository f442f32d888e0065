"""The network that a genotype stands for, trained from scratch to judge it (DARTS, ICLR 2019, appendix A.2.1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.genotype import Genotype
from nas.operations import FactorizedReduce, ReLUConvBN, concatenate, make_operation
from nas.search_space import EDGES_PER_NODE, NUM_INPUTS, reduction_cells


class FinalNetwork(nn.Module):
    """Stem, cells, classifier, and an auxiliary head after the second reduction cell.

    Args:
        genotype: the cells.
        in_channels: of the images.
        init_channels: of the first cell; each of the two reduction cells doubles them.
        num_cells: cells `num_cells // 3` and `2 * num_cells // 3` reduce.
        num_classes: logits an image.
        auxiliary: whether there is an auxiliary head. It serves training alone.
    """

    def __init__(
        self,
        genotype: Genotype,
        in_channels: int = 3,
        init_channels: int = 36,
        num_cells: int = 20,
        num_classes: int = 10,
        auxiliary: bool = True,
    ):
        super().__init__()
        channels = 3 * init_channels
        self.stem = nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        before, previous, channels = channels, channels, init_channels
        self.cells = nn.ModuleList()
        self.auxiliary_head = None
        self.auxiliary_after = 2 * num_cells // 3
        halved = False
        for index in range(num_cells):
            reduction = index in reduction_cells(num_cells)
            channels *= 2 if reduction else 1
            edges, concat = (
                (genotype.reduce, genotype.reduce_concat) if reduction else (genotype.normal, genotype.normal_concat)
            )
            self.cells.append(FinalCell(edges, concat, before, previous, channels, reduction, halved))
            before, previous, halved = previous, len(concat) * channels, reduction
            if auxiliary and index == self.auxiliary_after:
                self.auxiliary_head = AuxiliaryHead(previous, num_classes)
        self.classifier = nn.Linear(previous, num_classes)

    def forward(
        self, images: Tensor, drop_path: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Logits and, in training and with an auxiliary head, the head's logits; each (batch, num_classes).

        Args:
            images: (batch, in_channels, height, width), square, at least 8 × 8.
            drop_path: probability that an operation other than identity is dropped for an image, in [0, 1).
            generator: draws what is dropped; on the device of the images.
        """
        x = self.stem(images)
        before, previous = x, x
        auxiliary_logits = None
        for index, cell in enumerate(self.cells):
            before, previous = previous, cell(before, previous, drop_path, generator)
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

    def forward(self, before: Tensor, previous: Tensor, drop_path: float, generator: torch.Generator | None) -> Tensor:
        states = [self.preprocess_0(before), self.preprocess_1(previous)]
        for first in range(0, len(self.sources), EDGES_PER_NODE):
            node = None
            for edge in range(first, first + EDGES_PER_NODE):
                operation = self.operations[edge]
                x = operation(states[self.sources[edge]])
                if self.training and drop_path > 0 and not isinstance(operation, nn.Identity):
                    x = _drop_path(x, drop_path, generator)
                node = x if node is None else node + x
            assert node is not None
            states.append(node)
        return concatenate([states[state] for state in self.concat])


class AuxiliaryHead(nn.Module):
    """Classifier on 8 × 8 features (of 32 × 32 images), pooled to 2 × 2; other sizes are pooled adaptively."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(768, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        x = F.avg_pool2d(x, 5, stride=3) if x.shape[-1] == 8 else F.adaptive_avg_pool2d(x, 2)
        return self.classifier(self.features(x).flatten(1))


def _drop_path(x: Tensor, probability: float, generator: torch.Generator | None) -> Tensor:
    """Drop an operation's output for some images, and scale it for the others (Larsson et al., "FractalNet", 2017)."""
    kept = torch.rand(len(x), 1, 1, 1, device=x.device, dtype=x.dtype, generator=generator) >= probability
    return x * (kept.to(x.dtype) / (1 - probability))
