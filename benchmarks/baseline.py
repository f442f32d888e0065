"""The search in its textbook form, written to be read: supernet, hypergradient and step as the original computes them.

The supernet has one module an edge and primitive, shares nothing, and is in NCHW; the step builds a copy of it for w′
and perturbs the weights in place. No code is shared with `nas`, so that either can be checked against the other:
`copy_weights` gives the textbook form the weights of a `nas.Supernet`, and both then compute the same logits, gradients
(tests/test_supernet.py) and steps (tests/test_search.py).
Source: Liu, Simonyan, Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, equations 2, 7 and 8, algorithm 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIMITIVES = ["none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"]
PRIMITIVES += ["sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"]


def conv(c_in: int, c_out: int, kernel: int, **geometry) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, bias=False, **geometry)


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, affine=False)


class Zero(nn.Module):
    def __init__(self, stride: int):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return 0 * x[:, :, :: self.stride, :: self.stride]


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.relu = nn.ReLU()
        self.conv_1 = conv(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = conv(c_in, c_out - c_out // 2, 1, stride=2)
        self.norm = norm(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        odd = x.shape[-1] % 2
        shifted = nn.functional.pad(x, (-1, odd, -1, odd))
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(shifted)], dim=1))


def depthwise_separable(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        conv(c, c, kernel, stride=stride, padding=padding, dilation=dilation, groups=c),
        conv(c, c, 1),
        norm(c),
    ]


def operation(primitive: str, c: int, stride: int) -> nn.Module:
    if primitive == "none":
        return Zero(stride)
    if primitive == "max_pool_3x3":
        return nn.Sequential(nn.MaxPool2d(3, stride, 1), norm(c))
    if primitive == "avg_pool_3x3":
        return nn.Sequential(nn.AvgPool2d(3, stride, 1, count_include_pad=False), norm(c))
    if primitive == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    kernel = int(primitive[-1])
    if primitive.startswith("sep"):
        return nn.Sequential(*depthwise_separable(c, kernel, stride, 1), *depthwise_separable(c, kernel, 1, 1))
    return nn.Sequential(*depthwise_separable(c, kernel, stride, 2))


class MixedOperation(nn.Module):
    def __init__(self, c: int, stride: int):
        super().__init__()
        self.operations = nn.ModuleList(operation(primitive, c, stride) for primitive in PRIMITIVES)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        out = torch.zeros(())
        for weight, op in zip(weights, self.operations, strict=True):
            out = out + weight * op(x)
        return out


class Cell(nn.Module):
    def __init__(self, c_before: int, c_previous: int, c: int, num_nodes: int, reduction: bool, halved: bool):
        super().__init__()
        self.num_nodes = num_nodes
        self.reduction = reduction
        self.preprocess_0 = (
            FactorizedReduce(c_before, c) if halved else nn.Sequential(nn.ReLU(), conv(c_before, c, 1), norm(c))
        )
        self.preprocess_1 = nn.Sequential(nn.ReLU(), conv(c_previous, c, 1), norm(c))
        self.edges = nn.ModuleList()
        for node in range(num_nodes):
            for source in range(2 + node):
                self.edges.append(MixedOperation(c, 2 if reduction and source < 2 else 1))

    def forward(self, before: Tensor, previous: Tensor, weights: Tensor) -> Tensor:
        states = [self.preprocess_0(before), self.preprocess_1(previous)]
        first = 0
        for _ in range(self.num_nodes):
            states.append(sum(self.edges[first + s](state, weights[first + s]) for s, state in enumerate(states)))
            first += len(states) - 1
        return torch.cat(states[2:], dim=1)


class TextbookSupernet(nn.Module):
    """The same arguments and call as `nas.Supernet`."""

    def __init__(self, in_channels=3, init_channels=16, num_cells=8, num_classes=10, num_nodes=4, stem="cifar"):
        super().__init__()
        self.arguments = (in_channels, init_channels, num_cells, num_classes, num_nodes, stem)
        c = 3 * init_channels
        self.stem = nn.Sequential(conv(in_channels, c, 3, padding=1), nn.BatchNorm2d(c))
        self.second_stem = nn.Sequential()
        if stem == "imagenet":
            c = init_channels
            self.stem = nn.Sequential(
                conv(in_channels, c // 2, 3, stride=2, padding=1),
                nn.BatchNorm2d(c // 2),
                nn.ReLU(),
                conv(c // 2, c, 3, stride=2, padding=1),
                nn.BatchNorm2d(c),
            )
            self.second_stem = nn.Sequential(nn.ReLU(), conv(c, c, 3, stride=2, padding=1), nn.BatchNorm2d(c))
        c_before, c_previous, c = c, c, init_channels
        halved = stem == "imagenet"
        self.cells = nn.ModuleList()
        for index in range(num_cells):
            reduction = index in (num_cells // 3, 2 * num_cells // 3)
            if reduction:
                c = 2 * c
            self.cells.append(Cell(c_before, c_previous, c, num_nodes, reduction, halved))
            halved = reduction
            c_before, c_previous = c_previous, num_nodes * c
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(c_previous, num_classes)

    def forward(self, images: Tensor, edge_weights: tuple[Tensor, Tensor]) -> Tensor:
        normal, reduce = edge_weights
        before = self.stem(images)
        previous = self.second_stem(before)
        for cell in self.cells:
            before, previous = previous, cell(before, previous, reduce if cell.reduction else normal)
        return self.classifier(self.pool(previous).flatten(1))


def textbook_loss(network: TextbookSupernet, alphas: list[nn.Parameter], batch: tuple[Tensor, Tensor]) -> Tensor:
    images, target = batch
    normal, reduce = alphas
    return F.cross_entropy(network(images, (normal.softmax(-1), reduce.softmax(-1))), target)


def textbook_step(
    network: TextbookSupernet,
    alphas: list[nn.Parameter],
    weight_optimizer: torch.optim.SGD,
    alpha_optimizer: torch.optim.Adam,
    train: tuple[Tensor, Tensor],
    validate: tuple[Tensor, Tensor],
    grad_clip: float = 5.0,
    r: float = 1e-2,
) -> tuple[Tensor, Tensor]:
    """One step of algorithm 1, alphas and then weights; lower and upper loss. The alphas keep their gradient."""
    weights = list(network.parameters())
    options = weight_optimizer.param_groups[0]

    # w′ = w − ξ (momentum + gradient + decay), in a network of its own
    gradients = torch.autograd.grad(textbook_loss(network, alphas, train), weights)
    virtual = TextbookSupernet(*network.arguments).to(weights[0])
    virtual.load_state_dict(network.state_dict())
    with torch.no_grad():
        for w_prime, w, gradient in zip(virtual.parameters(), weights, gradients, strict=True):
            buffer = weight_optimizer.state[w].get("momentum_buffer", 0)
            w_prime -= options["lr"] * (options["momentum"] * buffer + gradient + options["weight_decay"] * w)

    # ∇_α L_val(w′, α) and v = ∇_w′ L_val(w′, α)
    upper_loss = textbook_loss(virtual, alphas, validate)
    gradients = torch.autograd.grad(upper_loss, [*alphas, *virtual.parameters()])
    direct, v = gradients[: len(alphas)], gradients[len(alphas) :]

    # ∇_α L_train(w ± ε v, α)
    epsilon = r / torch.cat([part.flatten() for part in v]).norm()
    perturbed = []
    for factor in (epsilon, -2 * epsilon):
        with torch.no_grad():
            for w, part in zip(weights, v, strict=True):
                w += factor * part
        perturbed.append(torch.autograd.grad(textbook_loss(network, alphas, train), alphas))
    with torch.no_grad():
        for w, part in zip(weights, v, strict=True):
            w += epsilon * part
    for alpha, first, plus, minus in zip(alphas, direct, *perturbed, strict=True):
        alpha.grad = first - options["lr"] * (plus - minus) / (2 * epsilon)
    alpha_optimizer.step()

    weight_optimizer.zero_grad()
    lower_loss = textbook_loss(network, alphas, train)
    lower_loss.backward(inputs=weights)
    torch.nn.utils.clip_grad_norm_(weights, grad_clip)
    weight_optimizer.step()
    return lower_loss.detach(), upper_loss.detach()


# Where the stacked tensors of `nas.models.supernet.MixedOperations` go: name there -> (primitive, place here).
STACKED = {
    "skip_connect.conv_1": ("skip_connect", "conv_1"),
    "skip_connect.conv_2": ("skip_connect", "conv_2"),
} | {
    f"{kind}_conv_{kernel}x{kernel}.{stage}{layer}": (f"{kind}_conv_{kernel}x{kernel}", str(place))
    for kind, stages in (("sep", {"first.": 0, "second.": 4}), ("dil", {"": 0}))
    for kernel in (3, 5)
    for stage, first in stages.items()
    for layer, place in (("depthwise", first + 1), ("pointwise", first + 2))
}


@torch.no_grad()
def copy_weights(supernet: nn.Module, textbook: TextbookSupernet) -> None:
    """Give the textbook form the weights of a `nas.Supernet` of the same size; every weight is used once."""
    source = dict(supernet.named_parameters())
    for part in ("stem", "second_stem", "classifier"):
        for name, parameter in getattr(textbook, part).named_parameters():
            parameter.copy_(source.pop(f"{part}.{name}"))
    for index, cell in enumerate(textbook.cells):
        assert isinstance(cell, Cell)
        for side in ("preprocess_0", "preprocess_1"):
            preprocess = getattr(cell, side)
            for name, parameter in preprocess.named_parameters():
                name = name if isinstance(preprocess, FactorizedReduce) else "conv.weight"
                parameter.copy_(source.pop(f"cells.{index}.{side}.{name}"))
        ends = [(start, node) for node in range(2, 2 + cell.num_nodes) for start in range(node)]
        for start in range(1 + cell.num_nodes):
            leaving = [edge for edge, (s, _) in zip(cell.edges, ends, strict=True) if s == start]
            for name, (primitive, place) in STACKED.items():
                stacked = source.pop(f"cells.{index}.mixed_operations.{start}.{name}", None)
                if stacked is not None:
                    for edge, kernels in zip(leaving, stacked, strict=True):
                        index_of_operation = PRIMITIVES.index(primitive)
                        edge.get_parameter(f"operations.{index_of_operation}.{place}.weight").copy_(kernels)
    assert not source, f"weights without a place in the textbook form: {sorted(source)}"
