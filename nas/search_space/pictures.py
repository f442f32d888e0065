"""Cells as Graphviz source, SVG and PNG, and edge weights as a heat map.

Pictures need Graphviz: the one inside pygraphviz's wheel, else a `dot` on the PATH. The source needs neither.
"""

import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import graphviz
from PIL import Image, ImageDraw, ImageFont

from nas.search_space.darts import DARTS
from nas.search_space.space import SearchSpace

HOW_TO_GET_PICTURES = (
    "Only the .gv files were written, no pictures: Graphviz is missing or failed. To install it: "
    "pip install 'pygraphviz>=2.0'"
)

# Fill of the label and colour of the arrow, by kind of primitive.
KINDS = {
    "sep": ("#d6e4f7", "#2f6db5"),
    "dil": ("#d3efe9", "#15806d"),
    "conv": ("#e4dcf5", "#6a4bb0"),
    "max": ("#fbe3cd", "#c4660f"),
    "avg": ("#fbf0c4", "#9c7a00"),
    "skip": ("#ececec", "#6b6b6b"),
    "nor": ("#d6e4f7", "#2f6db5"),
    "none": ("#fafafa", "#c4c4c4"),
}


def cell_source(edges: Sequence[tuple[str, int]], concat: Sequence[int], title: str, space: SearchSpace = DARTS) -> str:
    """Make the Graphviz source of one cell.

    Args:
        edges: (primitive, source state) of each edge, nodes in order.
        concat: the states whose concatenation is the cell's output c_k.
        title: written above the cell.
        space: the search space of the cell.
    """
    font = {"fontname": "Aileron, Helvetica, Arial, sans-serif"}
    graph = graphviz.Digraph(
        title.removesuffix(" cell"),
        graph_attr=font
        | {
            "rankdir": "LR",
            "bgcolor": "white",
            "label": title,
            "labelloc": "t",
            "fontsize": "20",
            "fontcolor": "#333333",
            "nodesep": "0.18",
            "ranksep": "0.35",
            "pad": "0.25",
            "dpi": "110",
            "outputorder": "edgesfirst",
        },
        node_attr=font | {"shape": "box", "style": "rounded,filled", "penwidth": "1.2", "fontsize": "16"},
        edge_attr=font | {"color": "#9a9a9a", "arrowsize": "0.7"},
    )
    for state in range(space.num_inputs):
        label = f'<c<SUB><FONT POINT-SIZE="12">k-{space.num_inputs - state}</FONT></SUB>>'
        graph.node(f"s{state}", label, fillcolor="#cfe8cf", color="#3b7d3b")
    above = graphviz.Digraph(graph_attr={"rank": "same"})
    for first, second in itertools.pairwise(range(space.num_inputs)):
        above.edge(f"s{first}", f"s{second}", style="invis")  # keeps the first input above the second
    graph.subgraph(above)
    ends = [node for node, incoming in space.by_node(edges) for _ in incoming]
    for node in dict.fromkeys(ends):
        label = str(node - space.num_inputs)
        graph.node(f"s{node}", label, fillcolor="#dfe3ea", color="#4a5568", shape="circle")
    graph.node("output", '<c<SUB><FONT POINT-SIZE="12">k</FONT></SUB>>', fillcolor="#f6dfa8", color="#a87b12")
    for index, ((primitive, source), node) in enumerate(zip(edges, ends, strict=True)):
        fill, line = KINDS.get(primitive.split("_")[0], KINDS["conv"])
        label = f"e{index}"
        # The label is a node of its own on the edge: dot then routes around it, and nothing overlaps.
        graph.node(
            label, primitive.replace("_", " "), fillcolor=fill, color=fill, fontcolor=line, fontsize="14", height="0.3"
        )
        graph.edge(f"s{source}", label, color=line, penwidth="1.6", arrowhead="none")
        graph.edge(label, f"s{node}", color=line, penwidth="1.6")
    for state in concat:
        graph.edge(f"s{state}", "output", style="dashed")
    return graph.source


