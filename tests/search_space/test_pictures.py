import importlib.util
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
FIVE_NODES = tuple(zip((*DARTS.known_primitives, "skip_connect"), (0, 1, 0, 2, 1, 3, 4, 0, 5, 1), strict=True))
FOUR_NODES = FIVE_NODES[:8]

needs_graphviz = pytest.mark.skipif(
    importlib.util.find_spec("pygraphviz") is None and shutil.which("dot") is None,
    reason="neither pygraphviz nor dot is installed",
)


@pytest.fixture
def no_pygraphviz(monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)


def cell(edges):
    concat = range(2, 2 + len(edges) // 2)
    return Genotype(normal=edges, normal_concat=concat, reduce=edges, reduce_concat=concat[1:])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_without_graphviz_only_the_sources_are_written(tmp_path, monkeypatch, no_pygraphviz):
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    folder = tmp_path / "made" / "here"
    assert cell(FOUR_NODES).draw(folder) is False
    written = files(folder)
    assert set(written) == {"normal.gv", "reduce.gv"}
    assert b"normal cell" in written["normal.gv"]
    assert b"reduction cell" in written["reduce.gv"]


def test_without_pygraphviz_dot_draws(tmp_path, monkeypatch, no_pygraphviz):
    stand_in = tmp_path / "bin" / "dot"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\nprintf '%s ' \"$1\"\ncat\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", str(stand_in.parent), prepend=os.pathsep)
    assert cell(FOUR_NODES).draw(tmp_path / "cells") is True
    written = files(tmp_path / "cells")
    assert written["normal.svg"] == b"-Tsvg " + written["normal.gv"]
    assert written["reduce.png"] == b"-Tpng " + written["reduce.gv"]


@needs_graphviz
@pytest.mark.parametrize("edges", [FOUR_NODES, FIVE_NODES], ids=["4 nodes", "5 nodes"])
def test_svg_shows_the_cell(edges, tmp_path):
    """Labels and arrows are read back from the picture."""
    genotype = cell(edges)
    assert genotype.draw(tmp_path) is True
    for name, concat in (("normal", genotype.normal_concat), ("reduce", genotype.reduce_concat)):
        groups = list(ET.parse(tmp_path / f"{name}.svg").iter(f"{SVG}g"))
        titles = {kind: [g for g in groups if g.get("class") == kind] for kind in ("node", "edge")}
        labels = {
            g.findtext(f"{SVG}title"): "".join(text.text or "" for text in g.iter(f"{SVG}text")) for g in titles["node"]
        }
        assert labels == {
            "s0": "ck-2",
            "s1": "ck-1",
            "output": "ck",
            **{f"s{node + 2}": str(node) for node in range(len(edges) // 2)},
            **{f"e{index}": primitive.replace("_", " ") for index, (primitive, _) in enumerate(edges)},
        }
        arrows = sorted(g.findtext(f"{SVG}title", "").replace("\xa0", "") for g in titles["edge"])
        assert arrows == sorted(
            [f"s{source}->e{index}" for index, (_, source) in enumerate(edges)]
            + [f"e{index}->s{index // 2 + 2}" for index in range(len(edges))]
            + [f"s{node}->output" for node in concat]
        )


@needs_graphviz
def test_png_is_a_picture(tmp_path):
    cell(FIVE_NODES).draw(tmp_path)
    with Image.open(tmp_path / "normal.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
    fills = {tuple(bytes.fromhex(fill[1:])) for fill, _ in pictures.KINDS.values()}
    assert fills <= {colour for _, colour in colours}


@needs_graphviz
def test_letters_have_their_own_glyphs():
    """Without a font every letter is the same box."""
    one, other = (pictures._render(pictures.cell_source(FOUR_NODES, (2,), title), "png") for title in ("bbb", "ddd"))
    assert one != other


@needs_graphviz
def test_pictures_are_the_same_bytes_in_another_process_on_a_machine_without_fonts(tmp_path):
    config = tmp_path / "fonts.conf"
    config.write_text('<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig></fontconfig>')
    genotype = cell(FIVE_NODES)
    genotype.draw(tmp_path / "here")
    program = "import sys; from nas import Genotype; Genotype.from_text(sys.argv[1]).draw(sys.argv[2])"
    subprocess.run(
        [sys.executable, "-c", program, genotype.to_text(), tmp_path / "there"],
        check=True,
        cwd=ROOT,
        env=os.environ | {"FONTCONFIG_FILE": str(config), "PYTHONPATH": str(ROOT)},
    )
    pictures = {f"{name}.{suffix}" for name in ("normal", "reduce") for suffix in ("gv", "svg", "png")}
    assert set(files(tmp_path / "here")) == pictures
    assert files(tmp_path / "here") == files(tmp_path / "there")


def one_hot_map(hot=None):
    weights = [[float((row, column) == hot) for column in range(3)] for row in range(2)]
    return pictures.heat_map(weights, ["0 → 2", "1 → 2"], ["none", "max_pool_3x3", "skip_connect"])


def test_heat_map_is_dark_where_the_weight_is_one():
    blank = one_hot_map()
    boxes = {}
    for hot in [(row, column) for row in range(2) for column in range(3)]:
        picture = one_hot_map(hot)
        boxes[hot] = box = ImageChops.difference(picture, blank).getbbox()
        assert picture.mode == "RGB"
        assert max(picture.getpixel(box[:2])) < 128
        assert blank.getpixel(box[:2]) == (255, 255, 255)
    for row, column in boxes:
        left, top, right, bottom = boxes[row, column]
        assert column == 0 or boxes[row, column - 1][2] <= left, "columns from left to right"
        assert row == 0 or boxes[row - 1, column][3] <= top, "rows from top to bottom"
        assert (max(right, blank.width), max(bottom, blank.height)) == blank.size
