"""One training step of a final network, textbook form against product: python -m benchmarks.final_step

DARTS_V2, 36 channels, 20 cells, batch 32, drop path 0.2, on two cores of an AMD EPYC, torch 2.14.1, medians of 7 steps:
textbook form 3.01 s, product 2.09 s, 1.44 times as quick, 15.3 images a second; in a second run 1.43 times.
"""

import argparse
import json
import statistics
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.models.final_network import AuxiliaryHead, FinalNetwork
from nas.search_space.genotype import Genotype


def conv(c_in: int, c_out: int, kernel: int, **geometry) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, bias=False, **geometry)


class FactorizedReduce(nn.Module):
    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv_1 = conv(c_in, c_out // 2, 1, stride=2)
        self.conv_2 = conv(c_in, c_out - c_out // 2, 1, stride=2)
        self.norm = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = x.relu()
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


def depthwise_separable(c: int, kernel: int, stride: int, dilation: int) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    depthwise = conv(c, c, kernel, stride=stride, padding=padding, dilation=dilation, groups=c)
    return [nn.ReLU(), depthwise, conv(c, c, 1), nn.BatchNorm2d(c)]


def operation(primitive: str, c: int, stride: int) -> nn.Module:
    if primitive == "max_pool_3x3":
        return nn.MaxPool2d(3, stride, 1)
    if primitive == "avg_pool_3x3":
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if primitive == "skip_connect":
        return nn.Identity() if stride == 1 else FactorizedReduce(c, c)
    kernel = int(primitive[-1])
    if primitive.startswith("sep"):
        return nn.Sequential(*depthwise_separable(c, kernel, stride, 1), *depthwise_separable(c, kernel, 1, 1))
    return nn.Sequential(*depthwise_separable(c, kernel, stride, 2))


class TextbookCell(nn.Module):
    def __init__(self, edges, concat, c_before: int, c_previous: int, c: int, reduction: bool, halved: bool):
        super().__init__()
        self.sources, self.concat = [source for _, source in edges], concat
        self.preprocess_0 = (
            FactorizedReduce(c_before, c)
            if halved
            else nn.Sequential(nn.ReLU(), conv(c_before, c, 1), nn.BatchNorm2d(c))
        )
        self.preprocess_1 = nn.Sequential(nn.ReLU(), conv(c_previous, c, 1), nn.BatchNorm2d(c))
        self.operations = nn.ModuleList(
            operation(primitive, c, 2 if reduction and source < 2 else 1) for primitive, source in edges
        )

    def forward(self, before: Tensor, previous: Tensor, drop_path: float, generator: torch.Generator) -> Tensor:
        states = [self.preprocess_0(before), self.preprocess_1(previous)]
        for first in range(0, len(self.sources), 2):
            ends = []
            for edge in (first, first + 1):
                end = self.operations[edge](states[self.sources[edge]])
                if drop_path > 0 and not isinstance(self.operations[edge], nn.Identity):
                    kept = torch.rand(len(end), 1, 1, 1, generator=generator, dtype=end.dtype) >= drop_path
                    end = end / (1 - drop_path) * kept
                ends.append(end)
            states.append(ends[0] + ends[1])
        return torch.cat([states[state] for state in self.concat], dim=1)


class TextbookFinalNetwork(nn.Module):
    """One module an operation, nothing shared, NCHW; parameters in the order of `nas.FinalNetwork`."""

    def __init__(self, genotype: Genotype, init_channels: int, num_cells: int):
        super().__init__()
        c = 3 * init_channels
        self.stem = nn.Sequential(conv(3, c, 3, padding=1), nn.BatchNorm2d(c))
        c_before, c_previous, c, halved = c, c, init_channels, False
        self.cells = nn.ModuleList()
        for index in range(num_cells):
            reduction = index in (num_cells // 3, 2 * num_cells // 3)
            c *= 2 if reduction else 1
            edges = genotype.reduce if reduction else genotype.normal
            concat = genotype.reduce_concat if reduction else genotype.normal_concat
            self.cells.append(TextbookCell(edges, concat, c_before, c_previous, c, reduction, halved))
            c_before, c_previous, halved = c_previous, len(concat) * c, reduction
            if index == 2 * num_cells // 3:
                self.auxiliary_head = AuxiliaryHead(c_previous, 10)
        self.classifier = nn.Linear(c_previous, 10)

    def forward(self, images: Tensor, drop_path: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        before = previous = self.stem(images)
        auxiliary_logits = images
        for index, cell in enumerate(self.cells):
            before, previous = previous, cell(before, previous, drop_path, generator)
            if index == 2 * len(self.cells) // 3:
                auxiliary_logits = self.auxiliary_head(previous)
        return self.classifier(F.adaptive_avg_pool2d(previous, 1).flatten(1)), auxiliary_logits


def copy_weights(network: FinalNetwork, textbook: TextbookFinalNetwork) -> None:
    with torch.no_grad():
        for parameter, value in zip(textbook.parameters(), network.parameters(), strict=True):
            assert parameter.shape == value.shape
            parameter.copy_(value)


def training_step(network: nn.Module, optimizer: torch.optim.SGD, images: Tensor, target: Tensor, drop_path: float):
    """One step of train_final.py; the loss."""
    optimizer.zero_grad()
    logits, auxiliary_logits = network(images, drop_path, torch.Generator().manual_seed(0))
    loss = F.cross_entropy(logits, target) + 0.4 * F.cross_entropy(auxiliary_logits, target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    return loss.detach()


def compare(name: str, init_channels: int, num_cells: int, batch_size: int, num_steps: int) -> dict[str, float]:
    """Seconds a step of both, in turn; each turn begins with a step that is not timed."""
    torch.manual_seed(0)
    genotype = Genotype.load(name)
    network = FinalNetwork(genotype, 3, init_channels, num_cells)
    textbook = TextbookFinalNetwork(genotype, init_channels, num_cells)
    copy_weights(network, textbook)
    network.to(memory_format=torch.channels_last)
    images = torch.randn(batch_size, 3, 32, 32)
    target = torch.randint(10, (batch_size,))
    forms = [
        (textbook, torch.optim.SGD(textbook.parameters(), 0.025, 0.9, weight_decay=3e-4), images),
        (
            network,
            torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=3e-4),
            images.contiguous(memory_format=torch.channels_last),
        ),
    ]
    seconds: list[list[float]] = [[], []]
    for _ in range(num_steps):
        for times, (model, optimizer, data) in zip(seconds, forms, strict=True):
            training_step(model, optimizer, data, target, 0.2)
            began = time.perf_counter()
            training_step(model, optimizer, data, target, 0.2)
            times.append(time.perf_counter() - began)
    slow, quick = (statistics.median(times) for times in seconds)
    return {
        "textbook_s": slow,
        "textbook_min_s": min(seconds[0]),
        "product_s": quick,
        "product_min_s": min(seconds[1]),
        "ratio": slow / quick,
        "images_per_s": batch_size / quick,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One training step of a final network, textbook form against product.")
    parser.add_argument("--genotype", default="DARTS_V2")
    parser.add_argument("--init-channels", type=int, default=36)
    parser.add_argument("--num-cells", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    a = parser.parse_args()
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads", flush=True)
    print(json.dumps(compare(a.genotype, a.init_channels, a.num_cells, a.batch_size, a.steps)))
