"""One step of the search, textbook form against product: python -m benchmarks.search_step

Forms take their steps in turn in one process; `ratio` is the textbook form's figure through the form's. Two cores of an
AMD EPYC with AVX-512, torch 2.14.1, medians of 5 steps (min to max); the last column counts the operators of a
supernet's pass forward and backward:

    16 channels, 8 cells, batch 16
    textbook            15.69 s (13.51 to 16.66)                         2.06 GB              8345+6003
    product              4.29 s ( 4.07 to  4.79)  3.65 times as quick    1.25 GB, 0.61 of it  3955+5901
    shared lower step    3.45 s ( 3.01 to  3.68)  4.54                   1.26 GB, 0.61        3955+5901

    16 channels, 8 cells, batch 64
    textbook            46.39 s (45.52 to 50.27)                         8.18 GB              8345+6003
    product             15.81 s (15.48 to 16.58)  2.93 times as quick    4.96 GB, 0.61 of it  3955+5901
    shared lower step   11.95 s (10.61 to 12.72)  3.88                   4.97 GB, 0.61        3955+5901

    8 channels, 5 cells, batch 64
    textbook            15.35 s (14.35 to 17.08)                         2.54 GB              5282+3828
    product              4.80 s ( 4.29 to  6.06)  3.20 times as quick    1.53 GB, 0.60 of it  2512+3677
    shared lower step    3.53 s ( 3.32 to  4.64)  4.35                   1.53 GB, 0.60        2512+3677

The machine is shared: other runs of the first size gave 3.27 (3.49) here, 2.75 (3.56) with torch 2.15.0, and 3.21
(3.80) on an older EPYC with AVX2 alone. The alphas' gradients are 0.14, 0.14 and 0.06 apart in float32, where finite
differences amplify rounding at kinks; in float64 they are equal to 1e-9 (tests/bilevel/test_step.py).

NVIDIA H200, torch 2.11.0, medians of 2 steps; alphas' gradients 0.36 apart, as the textbook form computes in TF32 too:

    16 channels, 8 cells, batch 64
    textbook             2.23 s ( 2.06 to  2.40)                         8.26 GB              8344+6003
    product              1.28 s ( 1.25 to  1.31)  1.74 times as quick    5.05 GB, 0.61 of it  4034+3175
    shared lower step    1.02 s ( 0.97 to  1.07)  2.19                   5.06 GB, 0.61        4034+3175

NVIDIA H100 beside a slower CPU, torch 2.11.0, medians of 3 steps; alphas' gradients 0.12 apart:

    16 channels, 8 cells, batch 64
    textbook             4.17 s ( 3.77 to  6.45)                         8.26 GB              8344+6003
    product              2.25 s ( 2.13 to  2.27)  1.85 times as quick    5.06 GB, 0.61 of it  4034+3175
    shared lower step    1.73 s ( 1.47 to  1.80)  2.42                   5.07 GB, 0.61        4034+3175
    partial channels     2.12 s ( 1.88 to  2.31)  1.97                   1.62 GB, 0.20        4483+3590
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.baseline import TextbookSupernet, copy_weights, textbook_step
from nas.bilevel.step import Bilevel, build
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.training.steps import pick_device


def take_step(bilevel: Bilevel, train: Batch, validate: Batch) -> dict[str, Tensor]:
    """Take the step of `search.py`."""
    bilevel.virtual_step(train)
    upper = bilevel.alpha_step(validate, train)
    return bilevel.weight_step(train) | upper


FORMS = {"product": [], "shared lower step": ["--share-lower-step"], "partial channels": ["--partial-channels=4"]}
SIZES = ((16, 8, 16), (16, 8, 64), (8, 5, 64))  # init channels, cells, batch


def compare(size: Sequence[int], num_steps: int, device: torch.device) -> dict[str, Any]:
    """The figures of one size; the forms take their steps in turn, on the same random images of 32 × 32."""
    init_channels, num_cells, batch_size = size
    flags = [f"--init-channels={init_channels}", f"--num-cells={num_cells}"]
    products = {form: build(parse(SearchConfig, [*flags, *more]), 3, 10, device) for form, more in FORMS.items()}
    product = products["product"]
    textbook = TextbookSupernet(3, init_channels, num_cells).to(device)
    copy_weights(product.supernet, textbook)
    textbook_alphas = [nn.Parameter(alpha.detach().clone()) for alpha in product.alphas.parameters()]
    optimizers = (
        torch.optim.SGD(textbook.parameters(), 0.025, 0.9, weight_decay=3e-4),
        torch.optim.Adam(textbook_alphas, 3e-4, (0.5, 0.999), weight_decay=1e-3),
    )
    train, validate = (
        (torch.randn(batch_size, 3, 32, 32, device=device), torch.randint(10, (batch_size,), device=device))
        for _ in range(2)
    )
    lower, upper = (Batch.whole(*pair) for pair in (train, validate))
    forms: dict[str, Callable[[], Any]] = {
        "textbook": lambda: textbook_step(textbook, textbook_alphas, *optimizers, train, validate),
    } | {form: functools.partial(take_step, bilevel, lower, upper) for form, bilevel in products.items()}

    # The first step warms up. From the same weights, it also shows how far apart the forms are.
    peaks = {form: peak_bytes(step, device) for form, step in forms.items()}
    distance = relative_distance(list(product.alphas.parameters()), textbook_alphas)
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    for _ in range(num_steps):
        for form, step in forms.items():
            step()  # not timed: it pays for the memory that the form before it gave back
            wait(device)
            began = time.perf_counter()
            step()
            wait(device)
            seconds[form].append(time.perf_counter() - began)

    operators = {"textbook": count_operators(textbook, tuple(a.softmax(-1) for a in textbook_alphas), train)} | {
        form: count_operators(bilevel.supernet, bilevel.alphas(), train) for form, bilevel in products.items()
    }
    median = {form: statistics.median(times) for form, times in seconds.items()}
    return {
        "init_channels": init_channels,
        "num_cells": num_cells,
        "batch_size": batch_size,
        "alphas_gradient_distance": distance,
        "forms": {
            form: {
                "median_s": median[form],
                "min_s": min(times),
                "max_s": max(times),
                "ratio": median["textbook"] / median[form],
                "images_per_s": 2 * batch_size / median[form],
                "peak_bytes": peaks[form],
                "peak_ratio": peaks[form] / peaks["textbook"],
                "forward_operators": operators[form][0],
                "backward_operators": operators[form][1],
            }
            for form, times in seconds.items()
        },
    }


def relative_distance(parameters: list[nn.Parameter], reference: list[nn.Parameter]) -> float:
    """Of the gradients, as a share of the reference's norm."""
    first, second = (
        torch.cat([p.grad.flatten() for p in part if p.grad is not None]) for part in (parameters, reference)
    )
    return ((first - second).norm() / second.norm()).item()


