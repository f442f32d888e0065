"""The search space of NAS-Bench-201 (Dong and Yang, ICLR 2020), and the accuracy of each of its 15,625 cells.

All cells were trained by the benchmark's authors: 200 epochs on each of three data sets, with up to three seeds. The
table holds the means (MIT licence). Its rows are the cells, in the order of `row_of`; its columns are those of COLUMNS.
"""

import bisect
import csv
import functools
import gzip
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas.search_space.space import MAX_NODES, NONE, RESIDUAL_BLOCK, Edges, SearchSpace, Truth, truth_names

TABLE = Path(__file__).with_suffix(".npz")
COLUMNS = ("c10_test", "c100_test", "in16_test", "c10_val", "c100_val", "in16_val")
DATASETS = ("CIFAR-10", "CIFAR-100", "ImageNet16-120")
UNITS = 600  # per percent: means of two or three seeds on CIFAR-10's test images are whole numbers of it

# |nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|
# No longer than any mistake needs, so that a megabyte of it is read quickly.
_NODE = r"(?:\|\w{1,40}~[0-9]{1,3}){1,40}\|"
_TEXT = re.compile(rf"{_NODE}(?:\s{{0,9}}\+\s{{0,9}}{_NODE}){{0,40}}")
_EDGE = re.compile(r"(\w{1,40})~([0-9]{1,3})")


@dataclass(frozen=True)
class _NasBench201(SearchSpace):
    """Three stages of cells, a residual block between two of them; a text form; and a table of all cells."""

    def layers(self, num_cells: int) -> list[str]:
        stage = num_cells * [self.cells[0]]
        return [*stage, RESIDUAL_BLOCK, *stage, RESIDUAL_BLOCK, *stage]

    def write_text(self, cells: Mapping[str, tuple[Edges, Sequence[int]]]) -> str:
        edges, _ = cells[self.cells[0]]
        nodes = ("".join(f"|{name}~{source}" for name, source in incoming) for _, incoming in self.by_node(edges))
        return "+".join(f"{node}|" for node in nodes)

    def find_texts(self, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for found in _TEXT.finditer(text):
            edges: list[tuple[str, int]] = []
            for node in found[0].split("+"):
                incoming = [(name, int(source)) for name, source in _EDGE.findall(node)]
                edges += sorted(incoming, key=lambda edge: edge[1])
            yield found.start(), {self.cells[0]: edges}

    @property
    def truth_names(self) -> list[str]:
        return truth_names(DATASETS)

    def truth(self, cells: Mapping[str, Edges]) -> Truth:
        *accuracies, best, rank = _looked_up(row_of(cells[self.cells[0]]))
        test, validation = (dict(zip(DATASETS, part, strict=True)) for part in (accuracies[:3], accuracies[3:]))
        return Truth(test, validation, int(rank), len(_rising()), best - accuracies[0])

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        rising = _rising()
        return [rising[round(share * (len(rising) - 1))] / (100 * UNITS) for share in shares]


NAS_BENCH_201 = _NasBench201(
    primitives=(NONE, "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"),
    num_inputs=1,
    edges_kept=MAX_NODES,
    cells=("cell",),
    derives_none=True,
    name="nas-bench-201",
    titles=("cell",),
    halving=(RESIDUAL_BLOCK,),
    node_counts=range(3, 4),
    num_nodes=3,
    returns_all_nodes=False,
    preprocesses=False,
    stem_factor=1,
    norm_before_pool=True,
    auxiliary_head=False,
    supernet_forms={"avg_pool_3x3": "avg_pool_3x3 without norm"},
    per=" per stage",
    supernet=(16, 5),
    final_network=(16, 5),
)


def row_of(edges: Edges) -> int:
    """Return the row of a cell: the numbers of its primitives are its digits, the first edge's the highest."""
    names = NAS_BENCH_201.primitives
    return functools.reduce(lambda row, edge: len(names) * row + names.index(edge[0]), edges, 0)


@functools.cache
def _table() -> Any:
    import numpy as np  # here, as --help needs neither numpy nor the table

    with np.load(TABLE, allow_pickle=False) as file:
        return file["accuracies"]  # (cells, columns), UNITS per percent


@functools.cache
def _rising() -> list[int]:
    """Return the test accuracies on CIFAR-10 of all cells, rising."""
    return sorted(_table()[:, 0].tolist())


def _looked_up(row: int) -> list[float]:
    """Return the accuracies of a cell, the best cell's, and the rank of the cell: 1 + the number of better cells."""
    rising, found = _rising(), _table()[row].tolist()
    rank = 1 + len(rising) - bisect.bisect_right(rising, found[0])
    return [*(value / (100 * UNITS) for value in (*found, rising[-1])), rank]


def pack(source: Path, output: Path = TABLE) -> None:
    """Write the table from a CSV file that has a column `arch`, the text of a cell, and COLUMNS, in percent."""
    import numpy as np

    accuracies = np.zeros((len(NAS_BENCH_201.primitives) ** 6, len(COLUMNS)), np.uint16)
    with gzip.open(source, "rt", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            ((_, cells),) = NAS_BENCH_201.find_texts(line["arch"])
            accuracies[row_of(cells["cell"])] = [round(UNITS * float(line[name])) for name in COLUMNS]
    np.savez_compressed(output, accuracies=accuracies)
