"""The supernet of DARTS (Liu, Simonyan, Yang, ICLR 2019, section 2.2) and its architecture parameters.

`Alphas` is the upper model, `Supernet` the lower one. They share no parameter: edge weights go from one to the other as
an argument. The supernet computes what one module an edge would compute (`benchmarks/baseline.py` is that form), but
once for all edges that leave a state: their ReLU, their pools and the batch norms of these are shared, an edge's weight
is the scale of its operation's last batch norm, and the weights of one kind of operation are one stacked tensor.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.models.batch_norm import BatchNorm2d, StackedNorm
from nas.models.depthwise import depthwise_conv2d
from nas.models.primitives import FactorizedReduce, ReLUConvBN, concatenate, every_second_pixel, make_stem
from nas.search_space.space import NUM_INPUTS, PRIMITIVES, edges, reduction_cells

NONE, MAX_POOL, AVG_POOL, SKIP, SEP_3, SEP_5, DIL_3, DIL_5 = range(len(PRIMITIVES))


class EdgeWeights(NamedTuple):
    """Weight of each primitive on each edge, each of shape (edges, 8), rows adding up to 1."""

    normal: Tensor
    reduce: Tensor


class Alphas(nn.Module):
    """The architecture parameters: `normal` and `reduce`, each (edges, 8), started at 1e-3 times standard normal."""

    def __init__(self, num_nodes: int = 4):
        super().__init__()
        shape = (len(edges(num_nodes)), len(PRIMITIVES))
        self.normal = nn.Parameter(1e-3 * torch.randn(shape))
        self.reduce = nn.Parameter(1e-3 * torch.randn(shape))

    def forward(self) -> EdgeWeights:
        """Softmax of each row (DARTS, equation 2)."""
        return EdgeWeights(self.normal.softmax(dim=-1), self.reduce.softmax(dim=-1))


class Supernet(nn.Module):
    """All cells of the search space at once.

    Args:
        in_channels: of the images, 1 or 3.
        init_channels: of the first cell; each of the two reduction cells doubles them.
        num_cells: cells `num_cells // 3` and `2 * num_cells // 3` reduce.
        num_classes: logits an image.
        num_nodes: nodes a cell.
        stem: "cifar" leaves images as large as they are, "imagenet" divides their sides by eight (see `make_stem`).
    """

    def __init__(
        self,
        in_channels: int = 3,
        init_channels: int = 16,
        num_cells: int = 8,
        num_classes: int = 10,
        num_nodes: int = 4,
        stem: str = "cifar",
    ):
        super().__init__()
        self.stem, self.second_stem, channels = make_stem(stem, in_channels, init_channels)
        before, previous, channels = channels, channels, init_channels
        self.cells = nn.ModuleList()
        halved = stem == "imagenet"
        for index in range(num_cells):
            reduction = index in reduction_cells(num_cells)
            channels *= 2 if reduction else 1
            self.cells.append(Cell(before, previous, channels, num_nodes, reduction, halved))
            before, previous, halved = previous, num_nodes * channels, reduction
        self.classifier = nn.Linear(previous, num_classes)

    def forward(self, images: Tensor, edge_weights: EdgeWeights) -> Tensor:
        """Logits, shape (batch, num_classes), of square images of at least 8 × 8 pixels."""
        before = self.stem(images.contiguous(memory_format=torch.channels_last))
        previous = self.second_stem(before)
        for cell in self.cells:
            weights = edge_weights.reduce if cell.reduction else edge_weights.normal
            before, previous = previous, cell(before, previous, weights)
        return self.classifier(previous.mean(dim=(2, 3)))


class Cell(nn.Module):
    """A cell in which each edge carries all primitives, weighted.

    Args:
        before, previous: channels of the two inputs, the outputs of the last cell but one and of the last cell.
        channels: of each node.
        reduction: whether the edges from the inputs have stride 2.
        halved: whether the last cell was a reduction, so that the first input is twice as large as the second.
    """

    def __init__(self, before: int, previous: int, channels: int, num_nodes: int, reduction: bool, halved: bool):
        super().__init__()
        self.reduction = reduction
        self.preprocess_0 = (FactorizedReduce if halved else ReLUConvBN)(before, channels, affine=False)
        self.preprocess_1 = ReLUConvBN(previous, channels, affine=False)
        sources = [source for source, _ in edges(num_nodes)]
        self.num_leaving = [sources.count(source) for source in range(num_nodes + 1)]
        self.by_source: Tensor
        by_source = sorted(range(len(sources)), key=sources.__getitem__)
        self.register_buffer("by_source", torch.tensor(by_source), persistent=False)
        self.mixed_operations = nn.ModuleList(
            MixedOperations(channels, num_edges, 2 if reduction and source < NUM_INPUTS else 1)
            for source, num_edges in enumerate(self.num_leaving)
        )

    def forward(self, before: Tensor, previous: Tensor, weights: Tensor) -> Tensor:
        """The nodes, concatenated: (batch, num_nodes * channels, height, width); `weights` is (edges, 8)."""
        states = [self.preprocess_0(before), self.preprocess_1(previous)]
        incoming: list[list[Tensor]] = [[] for _ in self.num_leaving[1:]]  # one list a node
        leaving = weights[self.by_source].split(self.num_leaving)
        for source, mixed_operations in enumerate(self.mixed_operations):
            if source >= NUM_INPUTS:
                states.append(_sum(incoming[source - NUM_INPUTS]))
            outputs = mixed_operations(states[source], leaving[source])
            # The edges that leave a state go to the last nodes.
            for arriving, output in zip(incoming[-len(outputs) :], outputs, strict=True):
                arriving.append(output)
        return concatenate([*states[NUM_INPUTS:], _sum(incoming[-1])])


class MixedOperations(nn.Module):
    """The mixed operations (DARTS, equation 2) on all edges that leave one state: it is the input of each of them.

    Inside, the channels of the edges stand behind one another: (batch, edges * channels, height, width).
    """

    def __init__(self, channels: int, num_edges: int, stride: int):
        super().__init__()
        self.stride = stride
        self.max_pool_norm = BatchNorm2d(channels, affine=False)
        self.avg_pool_norm = BatchNorm2d(channels, affine=False)
        if stride == 2:
            self.skip = StackedFactorizedReduce(num_edges, channels)
        self.sep_3 = StackedSepConv(num_edges, channels, 3, stride)
        self.sep_5 = StackedSepConv(num_edges, channels, 5, stride)
        self.dil_3 = StackedDilConv(num_edges, channels, 3, stride, dilation=2)
        self.dil_5 = StackedDilConv(num_edges, channels, 5, stride, dilation=2)

    def forward(self, x: Tensor, weights: Tensor) -> list[Tensor]:
        """One output an edge, (batch, channels, height, width); `weights` are those of the edges, (edges, 8)."""
        (num_edges, num_primitives), channels = weights.shape, x.shape[1]
        # Contiguous: batch norm's backward pass reads a broadcast scale wrongly in channels_last (torch 2.15).
        scales = weights.t()[:, :, None].expand(num_primitives, num_edges, channels).contiguous().flatten(1)
        rectified = F.relu(x)
        repeated = torch.cat(num_edges * [rectified], dim=1)
        convolved = self.sep_3(repeated, scales[SEP_3])
        convolved += self.sep_5(repeated, scales[SEP_5])
        convolved += self.dil_3(repeated, scales[DIL_3])
        convolved += self.dil_5(repeated, scales[DIL_5])
        if self.stride == 2:
            convolved += self.skip(rectified, scales[SKIP])

        terms = {
            MAX_POOL: self.max_pool_norm(F.max_pool2d(x, 3, self.stride, 1)),
            AVG_POOL: self.avg_pool_norm(F.avg_pool2d(x, 3, self.stride, 1, count_include_pad=False)),
        }
        if self.stride == 1:
            terms[SKIP] = x
        outputs = list(convolved.split(channels, dim=1))
        for primitive, term in terms.items():
            weight_of_edge = weights[:, primitive].unbind()
            outputs = [torch.addcmul(y, term, weight) for y, weight in zip(outputs, weight_of_edge, strict=True)]
        return outputs


class StackedDilConv(nn.Module):
    """Depthwise, pointwise, batch norm, on each of several edges: `operations.DilConv` behind its ReLU."""

    def __init__(self, num_edges: int, channels: int, kernel: int, stride: int, dilation: int):
        super().__init__()
        self.num_edges, self.stride, self.dilation = num_edges, stride, dilation
        self.depthwise = _stacked_kernels(num_edges, channels, 1, kernel)
        self.pointwise = _stacked_kernels(num_edges, channels, channels, 1)
        self.norm = StackedNorm(num_edges, channels)

    def forward(self, rectified: Tensor, scales: Tensor | None = None) -> Tensor:
        x = depthwise_conv2d(rectified, self.depthwise.flatten(0, 1), self.stride, self.dilation)
        return self.norm(F.conv2d(x, self.pointwise.flatten(0, 1), groups=self.num_edges), scales)


class StackedSepConv(nn.Module):
    """`operations.SepConv` behind its first ReLU, on each of several edges."""

    def __init__(self, num_edges: int, channels: int, kernel: int, stride: int):
        super().__init__()
        self.first = StackedDilConv(num_edges, channels, kernel, stride, dilation=1)
        self.second = StackedDilConv(num_edges, channels, kernel, 1, dilation=1)

    def forward(self, rectified: Tensor, scales: Tensor) -> Tensor:
        return self.second(F.relu_(self.first(rectified)), scales)


class StackedFactorizedReduce(nn.Module):
    """`operations.FactorizedReduce` behind its ReLU, on each of several edges that leave one state."""

    def __init__(self, num_edges: int, channels: int):
        super().__init__()
        self.num_edges = num_edges
        self.conv_1 = _stacked_kernels(num_edges, channels // 2, channels, 1)
        self.conv_2 = _stacked_kernels(num_edges, channels - channels // 2, channels, 1)
        self.norm = StackedNorm(num_edges, channels)

    def forward(self, rectified: Tensor, scales: Tensor) -> Tensor:
        halves = [
            F.conv2d(x, kernels.flatten(0, 1)).unflatten(1, (self.num_edges, -1))
            for x, kernels in zip(every_second_pixel(rectified), (self.conv_1, self.conv_2), strict=True)
        ]
        x = torch.cat(halves, dim=2).flatten(1, 2)
        return self.norm(x.contiguous(memory_format=torch.channels_last), scales)


def _stacked_kernels(num_edges: int, out_channels: int, in_channels: int, kernel: int) -> nn.Parameter:
    """Kernels of one convolution an edge, each drawn as `nn.Conv2d` draws its own."""
    bound = (in_channels * kernel * kernel) ** -0.5
    return nn.Parameter(torch.empty(num_edges, out_channels, in_channels, kernel, kernel).uniform_(-bound, bound))


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total
