"""A trained network for use without this package: python -m nas.export RUN_DIR --format onnx (see --help).

In every format, the network takes `images`, float32, (batch, channels, size, size): pixels in [0, 1] minus the mean of
each channel, divided by its standard deviation. It returns `logits`, (batch, classes). The file holds what is needed
for this, each as JSON: `classes`, `mean`, `std`, `image_size`, `genotype`; `resize`, how an image that is not square
was made square (crop, squeeze or pad); and `bits`, which says that grey images of 16 bits per pixel became
`value >> bits - 8`, 255 at most.
"""

import copy
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from nas import files
from nas.config.cli import run_tyro
from nas.entry import exit_code
from nas.errors import InputError, Stopped

if TYPE_CHECKING:  # torch is imported where a network is loaded, so that --help is quick
    from torch import Tensor

    from nas.models.final_network import FinalNetwork, Logits

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}
LARGEST_DIFFERENCE = {"onnx": 1e-4, "torch-export": 0.0, "safetensors": 0.0}  # of the file's logits from torch's
BATCH_SIZES = (1, 5)  # for the check of the logits


@dataclass(frozen=True)
class Export:
    """Write a trained network to a file that other programs read.

    The command checks that the file computes the same logits.

    For example:
      python -m nas.export runs/mine-final --format onnx
    """

    run_dir: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_DIR")]
    """Run folder of train_final.py."""
    format: Annotated[Literal["onnx", "torch-export", "safetensors"], tyro.conf.arg(metavar="FORMAT")] = "onnx"
    """onnx: for any ONNX runtime. torch-export: for `torch.export.load`. safetensors: only the weights."""
    output: Annotated[str | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """File to write, which must not exist. (default: network.onnx, .pt2 or .safetensors in RUN_DIR)"""


def metadata(network: "FinalNetwork") -> dict[str, str]:
    """Return what is needed to classify an image, and the cells, each as JSON."""
    trained_on = network.trained_on
    assert trained_on is not None
    content = {
        "classes": trained_on.classes,
        "mean": trained_on.mean,
        "std": trained_on.std,
        "image_size": trained_on.image_size,
        "resize": trained_on.resize,
        "bits": trained_on.bits,
        "genotype": network.genotype.to_text(),
    }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}


def require_packages(kind: str, flag: str) -> None:
    """Raise InputError, which names the flag, if a package is missing that writes this format."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if kind == "onnx" and missing:
        raise InputError(f"{flag} onnx: needs {', '.join(missing)}; pip install {' '.join(missing)}")


def export(run_dir: str, kind: str, output: str | None = None) -> tuple[Path, float]:
    """Write the network of a run to a file, which appears only after its logits were checked.

    Args:
        run_dir: a run of train_final.py.
        kind: onnx, torch-export or safetensors.
        output: the file; by default `network` in the run folder, with the suffix of the format.

    Returns:
        The file, and the largest difference of its logits from those of the network in torch, on random images.

    Raises:
        InputError: there is no such run, a package is missing, or the file exists or cannot be written.
        Stopped: the file does not compute the same logits.
    """
    import torch

    from nas.models.final_network import FinalNetwork, Logits

    path = Path(output) if output is not None else Path(run_dir, f"network{SUFFIXES[kind]}")
    network = FinalNetwork.from_run(run_dir)
    require_packages(kind, "--format")
    if path.exists():
        raise InputError(f"--output {path}: exists already and was not changed.")
    if not path.parent.is_dir():
        raise InputError(f"--output {path}: there is no folder {path.parent}.")
    texts, trained_on = metadata(network), network.trained_on
    assert trained_on is not None
    logits = Logits(network)
    shape = (trained_on.in_channels, trained_on.image_size, trained_on.image_size)
    write = {"onnx": _write_onnx, "torch-export": _write_torch_export, "safetensors": _write_safetensors}[kind]
    difference = 0.0

    def write_and_check(aside: Path) -> None:
        nonlocal difference
        # Two images: torch would take a batch size of one for a constant.
        computed = write(logits, torch.zeros(2, *shape), texts, aside)
        generator = torch.Generator().manual_seed(0)
        for batch_size in BATCH_SIZES:
            images = torch.randn(batch_size, *shape, generator=generator)
            found = (computed(images) - logits(images)).abs().max().item()
            if not found <= LARGEST_DIFFERENCE[kind]:  # also if it is not a number
                raise Stopped(f"{path} was not written: its logits would differ by {found:.1e} from those of the run.")
            difference = max(difference, found)

    try:
        files.remove_asides(path.parent, path.name)
        with torch.no_grad():
            files.replace(path, write_and_check)
    except OSError as error:
        raise InputError(f"--output {path}: cannot be written ({error.strerror}).") from None
    return path, difference


def _write_onnx(
    logits: "Logits", images: "Tensor", texts: dict[str, str], path: Path
) -> Callable[["Tensor"], "Tensor"]:
    import onnx
    import onnxruntime
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = torch.onnx.export(
            logits,
            (images,),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, texts)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


def _write_torch_export(
    logits: "Logits", images: "Tensor", texts: dict[str, str], path: Path
) -> Callable[["Tensor"], "Tensor"]:
    import torch

    program = torch.export.export(logits, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=texts)
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_safetensors(
    logits: "Logits", images: "Tensor", texts: dict[str, str], path: Path
) -> Callable[["Tensor"], "Tensor"]:
    import safetensors.torch

    path.write_bytes(safetensors.torch.save(logits.network.state_dict(), texts))
    again = copy.deepcopy(logits)
    for tensor in again.state_dict().values():
        tensor.zero_()
    again.network.load_state_dict(safetensors.torch.load(path.read_bytes()))
    return again


def main(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit code."""

    def run() -> int:
        options = run_tyro(Export, arguments, prog="python -m nas.export")
        path, difference = export(options.run_dir, options.format, options.output)
        print(
            f"{path}: {path.stat().st_size:,} bytes; its logits differ by at most {difference:.1e} from those of the "
            f"run (random images, batches of {' and '.join(map(str, BATCH_SIZES))})"
        )
        return 0

    return exit_code(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
