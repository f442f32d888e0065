"""Reports: what is read of a run, what may stand in a page, and the page itself in a browser where there is one."""

import functools
import html
import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path

import pytest
import torch

from nas.config.cli import parse
from nas.config.flags import FinalConfig
from nas.errors import InputError
from nas.models.primitives import PRIMITIVES
from nas.models.size import network_size
from nas.report import __main__ as report_command
from nas.report import metrics_file, run_data
from nas.report import page as report
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import SHIPPED, GenotypeFile
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.training.accuracy import Measured, count_answers
from tests.bad_calls import content, fault
from tests.in_process import TWO, call

SMALL = ["--dataset=digits", "--train-limit=48", "--init-channels=2", "--num-cells=3", "--batch-size=12"]
SEARCH = [*SMALL, *TWO, "--epochs=3", "--alpha-lr=3", "--num-nodes=2"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028"


@pytest.fixture(scope="module")
def runs(no_pictures, tmp_path_factory):
    """A folder with two searches and a final network in runs/: a, b, final."""
    folder = tmp_path_factory.mktemp("reported")
    assert call("search", folder, *SEARCH, "--name=a") == 0
    assert call("train_final", folder, *SMALL, "--epochs=2", "--genotype=a", "--name=final") == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copytree("runs/a", "runs/b")  # with another seed and another accuracy
        set_in("b", "config/run/seed", 1)
        edit("b/metrics.jsonl", r'(?<="upper/accuracy": )[0-9.]+', "0.75", count=0)
    return folder


@pytest.fixture
def copy(runs, tmp_path, monkeypatch):
    """The same folder, to be changed, and to be called in."""
    shutil.copytree(runs / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit(name, pattern, text, count=1):
    """Replace what matches a pattern in a file of a run."""
    path = Path("runs", name)
    content = re.sub(pattern, text, path.read_text(errors="surrogateescape"), count=count)
    path.write_text(content, errors="surrogateescape")


def set_in(run, place, value):
    """Set a value in the config of a run."""
    path = Path("runs", run, "config.json")
    config = json.loads(path.read_text())
    *parents, last = place.split("/")
    functools.reduce(dict.__getitem__, parents, config)[last] = value
    path.write_text(json.dumps(config))


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
DATA = re.compile(r'<script type="application/json" id="data">(.*)</script>')
PHONE = """page.style.width = "390px";
const over = (table) => table.scrollWidth - table.parentElement.clientWidth;
const wide = [...document.querySelectorAll(".heat, .flags")].map(over);
root.dataset.wide = `${Math.max(...wide, page.scrollWidth - 390)}`; root.dataset.ready"""


def shown(*names, on_phone=False, dark=False):
    """Return the page on these runs as a browser has it after its scripts."""
    path = Path("page.html").absolute()
    report.write([Path("runs", name) for name in names], path)
    return in_browser(path, on_phone, dark)


def in_browser(path, on_phone=False, dark=False):
    """Return a page as a browser has it after its scripts, which must not have complained."""
    if on_phone:
        page = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
        path.write_text(page.replace("root.dataset.ready", PHONE), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--enable-logging=stderr"]
    options += ["--window-size=500,800", f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    command = [CHROMIUM, *options, f"--user-data-dir={path.with_name('profile')}", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert re.search(r"<html[^>]* data-ready", done.stdout), done.stderr
    assert not on_phone or 'data-wide="0"' in done.stdout, "the whole width is shown"
    return done.stdout


def read(name):
    return run_data.read_run(Path("runs", name))


def test_the_history_ends_in_the_genotype_of_the_run_and_its_changes_lead_there(copy):
    run, stored = read("a"), Genotype.load("runs/a/genotype.json")
    assert run["epochs"] == [1, 2, 3]
    assert (run["cells"]["normal"][-1], run["cells"]["reduce"][-1]) == (stored.normal, stored.reduce)
    assert Genotype.from_text(run["genotype"]) == stored
    assert run["changes"]
    for cell, history in run["cells"].items():
        nodes = [set(history[0][:2]), set(history[0][2:])]
        for epoch, edges in zip(run["epochs"], history, strict=True):
            for change in run["changes"]:
                if (change["epoch"], change["cell"]) == (epoch, cell):
                    nodes[change["node"] - 2].remove(change["from"])
                    nodes[change["node"] - 2].add(change["to"])
            assert nodes == [set(edges[:2]), set(edges[2:])]


def test_a_search_whose_truth_is_known_shows_it_and_ends_well_where_a_page_of_somebody_else_is(copy, capfd):
    def refuse(folders, output):
        raise InputError(f"{output}: exists and is not a report")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", refuse)
        assert call("search", copy, *SMALL, "--num-cells=1", "--epochs=1", "--space=nas-bench-201", "--name=nb") == 0
    out = capfd.readouterr().out
    assert "no report: runs/nb/report.html: exists and is not a report" in out
    assert "written: genotypes/nb.json, and in runs/nb: genotype.json" in out
    run, stored = read("nb"), Genotype.load("runs/nb/genotype.json")
    assert run["cells"] == {"cell": [stored.cell]}
    truth = stored.truth()
    assert run["series"]["truth/cifar-10_test_accuracy"][-1] == truth.test["CIFAR-10"]
    assert run["series"]["truth/rank"][-1] == truth.rank
    assert dict(report.describe(NAS_BENCH_201)["quantiles"])["median"] == pytest.approx(0.907, abs=1e-3)
    assert str(truth) in Path("runs/nb/log.txt").read_text()
    with pytest.raises(InputError, match="different search spaces"):
        report.write([Path("runs/nb"), Path("runs/a")], Path("page.html"))
    if CHROMIUM:
        page = shown("nb")
        assert "True test accuracy" in page
        assert "True rank" in page
        assert page.count('class="rail"') == 1  # one cell, which returns one node


S0, S1 = (("skip_connect", source) for source in (0, 1))
SEP0, SEP1, SEP2 = (("sep_conv_3x3", source) for source in (0, 1, 2))


@pytest.mark.parametrize(
    ("before", "after", "pairs"),
    [
        # Another primitive: an edge is paired with itself, and the order of edges is no change.
        ((S0, S1), (SEP1, SEP0), [(S0, SEP0), (S1, SEP1)]),
        ((S0, S1), (S1, S0), []),
        # Another source: not paired with the edge that stays at its source.
        ((S0, S1, S0, S1), (S0, S1, SEP1, SEP2), [(S1, SEP1), (S0, SEP2)]),
    ],
)
def test_changed_edges_are_paired(before, after, pairs):
    concat = dict.fromkeys(("normal_concat", "reduce_concat"), tuple(range(2, 2 + len(before) // 2)))
    history = [Genotype(normal=normal, reduce=(S0, S1) * (len(before) // 2), **concat) for normal in (before, after)]
    found = run_data.changes(history, [4, 7])
    assert sorted((change["from"], change["to"]) for change in found) == sorted(pairs)
    places = {(change["epoch"], change["cell"], change["node"]) for change in found}
    assert places <= {(7, "normal", 1 + len(before) // 2)}


def test_the_numbers_are_those_of_the_run(runs):
    path = runs / "runs" / "a"
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if "upper/loss" in record]
    run = run_data.read_run(path)
    for name in ("lower/loss", "upper/accuracy", "cells/entropy_reduce_nats", "speed/epoch_s"):
        assert run["series"][name] == [record[name] for record in epochs]
    edge = epochs[1]["edge_weights_reduce/2-3_sep_conv_3x3"]
    assert run["edge_weights"]["reduce"][1][4][1] == pytest.approx(edge, abs=1e-5)
    size = network_size(Genotype.load(path / "genotype.json"))
    assert run["size"] == {"weights": size.weights, "multiply_adds": size.multiply_adds}
    differ = {flag for _, flags in run["config"] for flag, value, default in flags if value != default}
    assert differ == {argument.partition("=")[0] for argument in (*SEARCH, "--name") if argument.startswith("--")}


def test_the_command_of_the_page_is_understood_and_one_that_is_not_ours_is_not_shown(copy):
    (train, command), (label, _) = read("a")["commands"]
    assert command == "python train_final.py --genotype runs/a/genotype.json --dataset digits --train-limit 48"
    assert parse(FinalConfig, command.split()[2:]).network.genotype == "runs/a/genotype.json"
    assert label == "how the run was started"
    set_in("a", "environment/command", ["-c", "import os"])
    assert read("a")["commands"] == [[train, command]]


def test_a_search_leaves_the_page_that_the_command_writes(copy, capsys):
    path = Path("runs/a/report.html")
    before = path.read_text(encoding="utf-8")
    path.unlink()
    assert report_command.main(["runs/a"]) == 0
    assert path.read_text(encoding="utf-8") == before
    assert report_command.main(["runs/a", "runs/b"]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert [(run["name"], run["seed"]) for run in json.loads(DATA.search(page)[1])["runs"]] == [("a", 0), ("b", 1)]
    assert report_command.main(["runs/a", "runs/b", "--output=deep/page.html"]) == 0
    assert Path("deep/page.html").read_text(encoding="utf-8") == page
    assert capsys.readouterr().out.splitlines()[:2] == ["written: runs/a/report.html", "written: report.html"]


def test_a_run_that_is_still_at_work_is_reported_as_far_as_it_is(copy):
    # The record after that of epoch 2 is being written.
    edit("a/metrics.jsonl", r'(?s)("epoch": 2,[^\n]*upper/loss[^\n]*\n.{30}).*', r"\1")
    run = read("a")
    assert (run["epochs"], run["num_epochs"]) == ([1, 2], 3)
    assert ["resume the run", "python search.py --resume runs/a"] in run["commands"]


def test_what_a_run_holds_stays_text(copy):
    run = copy / "runs" / "a<img src=x onerror=alert(3)>"
    (copy / "runs" / "a").rename(run)
    set_in(run.name, "config/data/data_dir", HOSTILE)
    for place, value in (("platform", HOSTILE), ("command", ["search.py", HOSTILE]), ("versions", {HOSTILE: HOSTILE})):
        set_in(run.name, f"environment/{place}", value)
    report.write([run], copy / "page.html")
    page = (copy / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 3
    assert not any(text in page for text in ("<img", "&amp;", "\u2028"))
    (data,) = json.loads(DATA.search(page)[1])["runs"]
    assert data["name"] == run.name
    assert [HOSTILE, HOSTILE] in data["environment"]
    assert ["--data-dir", HOSTILE, "data"] in data["config"][0][1]
    if CHROMIUM:
        edit(f"{run.name}/metrics.jsonl", r', "speed/peak_memory_gb": [0-9.]+', "", count=0)
        dom = shown(run.name, dark=True)
        assert "<img" not in dom
        assert dom.count("<script") == 3
        assert html.escape(HOSTILE, quote=False) in dom
        assert ">light</button>" in dom  # which the button changes to
        assert "memory" not in dom.split("</main>")[0]


def test_nothing_is_loaded_from_elsewhere(runs):
    page = (runs / "runs" / "a" / "report.html").read_text(encoding="utf-8")
    assert page.startswith(report.MARKER)
    assert "content=\"default-src 'none'; " in page
    assert not re.search(r"unsafe|<link|<iframe|<img|\b(src|href)=|url\(|@import|fetch\(|XMLHttp|(import|eval)\(", page)
    # uPlot names the first in a comment; the second is the name space of SVG.
    named = {"https://github.com/leeoniya/uPlot", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\s\"')]+", page)) == named


def link(name):
    path = Path("runs", name)
    path.symlink_to(path.rename("else").absolute())


METRICS = "runs/a/metrics.jsonl"
WRONG = [
    ("", None, "RUN_DIR: missing"),
    ("nowhere", None, "nowhere: not a run folder, because it has no config.json"),
    ("runs/a runs/final", None, "compare runs of one script only"),
    ("runs/a --output=runs/a/config.json", None, "runs/a/config.json: exists and is not a report"),
    ("runs/a --output=runs", None, "runs: exists and is not a report"),
    ("runs/a --output=runs/a/log.txt/page.html", None, "runs/a/log.txt/page.html: cannot be written"),
    ("runs/a", lambda: link("a/metrics.jsonl"), f"{METRICS}: is a symbolic link"),
    ("runs/final", lambda: link("final/accuracy.json"), "runs/final/accuracy.json: is a symbolic link"),
    ("runs/final", lambda: edit("final/accuracy.json", r"\]\s*\}\s*$", ""), "accuracy runs/final/accuracy.json: not"),
    ("runs/final", lambda: edit("final/accuracy.json", r'images": \[', r"\g<0>1, "), "counts contradict each other"),
    ("runs/a", lambda: edit("a/metrics.jsonl", r"(?s).*", ""), "runs/a: no epoch is finished yet"),
    ("runs/a", lambda: Path(METRICS).unlink(), "no epoch is finished yet"),
    ("runs/a", lambda: edit("a/metrics.jsonl", "^", "{}}\n"), f"{METRICS}, line 1: is not a record"),
    ("runs/a", lambda: edit("a/metrics.jsonl", "^", "\udcff\n"), f"{METRICS}, line 1: is not a record"),
    *[
        ("runs/a", functools.partial(edit, "a/metrics.jsonl", r"\Z", f"{line}\n"), sentence)
        for line, sentence in [
            ('{"epoch": 3, "step": 9, "lower/loss": "1"}', "is not a record"),
            ('{"epoch": 3, "step": 9, "lower/loss": NaN}', "is not a record"),
            ('{"epoch": 4, "step": 9}', "epoch is 4, but must be from 3 to 3"),
            ('{"epoch": 2, "step": 9}', "epoch is 2, but"),
            ('{"epoch": 2.5, "step": 9}', "epoch is 2.5, but"),
            ('{"step": 9}', "epoch is 0, but"),
            ('{"epoch": 3, "upper/accuracy": 1.5}', "an accuracy is not between 0 and 1"),
            ('{"epoch": 3, "upper/balanced_accuracy": -1}', "an accuracy is not between 0 and 1"),
            ('{"epoch": 3, "speed/epoch_s": 1}', "epoch 3 appears twice"),
        ]
    ],
    ("runs/a", lambda: edit("a/metrics.jsonl", "_skip_connect", "_skip"), "the edge weights are not those of"),
    ("runs/a", lambda: edit("a/metrics.jsonl", '(?<=normal/0-2_skip_connect": )[^,]*', "1.01"), "do not add up to 1"),
    ("runs/a", lambda: set_in("a", "config/supernet/num_nodes", 3), "not those of cells with 3 nodes"),
    ("runs/a", lambda: set_in("a", "config/data/dataset", "<b>"), "config runs/a/config.json: data.dataset"),
    ("runs/a", lambda: set_in("a", "environment/versions", {"torch": 2}), "environment.versions"),
    ("runs/a", lambda: set_in("a", "format_version", 99), "install a newer nas"),
    ("runs/a", lambda: set_in("a", "config/selection/searches", 2), "runs/a: holds several searches"),
]


@pytest.mark.parametrize(("arguments", "change", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(copy, capsys, arguments, change, sentence):
    if change is not None:
        change()
    before = content(copy)
    code = report_command.main(arguments.split())
    assert fault(code, capsys.readouterr().err, sentence) is None
    assert content(copy) == before


def test_limits_hold_before_anything_is_parsed(copy, monkeypatch, capsys):
    path = Path(METRICS)
    with path.open("ab") as file:
        file.truncate(metrics_file.MAX_METRICS_BYTES + 1)  # a hole takes no room
    assert report_command.main(["runs/a"]) == 2
    assert capsys.readouterr().err == "error: runs/a/metrics.jsonl: is larger than 256 MiB.\n"
    path.write_bytes(b"{" + b" " * metrics_file.MAX_LINE_BYTES)
    assert report_command.main(["runs/a"]) == 2
    assert capsys.readouterr().err == "error: runs/a/metrics.jsonl, line 1: is longer than 1 MiB.\n"


def test_the_table_has_all_published_cells_with_their_sizes():
    table = {row["name"]: row for row in json.loads((report.ASSETS / "published.json").read_text())["darts"]}
    files = {path.stem: GenotypeFile.load(path) for path in SHIPPED.glob("*.json")}
    published = {name: file for name, file in files.items() if file.provenance.source is not None}
    assert table.keys() == published.keys()
    for name, file in published.items():
        size = network_size(Genotype(**file.cells()))
        assert (table[name]["weights"], table[name]["multiply_adds"]) == (size.weights, size.multiply_adds)
        assert table[name]["test_error_percent"] == file.provenance.reported_cifar10_test_error_percent


@needs_chromium
def test_a_browser_draws_the_page_of_a_search(copy):
    edit("a/metrics.jsonl", r'(?<="speed/peak_memory_gb": )[0-9.]+', "1.234", count=0)
    dom = shown("a", on_phone=True)
    assert ">dark</button>" in dom  # which the button changes to
    assert dom.count('<svg class="cell"') == 2
    assert len(re.findall(r'<g class="kept kind-[a-z]+( changed)?"><g class="pill">', dom)) == 2 * 4
    last = read("a")["cells"]["normal"][-1]
    primitive = last[0][0].replace("_", " ").replace("3x3", "3×3")
    assert f'aria-label="Normal cell: {primitive} from c(k−{2 - last[0][1]}) to 0;' in dom
    assert dom.count("<canvas") == 7
    assert len(re.findall(r'<table class="heat">', dom)) == 1
    assert re.search(r'<tr class="own"><th scope="row">a</th>', dom)
    assert "<dt>memory, peak</dt><dd>1.23<small> GB" in dom


@needs_chromium
def test_a_browser_compares_many_runs_and_leaves_unfinished_ones_out_of_the_mean(copy):
    shutil.copytree("runs/b", "runs/c")
    set_in("c", "config/lower/momentum", 0.5)
    set_in("c", "config/lower/epochs", 9)
    names = [*"abc", *"a" * 12, *"b" * 13]
    dom = shown(*names)
    assert "<h1>28 runs compared</h1>" in dom
    assert dom.count("<canvas") == 8
    assert dom.count('<table class="heat">') == 2
    accuracies = [read(name)["series"]["upper/accuracy"][-1] for name in names if name != "c"]
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    assert f'mean ± spread of 27</th><td class="num">{100 * mean:.1f} ± {100 * spread:.1f} %<' in dom
    differing = re.search(r"<h2>What differs</h2>.*?<thead>(.*?)</thead>", dom)[1]
    assert re.findall(r">(--[a-z-]+)<", differing) == ["--epochs", "--momentum"]
    assert "peak memory, GB</th>" in dom
    lines = re.findall(r'<svg class="swatch"[^>]*><line ([^>]*)>', dom)
    assert len(lines) == 28 + 8 * 28  # of the table, and of eight legends
    assert len(set(lines)) == 28, "each has a line of its own"


@needs_chromium
@pytest.mark.parametrize("num_classes", [10, 30])
def test_a_final_network_is_shown_class_by_class(copy, num_classes):
    set_in("final", "trained_on/classes", [HOSTILE, *map(str, range(1, num_classes))])
    targets = torch.cat([torch.arange(num_classes), torch.zeros(1000, dtype=int)])
    Measured(1.0, *count_answers(targets, targets * (targets == 0), num_classes)).save(Path("runs/final"), "test", 2)
    dom = shown("final")
    share = 100 * 1001 / len(targets)
    assert f"<dt>test accuracy</dt><dd>{100 * read('final')['test']['accuracy']:.1f} %" in dom
    assert f"<dt>balanced accuracy</dt><dd>{100 / num_classes:.1f} %" in dom
    assert f"<dt>always guessing the largest class</dt><dd>{share:.1f} %" in dom
    assert "<img" not in dom
    assert f"would reach {share:.1f} %: this network is no better." in dom
    cells = "".join(f'<td class="num">{cell}</td>' for cell in ("0.0 %", "0", "1"))
    assert f'<th scope="row">1</th>{cells}' in dom
    squares = re.search(r'<table class="heat confusion( dense)?">(.*?)</table>', dom)
    assert (squares[1] is not None) == (num_classes > 25)
    assert squares[2].count("<td") == num_classes**2
    assert squares[2].count('class="kept"') == num_classes
    assert 'title="“1” answered as “2”: 0 of 1"' in squares[2]


def test_accuracies_of_an_earlier_epoch_are_left_out(copy):
    run = read("final")
    assert run["answers"]["accuracy"] == run["test"]["accuracy"]
    edit("final/accuracy.json", '"epoch": 2', '"epoch": 1')
    assert read("final")["answers"] is None
    Path("runs/final/accuracy.json").unlink()
    assert read("final")["answers"] is None
    set_in("final", "config/training/epochs", 3)
    edit("final/metrics.jsonl", r"\Z", '{"epoch": 3, "speed/epoch_s": 1}\n')
    run = read("final")
    assert (run["test"], run["finished"]) == ({}, False)
    assert ["resume the run", "python train_final.py --resume runs/final"] in run["commands"]


@needs_chromium
def test_a_training_that_leaves_the_test_set_alone_can_be_finished_and_both_edges_from_one_state_are_drawn(copy):
    genotype = Genotype.load("NASNet")
    genotype.save("runs/final/genotype.json")
    set_in("final", "config/training/skip_test", True)
    set_in("final", "config/training/holdout_fraction", 0.5)
    edit("final/metrics.jsonl", r".*test/accuracy.*\n", "", count=0)
    dom = shown("final", on_phone=True).split("</main>")[0]
    assert "2 of 2 epochs<" in dom
    assert "test accuracy" not in dom
    assert "--resume" not in dom
    labels = re.findall(r'<tspan x="[^"]*" dy="[^"]*">([^<]*)</tspan>', dom)
    edges = [primitive for cell in (genotype.normal, genotype.reduce) for primitive, _ in cell]
    assert sorted(labels) == sorted(re.sub(r"(\d)x(\d)", r"\1×\2", edge.replace("_", " ")) for edge in edges)
    dom = shown("final", "final")
    assert "mean ± spread of 2</th>" in dom
    assert f"{100 * read('final')['answers']['balanced_accuracy']:.1f} ± 0.0 %" in dom
    assert "final (2)" in dom


def test_every_primitive_has_a_colour_and_every_script_is_in_the_page():
    style = (report.ASSETS / "report.css").read_text(encoding="utf-8")
    assert all(f".kind-{name.split('_')[0]} {{" in style for name in PRIMITIVES)
    assert {path.name for path in report.ASSETS.glob("*.js")} == {*report.SCRIPTS, "uPlot.iife.min.js"}
