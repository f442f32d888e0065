"""python -m nas.genotypes: each of its commands, what it says of wrong input, and its exit codes."""

import io
import json
import resource
import sys
from pathlib import Path

import pytest

from nas.genotypes import main
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile, Provenance
from tests.bad_calls import content, fault

ROOT = Path(__file__).parent.parent
V1, V2 = Genotype.load("DARTS_V1"), Genotype.load("DARTS_V2")
pytestmark = pytest.mark.usefixtures("empty_folder")


def type_in(monkeypatch, data):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_list_has_a_row_for_each_published_cell(capsys):
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert list(rows) == sorted(path.stem for path in (ROOT / "genotypes").glob("*.json"))
    assert len({len(line) for line in lines}) == 1, "aligned"
    assert len(lines[0]) < 65 + max(map(len, rows))
    assert rows["NASNet"] == ["5", "3.83", "M", "603", "M", "-", "-", "-"]
    assert rows["DARTS_V2"] == ["4", "3.35", "M", "528", "M", "2.76", "±", "0.09", "%", "3.3", "M", "-"]


def test_list_has_own_cells_and_goes_on_where_a_file_cannot_be_read(capsys):
    small = Genotype(**V2.model_dump() | {"reduce": V2.reduce[:2], "reduce_concat": (2,)})
    provenance = Provenance(supernet_accuracy=0.6126, reported_cifar10_test_error_percent="\x1b[2J")
    small.save("genotypes/DARTS_V2.json", provenance)
    V1.save("genotypes/zz.json")
    Path("genotypes", "broken.json").write_text("{")
    Path("genotypes", "e\x1b[2Jvi\nl.json").write_text('{"format_version": 1}')
    Path("genotypes", "folder.json").mkdir()
    assert main(["list"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.isprintable() for line in lines)
    starts = {line.split()[0]: line for line in lines}
    assert starts["DARTS_V2"].split()[1] == "4/1", "the file here hides the shipped one"
    assert starts["DARTS_V2"].endswith(" 61.3 %")
    assert r"\x1b[2J %" in starts["DARTS_V2"]
    assert " not JSON (" in starts["broken"]
    assert starts[r"e\x1b[2Jvi\nl"].endswith("  normal: missing.")
    assert starts["folder"].endswith("  not a regular file.")
    assert starts["zz"].endswith("-")
    assert "PDARTS" in starts


def test_show_draws_both_cells_and_gives_the_terminal_no_orders(capsys):
    assert main(["show", "DARTS_V2"]) == 0
    out = capsys.readouterr().out
    drawing = """
reduction cell
  c_{k-2} --max_pool_3x3--> node 0 <--max_pool_3x3-- c_{k-1}
   node 0 --skip_connect--> node 1 <--max_pool_3x3-- c_{k-1}
  c_{k-2} --max_pool_3x3--> node 2 <--skip_connect-- node 0
   node 0 --skip_connect--> node 3 <--max_pool_3x3-- c_{k-1}
  node 0, node 1, node 2, node 3 --concatenated--> c_{k}
"""
    assert drawing in out
    assert "\nnormal cell\n  c_{k-2} --sep_conv_3x3--> node 0 <--sep_conv_3x3-- c_{k-1}\n" in out
    assert "  source: quark0/darts cnn/genotypes.py\n" in out
    assert "  reported_cifar10_test_error_percent: 2.76 ± 0.09\n" in out
    assert "  3,349,342 weights, 3,825,768 with the auxiliary head\n" in out
    assert "  528,359,040 multiply-adds per image\n" in out
    V1.save("a.json", Provenance(method="\x1b[2J\n" + "x" * 999, versions={"\x1b]0;": "\r"}))
    assert main(["show", "a.json"]) == 0
    out = capsys.readouterr().out
    assert out.replace("\n", "").isprintable()
    assert r"  method: \x1b[2J\nxxx" in out
    assert r"  versions: \x1b]0; \r" in out
    assert max(map(len, out.splitlines())) < 420


@pytest.mark.parametrize("has_graphviz", [True, False])
def test_show_says_which_pictures_it_wrote(has_graphviz, monkeypatch, capsys):
    monkeypatch.setattr(Genotype, "draw", lambda self, folder: has_graphviz)
    assert main(["show", "DARTS_V1", "--svg", "to/pictures"]) == 0
    out = capsys.readouterr().out
    assert ("wrote normal.gv, reduce.gv, .svg and .png to to/pictures\n" in out) == has_graphviz
    assert ("pip install" in out) != has_graphviz


def test_diff_counts_edges_and_names_cell_node_edge_and_output(capsys):
    turned = [edge for pair in zip(V1.normal[1::2], V1.normal[::2], strict=True) for edge in pair]
    Genotype(**V1.model_dump() | {"normal": turned}).save("turned.json")
    assert (main(["diff", "DARTS_V1", "turned.json"]), capsys.readouterr().out) == (0, "")
    one = {"normal": (("skip_connect", 0),) * 2, "normal_concat": (2,), "reduce": V1.reduce, "reduce_concat": (4, 5)}
    normal = (("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("dil_conv_3x3", 2))
    Genotype(**one).save("one.json")
    Genotype(**one | {"normal": normal, "reduce": V2.reduce, "reduce_concat": (3, 5)}).save("two.json")
    expected = """--- one.json
+++ two.json
normal cell, node 0
- c_{k-2} --skip_connect-->
+ c_{k-1} --skip_connect-->
normal cell, node 1
+ c_{k-2} --skip_connect-->
+  node 0 --dil_conv_3x3-->
reduction cell, node 1
- c_{k-2} --max_pool_3x3-->
+ c_{k-1} --max_pool_3x3-->
reduction cell, node 3
- c_{k-2} --avg_pool_3x3-->
+ c_{k-1} --max_pool_3x3-->
reduction cell, c_{k}
- node 2, node 3
+ node 1, node 3
"""
    assert (main(["diff", "one.json", "two.json"]), capsys.readouterr().out) == (1, expected)


@pytest.mark.parametrize("form", ["json", "text", "nni", "nasbench301"])
def test_convert_to_standard_output_and_back(form, monkeypatch, capsys):
    assert main(["convert", "PC_DARTS_cifar", "--to", form]) == 0
    text = capsys.readouterr().out
    type_in(monkeypatch, text.encode())
    assert main(["convert", "-", "--to", form]) == 0
    assert capsys.readouterr().out == text
    Path("cells").write_text(text, encoding="utf-8")
    assert main(["diff", "PC_DARTS_cifar", "cells"]) == 0


def test_convert_writes_a_new_file_never_another_and_never_half_a_file(capsys):
    assert main(["convert", "DARTS_V1", "--to", "json", "-o", "a/new/folder/copy.json"]) == 0
    assert Path("a/new/folder/copy.json").read_bytes() == (ROOT / "genotypes" / "DARTS_V1.json").read_bytes()
    Path("dangling").symlink_to("nowhere")
    before = content(Path())
    for taken in ("a/new/folder/copy.json", "dangling"):
        capsys.readouterr()
        assert main(["convert", "DARTS_V2", "--to", "nni", "-o", taken]) == 2
        assert capsys.readouterr().err == f"error: {taken}: exists already and was not changed.\n"
    assert content(Path()) == before
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        code = main(["convert", "DARTS_V1", "--to", "text", "-o", "half"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (code, capsys.readouterr().err) == (2, "error: half: File too large.\n")
    assert not Path("half").exists()


def test_a_cell_of_nas_bench_201_goes_through_all_commands(capsys):
    assert main(["random", "--seed", "1", "--space", "nas-bench-201", "--name", "nb"]) == 0
    genotype = Genotype.load("nb")
    assert main(["show", "nb", "--svg", "pictures"]) == 0
    shown = capsys.readouterr().out
    assert str(genotype.truth()) in shown
    assert "  node 2 --> c_{k}" in shown
    assert {path.name for path in Path("pictures").glob("*.gv")} == {"cell.gv"}
    assert main(["convert", "nb", "--to", "text"]) == 0
    assert capsys.readouterr().out == f"{genotype.to_text()}\n"
    assert main(["diff", "nb", genotype.to_text()]) == 0
    assert main(["diff", "nb", "DARTS_V1"]) == 1
    assert main(["validate", "nb", genotype.to_text()]) == 0
    assert main(["list"]) == 0
    assert main(["convert", "nb", "--to", "nni"]) == 2
    assert capsys.readouterr().err.endswith("a cell of nas-bench-201, which NNI's DARTS space does not have.\n")
    assert main(["random", "--seed", "1", "--space", "nas-bench-201", "--nodes", "4"]) == 2


def test_random_is_the_same_each_time_and_writes_files(capsys):
    assert main(["random", "--seed", "3"]) == 0
    assert Genotype.from_text(capsys.readouterr().out) == Genotype.random(3) != Genotype.random(4)
    assert main(["random", "--seed", "5", "--nodes", "6", "--name", "mine"]) == 0
    assert main(["random", "--seed", "5", "--nodes", "6", "-o", "there.json"]) == 0
    assert Path("there.json").read_bytes() == Path("genotypes/mine.json").read_bytes()
    assert Genotype.load("mine") == Genotype.random(5, 6)
    assert len(Genotype.load("mine").reduce) == 12
    assert GenotypeFile.load("mine").provenance == Provenance(method="random", seed=5)
    # Pinned: another Python or another nas must not draw another cell.
    assert Genotype.random(3).normal == (
        *(("sep_conv_3x3", 0), ("skip_connect", 1), ("sep_conv_5x5", 0), ("max_pool_3x3", 2)),
        *(("dil_conv_3x3", 0), ("avg_pool_3x3", 1), ("dil_conv_5x5", 0), ("sep_conv_3x3", 3)),
    )


def test_validate_has_a_line_for_each_file(capsys):
    V1.save("good.json")
    Path("log.txt").write_text(f"{V2.to_text()}\n{V1.to_text()}\n")
    note = "the last of 2 genotypes is used, in line 2."
    assert main(["validate", "good.json", "log.txt"]) == 0
    assert capsys.readouterr().out == f"good.json: valid\nlog.txt: valid ({note})\n"
    assert (main(["diff", "good.json", "log.txt"]), capsys.readouterr().err) == (0, f"log.txt: {note}\n")
    Path("bad\n.json").write_text(json.dumps({"format_version": 1, "\x1b": 2}))
    assert main(["validate", "bad\n.json", "good.json", "none.json"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [r"bad\n.json: normal: missing.", "good.json: valid"]
    assert lines[2].startswith("none.json: there is no file")


WRONG = [
    ("foo", "Available subcommands: list, show, diff, convert, random, validate"),
    ("show", "SOURCE"),
    ("show DARTS_V3", "there is no file and no cell of this name; perhaps you meant DARTS_V2; known names: Am"),
    ("show genotypes", "genotype genotypes: not a run folder: genotype.json is missing."),
    ("show genotypes/taken.json", "genotype genotypes/taken.json: there is no genotype in it. What can be read: a "),
    ("show a\nb\x1b[2J", r"genotype a\nb\x1b[2J: there is no file"),
    ("show DARTS_V1 --svg genotypes/taken.json", "genotypes/taken.json: File exists."),
    ("convert - --to json", "genotype standard input: there is no genotype in it. What can be read: a genotype file; "),
    ("convert DARTS_V1 --to text -o genotypes/taken.json/x", "genotypes/taken.json: File exists."),
    ("random --seed -1", "--seed: must be 0 to 4294967295, got -1."),
    ("random --seed 4294967296", "--seed: must be 0 to 4294967295, got 4294967296."),
    ("random --seed 1 --nodes 0", "--nodes: must be 1 to 32, got 0."),
    ("random --seed 1 --name ../x", "--name: must be up to 100 letters"),
    ("random --seed 1 --name taken", "--name taken: there is already a cell of this name."),
    ("random --seed 1 --name a -o b", "--name cannot be combined with --output"),
    ("random --seed 1 -o genotypes/taken.json", "genotypes/taken.json: exists already"),
    ("validate", "validate: PATH is missing; name at least one file."),
]


@pytest.mark.parametrize(("call", "sentence"), WRONG, ids=[call for call, _ in WRONG])
def test_a_wrong_call_is_answered_with_one_sentence(call, sentence, monkeypatch, capsys):
    Path("genotypes").mkdir()
    Path("genotypes", "taken.json").write_text("mine")
    type_in(monkeypatch, b"{}")
    before = content(Path())
    code = main(call.split(" "))
    assert fault(code, capsys.readouterr().err, sentence) is None
    assert content(Path()) == before