def draw_cells(cells: dict[str, str], folder: Path) -> bool:
    """Write `<name>.gv` for each cell and, if Graphviz is installed, `<name>.svg` and `<name>.png`.

    Args:
        cells: Graphviz source of each cell by its name.
        folder: the folder to write to; it is made if it is missing.

    Returns:
        Whether the pictures were drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = True
    for name, source in cells.items():
        (folder / f"{name}.gv").write_text(source, encoding="utf-8")
        for suffix in ("svg", "png"):
            picture = _render(source, suffix)
            if picture is None:
                drawn = False
            else:
                (folder / f"{name}.{suffix}").write_bytes(picture)
    return drawn


def svg(source: str) -> str:
    """Return a cell as an SVG element for an HTML page; an empty text if Graphviz is missing or failed."""
    picture = (_render(source, "svg") or b"").decode()
    style = "max-width: 100%; margin: 4px 8px 4px 0; border-radius: 8px"
    return re.sub(
        r'.*?<svg width="(\d+)pt" height="\d+pt"',  # smaller than alone, in a column of text
        lambda size: f'<svg style="{style}" width="{0.65 * int(size[1]):.0f}"',
        picture,
        count=1,
        flags=re.DOTALL,
    )


_PYGRAPHVIZ = (
    "import sys, pygraphviz;"
    "sys.stdout.buffer.write(pygraphviz.AGraph(string=sys.stdin.read()).draw(format=sys.argv[1], prog='dot'))"
)


def _render(source: str, suffix: str) -> bytes | None:
    if importlib.util.find_spec("pygraphviz") is not None:
        command = [sys.executable, "-c", _PYGRAPHVIZ, suffix]
    elif dot := shutil.which("dot"):
        command = [dot, f"-T{suffix}"]
    else:
        return None
    # A process of its own: Graphviz and fontconfig warn on standard error about other people's font settings.
    with tempfile.TemporaryDirectory(prefix="nas-fonts-") as folder:
        environment = os.environ | {"FONTCONFIG_FILE": str(_font_config(Path(folder)))}
        done = subprocess.run(
            command, input=source.encode(), capture_output=True, env=environment, start_new_session=True
        )
    return done.stdout if done.returncode == 0 else None


def _font_config(folder: Path) -> Path:
    """Write a fontconfig file that knows one font, Pillow's own, into a folder, and return its path.

    A bare machine has no fonts (a PNG would show boxes), and other fonts would lay the cell out differently.
    """
    font = ImageFont.load_default(12)
    assert isinstance(font, ImageFont.FreeTypeFont)
    (folder / "aileron.ttf").write_bytes(font.font_bytes)
    config = folder / "fonts.conf"
    config.write_text(
        '<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig>'
        f"<dir>{folder}</dir><cachedir>{folder / 'cache'}</cachedir></fontconfig>",
        encoding="utf-8",
    )
    return config


def heat_map(weights: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str]) -> Image.Image:
    """Draw weights in [0, 1] as an RGB picture: one labelled rectangle per weight, white for 0 and dark blue for 1."""
    font = ImageFont.load_default(12)
    left, top, width, height = 70, 92, 56, 22
    picture = Image.new("RGB", (left + width * len(columns), top + height * len(rows)), "white")
    pen = ImageDraw.Draw(picture)
    for column, name in enumerate(columns):
        label = Image.new("RGBA", (top, height))
        ImageDraw.Draw(label).text((2, 3), name.replace("_", " "), fill="#333333", font=font)
        picture.paste(label := label.rotate(90, expand=True), (left + column * width + 16, 0), label)
    for row, (name, values) in enumerate(zip(rows, weights, strict=True)):
        pen.text((4, top + row * height + 3), name, fill="#333333", font=font)
        for column, value in enumerate(values):
            x, y = left + column * width, top + row * height
            colour = tuple(round(255 + value * (dark - 255)) for dark in (8, 48, 107))
            pen.rectangle((x, y, x + width - 2, y + height - 2), fill=colour)
            pen.text((x + 12, y + 3), f"{value:.2f}", fill="white" if value > 0.5 else "#333333", font=font)
    return picture
