import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from nas.search_space import pictures
from nas.search_space.darts import DARTS
from nas.search_space.genotype import Genotype

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
EDGES = tuple(zip((*DARTS.known_primitives, "skip_connect"), (0, 1, 0, 2, 1, 3, 4, 0, 5, 1), strict=True))
CELLS = Genotype(normal=EDGES, normal_concat=range(2, 7), reduce=EDGES, reduce_concat=range(3, 7))

needs_graphviz = pytest.mark.skipif(
    importlib.util.find_spec("pygraphviz") is None and shutil.which("dot") is None,
    reason="neither pygraphviz nor dot is installed",
)


@pytest.fixture(scope="module", autouse=True)
def each_picture_is_drawn(nothing_twice):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "_render", pictures._render.__wrapped__)
        yield


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "made" / "here"
    assert CELLS.draw(folder) is True
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_pygraphviz_dot_draws_and_without_both_only_the_sources_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    stand_in = tmp_path / "bin" / "dot"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\nprintf '%s ' \"$1\"\ncat\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
    assert CELLS.draw(tmp_path / "cells") is True
    written = files(tmp_path / "cells")
    assert written["normal.svg"] == b"-Tsvg " + written["normal.gv"]
    assert written["reduce.png"] == b"-Tpng " + written["reduce.gv"]
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    assert CELLS.draw(tmp_path / "sources") is False
    written = files(tmp_path / "sources")
    assert set(written) == {"normal.gv", "reduce.gv"}
    assert b"normal cell" in written["normal.gv"]
    assert b"reduction cell" in written["reduce.gv"]


@needs_graphviz
@pytest.mark.parametrize(("name", "concat"), [("normal", range(2, 7)), ("reduce", range(3, 7))])
def test_svg_shows_the_cell_and_png_is_a_picture(name, concat, drawn):
    """Labels and arrows are read back from the picture."""
    groups = {kind: [] for kind in ("graph", "node", "edge")}
    for group in ET.parse(drawn / f"{name}.svg").iter(f"{SVG}g"):
        label = "".join(text.text or "" for text in group.findall(f".//{SVG}text"))
        groups[group.get("class")].append((group.findtext(f"{SVG}title").replace("\xa0", ""), label))
    labels = {"s0": "ck-2", "s1": "ck-1", "output": "ck"} | {f"s{node + 2}": str(node) for node in range(5)}
    labels |= {f"e{index}": primitive.replace("_", " ") for index, (primitive, _) in enumerate(EDGES)}
    assert dict(groups["node"]) == labels
    assert sorted(arrow for arrow, _ in groups["edge"]) == sorted(
        [f"s{source}->e{index}" for index, (_, source) in enumerate(EDGES)]
        + [f"e{index}->s{index // 2 + 2}" for index in range(10)]
        + [f"s{node}->output" for node in concat]
    )
    with Image.open(drawn / f"{name}.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24)}
    fills = {pictures.KINDS[primitive.split("_")[0]][0] for primitive, _ in EDGES}
    assert {tuple(bytes.fromhex(fill[1:])) for fill in fills} <= colours


@needs_graphviz
def test_letters_have_their_own_glyphs():
    """Without a font every letter is the same box."""
    one, other = (pictures._render(pictures.cell_source((), (), title), "png") for title in ("bbb", "ddd"))
    assert one != other


@needs_graphviz
def test_pictures_are_the_same_bytes_in_another_process_on_a_machine_without_fonts(drawn, tmp_path):
    config = tmp_path / "fonts.conf"
    config.write_text('<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig></fontconfig>')
    program = "import sys; from nas import Genotype; Genotype.from_text(sys.argv[1]).draw(sys.argv[2])"
    command = [sys.executable, "-c", program, CELLS.to_text(), tmp_path / "there"]
    environment = os.environ | {"FONTCONFIG_FILE": str(config), "PYTHONPATH": str(ROOT)}
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    assert set(files(drawn)) == {f"{name}.{suffix}" for name in ("normal", "reduce") for suffix in ("gv", "svg", "png")}
    assert files(drawn) == files(tmp_path / "there")


def test_heat_map_is_dark_where_the_weight_is_one():
    def one_hot_map(hot):
        weights = [[float((row, column) == hot) for column in range(3)] for row in range(2)]
        return pictures.heat_map(weights, ["0 → 2", "1 → 2"], ["none", "max_pool_3x3", "skip_connect"])

    blank, right, bottom = one_hot_map(None), {-1: 0}, {-1: 0}
    for row, column in itertools.product(range(2), range(3)):
        picture = one_hot_map((row, column))
        box = ImageChops.difference(picture, blank).getbbox()
        assert max(picture.getpixel(box[:2])) < 128
        assert blank.getpixel(box[:2]) == (255, 255, 255)
        assert right[column - 1] <= box[0] < blank.width, "columns from left to right"
        assert bottom[row - 1] <= box[1] < blank.height, "rows from top to bottom"
        right[column], bottom[row] = box[2:]
