"""The supernet of DARTS (Liu, Simonyan, Yang, ICLR 2019, section 2.2) and its architecture parameters.

`Alphas` is the upper model, `Supernet` the lower one. They share no parameter: edge weights go from one to the other as
an argument. The supernet computes what one module for each edge would compute (`benchmarks/baseline.py` is that form),
but once for all edges that leave a state: their ReLU, their pools and the batch norms of these are shared, an edge's
weight is the scale of its operation's last batch norm, and the weights of one primitive are one stacked tensor.
"""

from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.models.operations import Inputs, PreprocessedCell, ResidualBlock, Shared, concatenate, make_last, make_stem
from nas.models.primitives import PRIMITIVES
from nas.models.relaxation import Relaxation, Softmax
from nas.search_space.darts import DARTS
from nas.search_space.space import NONE, RESIDUAL_BLOCK, SearchSpace

# Stacked operations are added up in this order of what they take, as rounding depends on it.
ORDER = ("repeated", "rectified", "x")


class EdgeWeights(NamedTuple):
    """Weight of each primitive on each edge, each of shape (edges, primitives).

    Rows add up to 1 or, where edges are weighed too, to the weight of their edge. Those of another search space than
    that of DARTS are a named tuple of its own kinds of cell.
    """

    normal: Tensor
    reduce: Tensor


