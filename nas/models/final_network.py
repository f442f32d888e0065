"""The network that a genotype stands for, trained from scratch to judge it (DARTS, ICLR 2019, appendix A.2.1)."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.config.file import read_config, validate
from nas.config.flags import FinalConfig, TrainedOn
from nas.errors import InputError
from nas.models.batch_norm import BatchNorm2d
from nas.models.operations import PreprocessedCell, ResidualBlock, concatenate, make_last, make_stem
from nas.models.primitives import PRIMITIVES
from nas.runs.checkpoint import load_weights
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype
from nas.search_space.space import RESIDUAL_BLOCK, Edges, SearchSpace


class FinalNetwork(nn.Module):
    """Stem, cells, classifier, and an auxiliary head after the second reduction cell.

    Args:
        genotype: the cells.
        in_channels: channels of the images.
        init_channels: channels of the first cell, by default as published; each layer that halves the image doubles
            them.
        num_cells: number of cells, or of those in each stage (see `SearchSpace.layers`); by default as published.
        num_classes: logits for each image.
        auxiliary: whether there is an auxiliary head, which only training uses, if the space has one.
        stem: "cifar" leaves the size of images as it is, "imagenet" divides their sides by eight (the authors' code).

    Attributes:
        genotype: the cells.
        trained_on: the classes, and the size and statistics of the images, of a network that comes `from_run`.
    """

    trained_on: TrainedOn | None = None

    def __init__(
        self,
        genotype: Genotype,
        in_channels: int = 3,
        init_channels: int | None = None,
        num_cells: int | None = None,
        num_classes: int = 10,
        auxiliary: bool = True,
        stem: str = "cifar",
    ):
        super().__init__()
        self.genotype, space = genotype, genotype.space
        channels, num_cells = init_channels or space.final_network[0], num_cells or space.final_network[1]
        self.stem, self.second_stem, made = make_stem(stem, in_channels, channels, space.stem_factor)
        inputs = space.num_inputs * [made]
        self.num_inputs = space.num_inputs
        self.kinds = space.layers(num_cells)
        self.cells = nn.ModuleList()
        self.auxiliary_head = None
        self.auxiliary_after = 2 * num_cells // 3
        after_reduction = stem == "imagenet"
        for index, kind in enumerate(self.kinds):
            reduction = kind in space.halving
            channels *= 2 if reduction else 1
            made = channels
            if kind == RESIDUAL_BLOCK:
                self.cells.append(ResidualBlock(inputs[-1], channels))
            else:
                edges, concat = genotype.edges(kind), genotype.concat(kind)
                self.cells.append(FinalCell(edges, concat, inputs, channels, reduction, after_reduction, space))
                made *= len(concat)
            inputs, after_reduction = [*inputs[1:], made], reduction
            if auxiliary and space.auxiliary_head and index == self.auxiliary_after:
                self.auxiliary_head = AuxiliaryHead(made, num_classes, stem)
        self.last = make_last(inputs[-1], space.norm_before_pool)
        self.classifier = nn.Linear(inputs[-1], num_classes)

    @classmethod
    def from_run(cls, folder: str | os.PathLike) -> Self:
        """Load the network that a run of train_final.py has trained, on the CPU, in evaluation mode.

        Its images are (batch, in_channels, image_size, image_size): pixels in [0, 1] minus `trained_on.mean`, divided
        by `trained_on.std`. Logit i is that of `trained_on.classes[i]`.

        Raises:
            InputError: there is no such run, it is a run of search.py, it is not finished, or it is damaged; the file
                is named.
        """
        path = Path(folder)
        file = read_config(path)
        if file.trained_on is None:
            raise InputError(f"{path}: this is a run of search.py; give a run of train_final.py.")
        config = validate(FinalConfig, file.config, path / "config.json")
        trained_on = validate(TrainedOn, file.trained_on, path / "config.json")
        if not len(trained_on.mean) == len(trained_on.std) == trained_on.in_channels or min(trained_on.std) <= 0:
            raise InputError(
                f"config {path / 'config.json'}: trained_on: mean and std need one positive value per channel."
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
        """Return logits and, in training and with an auxiliary head, the head's logits; each (batch, num_classes).

        Args:
            images: (batch, in_channels, height, width), square, at least 8 × 8.
            drop_path: probability that an operation other than identity is dropped for an image, in [0, 1).
            generator: draws what is dropped; it is on the device of the images.
            batch_size, rows: if the images are some rows of a larger batch, its size and these rows; then the same
                operations are dropped as in the whole batch.
        """

        def draw() -> Tensor:  # (images, 1, 1, 1), in [0, 1)
            shape = (batch_size or len(images), 1, 1, 1)
            return torch.rand(shape, device=images.device, dtype=images.dtype, generator=generator)[rows]

        first = self.stem(images)
        states = [first, self.second_stem(first)][-self.num_inputs :]
        auxiliary_logits = None
        for index, (kind, layer) in enumerate(zip(self.kinds, self.cells, strict=True)):
            output = layer(*states) if kind == RESIDUAL_BLOCK else layer(states, drop_path, draw)
            states = [*states[1:], output]
            if self.training and self.auxiliary_head is not None and index == self.auxiliary_after:
                auxiliary_logits = self.auxiliary_head(output)
        return self.classifier(self.last(states[-1]).mean(dim=(2, 3))), auxiliary_logits


class Logits(nn.Module):
    """A final network for use elsewhere: its logits alone, without the auxiliary head."""

    def __init__(self, network: FinalNetwork):
        super().__init__()
        self.network = network
        network.auxiliary_head = None

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[0]


class FinalCell(PreprocessedCell):
    """A derived cell: each node adds up the operations of its edges.

    Args:
        edges: (primitive, source state) of each edge, nodes in order.
        concat: the nodes whose concatenation is the output.
        in_channels: channels of each input, the outputs of the last layers.
        channels: channels of each node.
        reduction: whether the edges from the inputs have stride 2.
        after_reduction: whether the last cell was a reduction, so that the first input is twice as large as the second.
        space: the search space.
    """

    def __init__(
        self,
        edges: Edges,
        concat: tuple[int, ...],
        in_channels: Sequence[int],
        channels: int,
        reduction: bool,
        after_reduction: bool,
        space: SearchSpace = DARTS,
    ):
        super().__init__(in_channels, channels, after_reduction, space.preprocesses, affine=True)
        self.sources = [source for _, source in edges]
        self.nodes = [list(incoming) for _, incoming in space.by_node(range(len(edges)))]  # numbers of their edges
        self.concat = concat
        self.operations = nn.ModuleList(
            PRIMITIVES[primitive].on_edge(channels, 2 if reduction and source < space.num_inputs else 1)
            for primitive, source in edges
        )

    def forward(self, inputs: Sequence[Tensor], drop_path: float, draw: Callable[[], Tensor]) -> Tensor:
        """Return the nodes of `concat`, concatenated; `draw` gives a number in [0, 1) for each image."""
        states = self.preprocess(inputs)
        for edges in self.nodes:
            node = None
            for edge in edges:
                operation = self.operations[edge]
                x = operation(states[self.sources[edge]])
                if self.training and drop_path > 0 and not isinstance(operation, nn.Identity):
                    x = _drop_path(x, drop_path, draw())
                node = x if node is None else node + x
            assert node is not None
            states.append(node)
        return concatenate([states[state] for state in self.concat])


class AuxiliaryHead(nn.Module):
    """A classifier on features that are pooled to 2 × 2, as published if they are 8 × 8 (CIFAR) or 7 × 7 (ImageNet).

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
        x = F.avg_pool2d(x, 5, self.stride) if published else pool_to_2x2(x)
        return self.classifier(self.features(x).flatten(1))


def pool_to_2x2(x: Tensor) -> Tensor:
    """Compute `F.adaptive_avg_pool2d(x, 2)` of square images; the way back of that is not deterministic on a GPU."""
    size = x.shape[-1]
    return x.expand(-1, -1, 2, 2) if size == 1 else F.avg_pool2d(x, (size + 1) // 2, size // 2)


def _drop_path(x: Tensor, probability: float, draws: Tensor) -> Tensor:
    """Drop an operation's output for some images, and scale it for the others (Larsson et al., "FractalNet", 2017)."""
    return x * ((draws >= probability).to(x.dtype) / (1 - probability))
