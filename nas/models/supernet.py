"""The supernet of DARTS (Liu, Simonyan, Yang, ICLR 2019, section 2.2) and its architecture parameters.

`Alphas` is the upper model, `Supernet` the lower one. They share no parameter: edge weights go from one to the other as
an argument. The supernet computes what one module for each edge would compute (`benchmarks/baseline.py` is that form),
but once for all edges that leave a state: their ReLU, their pools and the batch norms of these are shared, an edge's
weight is the scale of its operation's last batch norm, and the weights of one primitive are one stacked tensor.
"""

from collections import namedtuple
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nas.models.operations import Inputs, PreprocessedCell, ResidualBlock, Shared, concatenate, make_last, make_stem
from nas.models.primitives import PRIMITIVES
from nas.models.relaxation import Relaxation, Softmax
from nas.search_space.darts import DARTS
from nas.search_space.space import NONE, RESIDUAL_BLOCK, SearchSpace

# Stacked operations are added up in this order of what they take, as rounding depends on it.
ORDER = ("repeated", "rectified", "x")


class EdgeWeights(NamedTuple):
    """Weight of each primitive on each edge, each of shape (edges, primitives), rows adding up to 1.

    Those of another search space than that of DARTS are a named tuple of its own kinds of cell.
    """

    normal: Tensor
    reduce: Tensor


class Alphas(nn.Module):
    """Alphas holds the architecture parameters.

    Args:
        num_nodes: nodes of each cell; by default as many as the space says.
        space: the search space.
        relaxation: makes edge weights of them, and says what they start at: by default 1e-3 times standard normal.

    Attributes:
        normal: raw alphas of the normal cell, (edges, primitives); there is such an attribute for each kind of cell.
        reduce: the same for the reduction cell.
    """

    normal: nn.Parameter
    reduce: nn.Parameter

    def __init__(self, num_nodes: int | None = None, space: SearchSpace = DARTS, relaxation: Relaxation | None = None):
        super().__init__()
        self.relaxation, self.space = relaxation or Softmax(), space
        self.by_kind: Any = EdgeWeights
        if space.cells != EdgeWeights._fields:
            self.by_kind = namedtuple("EdgeWeights", space.cells)  # pyrefly: ignore[bad-class-definition]
        for kind in space.cells:
            raw = torch.randn(len(space.edges(num_nodes or space.num_nodes)), len(space.primitives))
            self.relaxation.start(raw)
            self.register_parameter(kind, nn.Parameter(raw))

    def forward(self) -> EdgeWeights:
        """Return the edge weights of one pass, which a relaxation may draw."""
        return self.by_kind(*map(self.relaxation.draw, self.parameters()))

    def logits(self) -> EdgeWeights:
        """Return what the mean edge weights are the softmax of: the alphas themselves, if they are relaxed by it."""
        return self.by_kind(*map(self.relaxation.logits, self.parameters()))

    def mean(self) -> EdgeWeights:
        """Return the mean edge weights, with which a supernet is evaluated."""
        return self.by_kind(*(logits.softmax(-1) for logits in self.logits()))