def peak_bytes(take_step: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of tensors that a step holds beyond those that were there before it, as the allocator counts them."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities, profile_memory=True) as profiler:
        take_step()
        wait(device)
    events: Any = profiler.profiler.kineto_results.events()  # pyrefly: ignore
    kind = torch.autograd.DeviceType.CUDA if device.type == "cuda" else torch.autograd.DeviceType.CPU
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]" and event.device_type() == kind:
            held += event.nbytes()
            peak = max(peak, held)
    return peak


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that reach the dispatcher, and the kernels that they are on a GPU.

    A view and an allocation launch no kernel, an operator on a list of tensors (foreach) counts as one, all others too.
    """

    def __init__(self):
        super().__init__()
        self.num_operators = self.num_kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operators += 1
        self.num_kernels += not (func.is_view or func.name().startswith(("aten::empty", "aten::new_empty", "profiler")))
        return func(*args, **(kwargs or {}))


def count_step(size: Sequence[int], *flags: str) -> OperatorCounter:
    """Count a step of the search on the device `meta`, told to choose what a GPU chooses: operators on lists."""
    init_channels, num_cells, batch_size = size
    meta = torch.device("meta")
    size_flags = [f"--init-channels={init_channels}", f"--num-cells={num_cells}"]
    bilevel = build(parse(SearchConfig, [*size_flags, *flags]), 3, 10, meta)
    train, validate = (
        Batch.whole(
            torch.empty(batch_size, 3, 32, 32, device=meta), torch.empty(batch_size, dtype=torch.int64, device=meta)
        )
        for _ in range(2)
    )
    supported = lambda: ["meta"]  # noqa: E731
    with (
        patch("torch.utils._foreach_utils._get_foreach_kernels_supported_devices", supported),
        patch("torch.optim.optimizer._get_foreach_kernels_supported_devices", supported),
        OperatorCounter() as counter,
    ):
        take_step(bilevel, train, validate)
    return counter


def count_operators(network: nn.Module, edge_weights: Any, batch: tuple[Tensor, Tensor]) -> tuple[int, int]:
    """Of a pass forward and of a pass backward to all weights."""
    images, target = batch
    with OperatorCounter() as forward:
        loss = F.cross_entropy(network(images, edge_weights), target)
    with OperatorCounter() as backward:
        torch.autograd.grad(loss, list(network.parameters()))
    return forward.num_operators, backward.num_operators


def wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['init_channels']} channels, {result['num_cells']} cells, batch {result['batch_size']}; "
        f"alphas' gradients {result['alphas_gradient_distance']:.1e} apart (relative, float32)",
        f"{'':18}{'s a step':>10}{'min':>8}{'max':>8}{'ratio':>8}{'images/s':>10}{'peak':>10}{'ratio':>8}"
        f"{'operators':>16}",
    ]
    for form, row in result["forms"].items():
        lines.append(
            f"{form:18}{row['median_s']:10.2f}{row['min_s']:8.2f}{row['max_s']:8.2f}{row['ratio']:8.2f}"
            f"{row['images_per_s']:10.1f}{row['peak_bytes'] / 1e9:7.2f} GB{row['peak_ratio']:8.2f}"
            f"{row['forward_operators']:8}+{row['backward_operators']}"
        )
    return "\n".join(lines)


def print_stand_in(size: Sequence[int]) -> None:
    print(f"\na step on a device that stands for a GPU, {size[0]} channels, {size[1]} cells:")
    for form, flags in FORMS.items():
        counter = count_step(size, *flags)
        print(f"{form:18}{counter.num_operators:8,} operators, {counter.num_kernels:6,} kernels", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One step of the search, textbook form against product.")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each form, after one to warm up")
    parser.add_argument("--stand-in", action="store_true", help="count on a device that stands for a GPU, time nothing")
    parser.add_argument("--size", type=int, nargs=3, action="append", metavar=("CHANNELS", "CELLS", "BATCH"))
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads", flush=True)
    for size in () if arguments.stand_in else arguments.size or SIZES:
        result = compare(size, arguments.steps, device)
        print(f"\n{table(result)}\n{json.dumps(result)}", flush=True)
    for size in arguments.size or SIZES[:1]:
        print_stand_in(size)
