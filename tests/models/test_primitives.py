"""Some primitives of a space, and primitives of one's own: docs/primitives.md."""

import re
import runpy
from pathlib import Path

import pytest

import nas
from nas.models.primitives import PRIMITIVES
from nas.models.size import network_size
from nas.search_space.darts import DARTS
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.search_space.space import OWN_PRIMITIVES
from tests.in_process import call

ROOT = Path(nas.__file__).parents[1]
SMALL = ["--dataset=digits", "--train-limit=24", "--init-channels=4", "--num-cells=3", "--num-nodes=1", "--epochs=1"]


@pytest.fixture
def of_docs(tmp_path):
    """The primitive that docs/primitives.md registers."""
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs/primitives.md").read_text(encoding="utf-8"), re.S)
    assert len([line for line in code.splitlines() if line]) <= 15
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"))
    yield "grouped_conv_3x3"
    del PRIMITIVES["grouped_conv_3x3"]
    OWN_PRIMITIVES.remove("grouped_conv_3x3")


def test_a_primitive_of_ones_own_is_searched_drawn_measured_and_trained(of_docs, tmp_path):
    assert call("search", tmp_path, *SMALL, "--name=own", "--primitives", of_docs, "skip_connect") == 0
    own = tmp_path / "own.json"
    cells = {"normal": ((of_docs, 0), (of_docs, 1)), "reduce": ((of_docs, 0), ("skip_connect", 1))}
    genotype = nas.Genotype(**cells, normal_concat=(2,), reduce_concat=(2,))
    genotype.save(own)
    assert nas.Genotype.load(own) == nas.Genotype.from_text(genotype.to_text()) == genotype
    genotype.draw(tmp_path / "cells")
    assert "grouped conv 3x3" in (tmp_path / "cells/normal.gv").read_text()
    network = nas.FinalNetwork(genotype, init_channels=4, num_cells=3, auxiliary=False, in_channels=1)
    size = network_size(genotype, 8, 1, init_channels=4, num_cells=3)
    assert size.weights == sum(weight.numel() for weight in network.parameters())
    assert call("train_final", tmp_path, f"--genotype={own}", *[f for f in SMALL if "nodes" not in f]) == 0
    assert "grouped_conv_3x3" in (tmp_path / "runs/own/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["sep_conv_3x3", "none", "two words", "", "9", "x" * 41])
def test_names_that_cannot_be_registered(name):
    with pytest.raises(ValueError, match="must be a new word"):
        nas.register_primitive(name, nas.Primitive())


@pytest.mark.parametrize("space", [DARTS, NAS_BENCH_201])
def test_a_space_with_some_primitives_derives_no_other(space):
    some = space.with_primitives(["skip_connect", space.primitives[2]])
    assert some.primitives == tuple(name for name in space.primitives if name in some.primitives)
    cells = some.random_cells(3, space.num_nodes)
    assert {name for edges in cells.values() for name, _ in edges} <= {*some.primitives}
    for names in (["skip_connect", "skip_connect"], ["none"], [], ["max_pool_9x9"]):
        with pytest.raises(ValueError, match=r"no primitive|must be named once"):
            space.with_primitives(names)
