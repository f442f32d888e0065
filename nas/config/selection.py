"""The flags of several searches: which cells are compared, how, and what becomes of the best one."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nas.config.values import STRICT, BelowOne, Cells, Channels, Epochs, Flag, RayAddress, optional, time_span


@dataclass(frozen=True)
class Selection:
    """Several searches, and the choice of the best cell."""

    __pydantic_config__ = STRICT

    time_budget: Annotated[Annotated[str, AfterValidator(time_span)] | None, optional("TIME", "none")] = None
    """Plan a run that takes this long, such as 90m, 8h or 2d: from the measured speed of a step, what the flags leave
    open: sizes, epochs, and numbers of searches and other cells. --dry-run prints the plan and stops."""
    searches: Annotated[int, Field(ge=1, le=200)] = 1
    """Number of searches, with the seeds from --seed on (DARTS, section 3.2: four). Then each distinct cell is trained
    briefly and measured on held-out images, and the best one is exported."""
    random_baseline: Annotated[int, Field(ge=0, le=200)] = 0
    """Also train this many random cells in the same way: the searches have to beat them."""
    candidates: Annotated[tuple[str, ...] | None, optional("GENOTYPE [GENOTYPE ...]", "none")] = None
    """Also train these cells, such as DARTS_V2: names, run folders, files or texts, of the same space."""
    derive_top: Annotated[int, Field(ge=1, le=20)] = 1
    """Train this many cells of each search: the most likely ones by its edge weights."""
    export_searched: Flag = False
    """Export the best cell that a search found, even if a random one or one of --candidates is better."""
    selection_fraction: Annotated[BelowOne | None, optional("FLOAT", "0.2 with several cells, otherwise 0")] = None
    """Share of the training images that no search sees, and on which the cells are compared. 0: they are compared on
    the images from which the alphas of the first search learn, as published."""
    selection_epochs: Epochs = 100
    """Epochs of each brief training (DARTS, section 3.2)."""
    selection_seeds: Annotated[int, Field(ge=1, le=20)] = 1
    """Train each cell with this many seeds, the same for all cells, and compare the means."""
    selection_halving: Flag = False
    """Faster: train all cells for a quarter of --selection-epochs, the better half of them for a half, and the better
    half of these to the end."""
    selection_channels: Channels = 36
    """Channels of its first cell: as in the final network (DARTS, appendix A.2.1)."""
    selection_cells: Cells = 20
    """Number of its cells: as in the final network (DARTS, appendix A.2.1)."""
    train_final: Flag = False
    """Then train the network of the best cell in full, on all training images, and measure it on the test set.
    A page and a model card say what came of it all."""
    final_epochs: Epochs = 600
    """Epochs of the final training (DARTS, appendix A.2.1)."""
    final_channels: Channels = 36
    """Channels of the first cell of the final network (DARTS, appendix A.2.1)."""
    final_cells: Cells = 20
    """Number of cells of the final network (DARTS, appendix A.2.1)."""
    export: Annotated[Literal["onnx", "torch-export", "safetensors"] | None, optional("FORMAT", "none")] = None
    """With --train-final: also write the network for other programs: onnx, torch-export or safetensors."""
    ray: RayAddress = None
    """Run searches and trainings in parallel as Ray tasks: without a value on this machine, otherwise on the cluster at
    ADDRESS: HOST:PORT, or auto for the cluster of this machine. Each node needs this folder at the same path."""
    devices_per_search: Annotated[float, Field(ge=0.0001, le=1024, allow_inf_nan=False)] = 1.0
    """With --ray: GPUs per search or training; CPU cores if there are no GPUs. 0.5: two share one."""
