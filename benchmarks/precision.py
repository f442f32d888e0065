"""The hypergradient near initialisation in float32 against float64: python -m benchmarks.precision

NVIDIA H200, torch 2.11.0, 16 channels, 8 cells, batch 64, half a minute. Relative error and cosine:

                first term        second term
    TF32        0.052  0.9987     0.398  0.936
    no TF32     0.001  1.0000     0.092  0.996
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.bilevel.step import build
from nas.config.cli import parse
from nas.config.flags import SearchConfig
from nas.data.loader import Batch
from nas.training.steps import pick_device


def hypergradient(dtype: torch.dtype, size: list[int], method: str, device: torch.device, tf32: bool) -> Tensor:
    """The hypergradient on random images of 32 × 32, from the same weights in any precision, as float64."""
    channels, cells, batch_size = size
    flags = [f"--init-channels={channels}", f"--num-cells={cells}", f"--hypergradient={method}"]
    torch.set_default_dtype(torch.float64)
    same = build(parse(SearchConfig, flags), 3, 10, device).state()
    torch.set_default_dtype(dtype)
    bilevel = build(parse(SearchConfig, flags), 3, 10, device)
    torch.set_default_dtype(torch.float32)
    torch.backends.cudnn.allow_tf32 = tf32
    with torch.no_grad():
        for name, tensor in bilevel.state().items():
            tensor.copy_(same[name])
    random = torch.Generator().manual_seed(7)
    train, validate = (
        Batch.whole(
            torch.randn(batch_size, 3, 32, 32, generator=random, dtype=torch.float64).to(device, dtype),
            torch.randint(10, (batch_size,), generator=random).to(device),
        )
        for _ in range(2)
    )
    bilevel.virtual_step(train)
    bilevel.alpha_step(validate, train)
    return torch.cat([alpha.grad.flatten().double() for alpha in bilevel.alphas.parameters() if alpha.grad is not None])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The hypergradient in float32 against float64.")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--size", type=int, nargs=3, default=(16, 8, 64), metavar=("CHANNELS", "CELLS", "BATCH"))
    arguments = parser.parse_args()
    device = pick_device(arguments.device)
    print(f"torch {torch.__version__}, {device}; relative error and cosine")

    def terms(dtype: torch.dtype, tf32: bool) -> tuple[Tensor, Tensor]:
        first = hypergradient(dtype, arguments.size, "first-order", device, tf32)
        return first, hypergradient(dtype, arguments.size, "onestage", device, tf32) - first

    exact = terms(torch.float64, False)
    for tf32 in (True, False) if device.type == "cuda" else (False,):
        for name, found, wanted in zip(("first", "second"), terms(torch.float32, tf32), exact, strict=True):
            error = ((found - wanted).norm() / wanted.norm()).item()
            cosine = F.cosine_similarity(found, wanted, 0).item()
            print(f"{'TF32' if tf32 else 'no TF32':10}{name:8} term {error:.4f} {cosine:.5f}", flush=True)