class Alphas(nn.Module):
    """Alphas holds the architecture parameters.

    Args:
        num_nodes: nodes of each cell; by default as many as the space says.
        space: the search space.
        relaxation: makes edge weights of them, and says what they start at: by default 1e-3 times standard normal.
        weigh_edges: whether each node also weighs the edges that lead to it (PC-DARTS, ICLR 2020, equation 2).

    Attributes:
        normal: raw alphas of the normal cell, (edges, primitives); there is such an attribute for each kind of cell.
        reduce: the same for the reduction cell.
        by_node: for each kind of cell, and each node, the raw alphas of the edges that lead to it, (1, edges); empty
            where edges are not weighed.
    """

    normal: nn.Parameter
    reduce: nn.Parameter

    def __init__(
        self,
        num_nodes: int | None = None,
        space: SearchSpace = DARTS,
        relaxation: Relaxation | None = None,
        weigh_edges: bool = False,
    ):
        super().__init__()
        num_nodes = num_nodes or space.num_nodes
        self.relaxation, self.space = relaxation or Softmax(), space
        self.by_kind: Any = EdgeWeights
        if space.cells != EdgeWeights._fields:
            self.by_kind = namedtuple("EdgeWeights", space.cells)  # pyrefly: ignore[bad-class-definition]
        for kind in space.cells:
            self.register_parameter(kind, self._start(len(space.edges(num_nodes)), len(space.primitives)))
        self.by_node: Any = nn.ModuleDict()
        for kind in space.cells if weigh_edges else ():
            self.by_node[kind] = nn.ParameterList(self._start(1, node) for node in space.nodes(num_nodes))

    def _start(self, *shape: int) -> nn.Parameter:
        raw = torch.randn(shape)
        self.relaxation.start(raw)
        return nn.Parameter(raw)

    def forward(self) -> EdgeWeights:
        """Return the edge weights of one pass, which a relaxation may draw."""
        return self._relaxed(self.relaxation.draw)

    def logits(self) -> EdgeWeights:
        """Return what the mean weights of an edge's primitives are the softmax of: by default the alphas themselves."""
        return self.by_kind(*(self.relaxation.logits(getattr(self, kind)) for kind in self.space.cells))

    def mean(self) -> EdgeWeights:
        """Return the mean edge weights, with which a supernet is evaluated and a cell derived."""
        return self._relaxed(lambda raw: self.relaxation.logits(raw).softmax(-1))

    def make_fixable(self) -> None:
        """Let edges be fixed: a buffer for each kind of cell says what each edge carries (see `fixed`)."""
        for kind in self.space.cells:
            self.register_buffer(f"fixed_{kind}", torch.full_like(getattr(self, kind)[:, 0], -1, dtype=torch.int64))

    def fixed(self, kind: str) -> Tensor:
        """Return for each edge the column of its only primitive, -1 while it carries all, or their number for none."""
        return self.get_buffer(f"fixed_{kind}")

    def _relaxed(self, relax: Callable[[Tensor], Tensor]) -> EdgeWeights:
        rows = {kind: relax(getattr(self, kind)) for kind in self.space.cells}
        for kind in self.space.cells if hasattr(self, f"fixed_{self.space.cells[0]}") else ():
            fixed, weights = self.fixed(kind), rows[kind]
            single = F.one_hot(fixed.clamp(min=0), weights.shape[1] + 1)[:, :-1].to(weights)
            rows[kind] = torch.where(fixed[:, None] < 0, weights, single)
        for kind, nodes in self.by_node.items():
            rows[kind] = rows[kind] * torch.cat([relax(raw)[0] for raw in nodes])[:, None]
        return self.by_kind(**rows)


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
        partial_channels: K, so that one of K channels goes through the mixed operations (see `Cell`).

    Raises:
        ValueError: the channels of a cell cannot be divided by K.
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
        partial_channels: int = 1,
    ):
        super().__init__()
        if init_channels % partial_channels:
            raise ValueError(f"{init_channels} channels cannot be divided into {partial_channels} equal parts.")
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
                arguments = channels, num_nodes, reduction, after_reduction, space, partial_channels
                self.cells.append(Cell(inputs, *arguments))
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

    With partial channels (Xu et al., "PC-DARTS", ICLR 2020, equation 1) only the first of K parts of a state goes
    through the mixed operation. The others pass by, weighted by the sum of the edge's weights and max-pooled where the
    stride is 2. Each node shuffles its channels, so that the next edges take some of every part.

    Args:
        in_channels: channels of each input, the outputs of the last layers.
        channels: channels of each node.
        num_nodes: number of nodes.
        reduction: whether the edges from the inputs have stride 2.
        after_reduction: whether the last cell was a reduction, so that the first input is twice as large as the second.
        space: the search space.
        partial_channels: K; 1 for all channels.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        num_nodes: int,
        reduction: bool,
        after_reduction: bool,
        space: SearchSpace = DARTS,
        partial_channels: int = 1,
    ):
        super().__init__(in_channels, channels, after_reduction, space.preprocesses, affine=False)
        self.num_inputs, self.outputs = space.num_inputs, space.outputs(num_nodes)
        sources = [source for source, _ in space.edges(num_nodes)]
        self.num_leaving = [sources.count(source) for source in range(max(sources) + 1)]
        self.by_source: Tensor
        by_source = sorted(range(len(sources)), key=sources.__getitem__)
        self.register_buffer("by_source", torch.tensor(by_source), persistent=False)
        self.partial_channels, self.taken = partial_channels, channels // partial_channels
        self.strides = [2 if reduction and source < space.num_inputs else 1 for source in range(len(self.num_leaving))]
        self.mixed_operations = nn.ModuleList(
            MixedOperations(self.taken, num_edges, stride, space)
            for num_edges, stride in zip(self.num_leaving, self.strides, strict=True)
        )

    def forward(self, *inputs_and_weights: Tensor) -> Tensor:
        """Return the nodes of the cell's output, concatenated: (batch, outputs * channels, height, width).

        Args:
            inputs_and_weights: the inputs, then the edge weights, (edges, primitives).
        """
        *inputs, weights = inputs_and_weights
        states = self.preprocess(inputs)
        nodes = self.num_leaving[self.num_inputs - 1 :]
        incoming: list[list[Tensor]] = [[] for _ in nodes]  # for each node, what the mixed operations give it
        passing: list[list[Tensor]] = [[] for _ in nodes]  # and the channels that pass by
        leaving = weights[self.by_source].split(self.num_leaving)
        for source, mixed_operations in enumerate(self.mixed_operations):
            if source >= self.num_inputs:
                node = source - self.num_inputs
                states.append(self._node(incoming[node], passing[node]))
            x, rows = states[source], leaving[source]
            if self.partial_channels > 1:
                x, others = self._parts(x, self.strides[source])
                for arriving, weight in zip(passing[-len(rows) :], rows.sum(-1).unbind(), strict=True):
                    arriving.append(others * weight)
            # The edges that leave a state go to the last nodes.
            for arriving, output in zip(incoming[-len(rows) :], mixed_operations(x, rows), strict=True):
                arriving.append(output)
        states.append(self._node(incoming[-1], passing[-1]))
        return concatenate([states[state] for state in self.outputs])

    def _parts(self, x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
        """Return the channels that the mixed operations take, and those that pass by."""
        taken, others = x[:, : self.taken].contiguous(memory_format=torch.channels_last), x[:, self.taken :]
        return taken, others if stride == 1 else F.max_pool2d(others, stride, ceil_mode=True)

    def _node(self, incoming: list[Tensor], passing: list[Tensor]) -> Tensor:
        if not passing:
            return _sum(incoming)
        return F.channel_shuffle(torch.cat([_sum(incoming), _sum(passing)], dim=1), self.partial_channels)


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