class Supernet(nn.Module):
    """All cells of the search space at once.

    Args:
        in_channels: channels of the images, 1 or 3.
        init_channels: channels of the first cell; each layer that halves the image doubles them.
        num_cells: number of cells, or of those in each stage (see `SearchSpace.layers`).
        num_classes: logits for each image.
        num_nodes: nodes of each cell; by default as many as the space says.
        stem: "cifar" leaves the size of images as it is, "imagenet" divides their sides by eight (see `make_stem`).
        space: the search space.
    """

    def __init__(
        self,
        in_channels: int = 3,
        init_channels: int = 16,
        num_cells: int = 8,
        num_classes: int = 10,
        num_nodes: int | None = None,
        stem: str = "cifar",
        space: SearchSpace = DARTS,
    ):
        super().__init__()
        num_nodes = num_nodes or space.num_nodes
        self.stem, self.second_stem, made = make_stem(stem, in_channels, init_channels, space.stem_factor)
        inputs, channels = space.num_inputs * [made], init_channels
        self.num_inputs = space.num_inputs
        self.kinds = space.layers(num_cells)
        self.cells = nn.ModuleList()
        after_reduction = stem == "imagenet"
        for kind in self.kinds:
            reduction = kind in space.halving
            channels *= 2 if reduction else 1
            made = channels
            if kind == RESIDUAL_BLOCK:
                self.cells.append(ResidualBlock(inputs[-1], channels))
            else:
                self.cells.append(Cell(inputs, channels, num_nodes, reduction, after_reduction, space))
                made *= len(space.outputs(num_nodes))
            inputs, after_reduction = [*inputs[1:], made], reduction
        self.last = make_last(inputs[-1], space.norm_before_pool)
        self.classifier = nn.Linear(inputs[-1], num_classes)

    def forward(self, images: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Return logits, (batch, num_classes), of square images of at least 8 × 8 pixels."""
        first = self.stem(images.contiguous(memory_format=torch.channels_last))
        states = [first, self.second_stem(first)][-self.num_inputs :]
        for kind, layer in zip(self.kinds, self.cells, strict=True):
            weights = () if kind == RESIDUAL_BLOCK else (getattr(edge_weights, kind),)
            states = [*states[1:], layer(*states, *weights)]
        return self.classifier(self.last(states[-1]).mean(dim=(2, 3)))


class Cell(PreprocessedCell):
    """A cell in which each edge carries all primitives, weighted.

    Args:
        in_channels: channels of each input, the outputs of the last layers.
        channels: channels of each node.
        num_nodes: number of nodes.
        reduction: whether the edges from the inputs have stride 2.
        after_reduction: whether the last cell was a reduction, so that the first input is twice as large as the second.
        space: the search space.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_nodes: int,
        reduction: bool,
        after_reduction: bool,
        space: SearchSpace = DARTS,
    ):
        super().__init__(in_channels, channels, after_reduction, space.preprocesses, affine=False)
        self.num_inputs, self.outputs = space.num_inputs, space.outputs(num_nodes)
        sources = [source for source, _ in space.edges(num_nodes)]
        self.num_leaving = [sources.count(source) for source in range(max(sources) + 1)]
        self.by_source: Tensor
        by_source = sorted(range(len(sources)), key=sources.__getitem__)
        self.register_buffer("by_source", torch.tensor(by_source), persistent=False)
        self.mixed_operations = nn.ModuleList(
            MixedOperations(channels, num_edges, 2 if reduction and source < space.num_inputs else 1, space)
            for source, num_edges in enumerate(self.num_leaving)
        )

    def forward(self, *inputs_and_weights: Tensor) -> Tensor:
        """Return the nodes of the cell's output, concatenated: (batch, outputs * channels, height, width).

        Args:
            inputs_and_weights: the inputs, then the edge weights, (edges, primitives).
        """
        *inputs, weights = inputs_and_weights
        states = self.preprocess(inputs)
        incoming: list[list[Tensor]] = [[] for _ in self.num_leaving[self.num_inputs - 1 :]]  # one list for each node
        leaving = weights[self.by_source].split(self.num_leaving)
        for source, mixed_operations in enumerate(self.mixed_operations):
            if source >= self.num_inputs:
                states.append(_sum(incoming[source - self.num_inputs]))
            outputs = mixed_operations(states[source], leaving[source])
            # The edges that leave a state go to the last nodes.
            for arriving, output in zip(incoming[-len(outputs) :], outputs, strict=True):
                arriving.append(output)
        states.append(_sum(incoming[-1]))
        return concatenate([states[state] for state in self.outputs])


class MixedOperations(nn.Module):
    """The mixed operations (DARTS, equation 2) on all edges that leave one state: it is the input of each of them.

    The operations of each primitive but none are a module by its name (see `Primitive.on_edges`).
    """

    def __init__(self, channels: int, num_edges: int, stride: int, space: SearchSpace = DARTS):
        super().__init__()
        self.stride = stride
        self.shared: list[tuple[int, str]] = []  # column of the edge weights, name
        self.stacked: list[tuple[int, str]] = []
        for column, name in enumerate(space.primitives):
            if name != NONE:
                form = space.supernet_forms.get(name, name)
                operations = PRIMITIVES[form].on_edges(num_edges, channels, stride)
                self.add_module(name, operations)
                (self.shared if isinstance(operations, Shared) else self.stacked).append((column, name))
        self.stacked.sort(key=lambda primitive: ORDER.index(self.get_submodule(primitive[1]).takes))

    def forward(self, x: Tensor, weights: Tensor) -> list[Tensor]:
        """Return one output for each edge, (batch, channels, height, width); `weights` are (edges, primitives)."""
        (num_edges, num_primitives), channels = weights.shape, x.shape[1]
        # Contiguous: batch norm's backward pass reads a broadcast scale wrongly in channels_last (torch 2.15).
        scales = weights.t()[:, :, None].expand(num_primitives, num_edges, channels).contiguous().flatten(1)
        inputs, total = Inputs(x, num_edges), None
        for column, name in self.stacked:
            operations = getattr(self, name)
            # The output gets no name, as memory for it beside the next one's costs time.
            given = getattr(inputs, operations.takes), scales[column]
            total = operations(*given) if total is None else total.add_(operations(*given))
        terms = [(column, getattr(self, name)(x)) for column, name in self.shared]
        if total is None:
            total = torch.zeros_like(x[:, :, :: self.stride, :: self.stride]).repeat(1, num_edges, 1, 1)
        outputs = list(total.split(channels, dim=1))
        for column, term in terms:
            weight_of_edge = weights[:, column].unbind()
            outputs = [torch.addcmul(y, term, weight) for y, weight in zip(outputs, weight_of_edge, strict=True)]
        return outputs


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
