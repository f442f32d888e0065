"""Reports: what is read of a run, what may stand in a page, and the page itself in a browser where there is one."""

import functools
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from nas.errors import InputError
from nas.models.primitives import PRIMITIVES
from nas.models.size import network_size
from nas.models.supernet import Alphas
from nas.report import page as report
from nas.report import run_data
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import SHIPPED, GenotypeFile
from nas.search_space.nas_bench_201 import NAS_BENCH_201
from nas.training.accuracy import Measured, count_answers
from tests.bad_calls import content, fault
from tests.in_process import TWO, call

SMALL = ["--dataset=digits", "--train-limit=48", "--init-channels=2", "--num-cells=3", "--batch-size=12"]
SEARCH = [*SMALL, *TWO, "--epochs=3", "--alpha-lr=0.1"]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>&amp;\u2028"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with two searches and a final network in runs/: a, b, final."""
    folder = tmp_path_factory.mktemp("reported")
    assert call("search", folder, *SEARCH, "--name=a") == 0
    assert call("search", folder, *SEARCH, "--name=b", "--seed=1") == 0
    assert call("train_final", folder, *SMALL, "--epochs=2", "--genotype=a", "--name=final") == 0
    return folder


@pytest.fixture
def copy(runs, tmp_path, monkeypatch):
    """The same folder, to be changed, and to be called in."""
    shutil.copytree(runs / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def edit_config(run, change):
    config = json.loads((run / "config.json").read_text())
    change(config)
    (run / "config.json").write_text(json.dumps(config))


def data_of(page):
    """What a page holds as data."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page)[1])


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")


def drawn(page, profile, *flags):
    """Return the page as a browser has it after its scripts, which must not have complained."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000", "--enable-logging=stderr"]
    command = [CHROMIUM, *options, f"--user-data-dir={profile}", *flags, "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    assert re.search(r"<html[^>]* data-ready", done.stdout), done.stderr
    return done.stdout


def shown(copy, *names):
    """Return the page on these runs as a browser has it."""
    report.write([Path("runs", name) for name in names], Path("page.html"))
    return drawn(copy / "page.html", copy / "profile")


def read(name):
    return run_data.read_run(Path("runs", name))


def by_node(cell):
    return [set(map(tuple, cell[index : index + 2])) for index in range(0, len(cell), 2)]


def test_the_history_ends_in_the_genotype_of_the_run_and_its_changes_lead_there(copy):
    run, stored = read("a"), Genotype.load("runs/a/genotype.json")
    assert run["epochs"] == [1, 2, 3]
    assert (run["cells"]["normal"][-1], run["cells"]["reduce"][-1]) == (stored.normal, stored.reduce)
    assert Genotype.from_text(run["genotype"]) == stored
    assert run["changes"]
    for cell in ("normal", "reduce"):
        nodes = by_node(run["cells"][cell][0])
        for index, epoch in enumerate(run["epochs"]):
            for change in run["changes"]:
                if (change["epoch"], change["cell"]) == (epoch, cell):
                    nodes[change["node"] - 2].remove(change["from"])
                    nodes[change["node"] - 2].add(change["to"])
            assert nodes == by_node(run["cells"][cell][index])


def test_a_search_whose_truth_is_known_shows_it(copy):
    flags = [*SMALL[:-2], "--num-cells=1", "--batch-size=12", "--epochs=2", "--space=nas-bench-201", "--name=nb"]
    assert call("search", copy, *flags) == 0
    run, stored = read("nb"), Genotype.load("runs/nb/genotype.json")
    assert run["cells"] == {"cell": [Genotype.from_text(run["genotype"]).cell] * 2} or len(run["changes"]) > 0
    truth = stored.truth()
    assert run["series"]["truth/cifar-10_test_accuracy"][-1] == truth.test["CIFAR-10"]
    assert run["series"]["truth/rank"][-1] == truth.rank
    assert dict(report.describe(NAS_BENCH_201)["quantiles"])["median"] == pytest.approx(0.907, abs=1e-3)
    assert str(truth) in Path("runs/nb/log.txt").read_text()
    with pytest.raises(InputError, match="different search spaces"):
        report.write([Path("runs/nb"), Path("runs/a")], Path("page.html"))
    if CHROMIUM:
        page = shown(copy, "nb")
        assert "True test accuracy" in page
        assert "True rank" in page
        assert page.count('class="rail"') == 1  # one cell, which returns one node


INPUTS = (("skip_connect", 0), ("skip_connect", 1))


@pytest.mark.parametrize(
    ("before", "after", "pairs"),
    [
        (  # another primitive: an edge is paired with itself, and the order of edges is no change
            (("skip_connect", 0), ("max_pool_3x3", 1)),
            (("dil_conv_3x3", 1), ("sep_conv_5x5", 0)),
            [(("skip_connect", 0), ("sep_conv_5x5", 0)), (("max_pool_3x3", 1), ("dil_conv_3x3", 1))],
        ),
        (INPUTS, INPUTS[::-1], []),
        (  # another source: not paired with the edge that stays at its source
            (*INPUTS, *INPUTS),
            (*INPUTS, ("sep_conv_3x3", 1), ("sep_conv_3x3", 2)),
            [(("skip_connect", 1), ("sep_conv_3x3", 1)), (("skip_connect", 0), ("sep_conv_3x3", 2))],
        ),
    ],
)
def test_changed_edges_are_paired(before, after, pairs):
    concat = dict.fromkeys(("normal_concat", "reduce_concat"), tuple(range(2, 2 + len(before) // 2)))
    history = [Genotype(normal=normal, reduce=INPUTS * (len(before) // 2), **concat) for normal in (before, after)]
    found = run_data.changes(history, [4, 7])
    assert sorted((change["from"], change["to"]) for change in found) == sorted(pairs)
    places = {(change["epoch"], change["cell"], change["node"]) for change in found}
    assert places <= {(7, "normal", 1 + len(before) // 2)}


def test_edge_weights_lead_to_the_cells_of_their_alphas():
    torch.manual_seed(0)
    alphas = Alphas()
    for parameter in alphas.parameters():
        parameter.data *= 1000
    normal, reduce = (weights.tolist() for weights in alphas())
    assert Genotype.from_edge_weights(normal, reduce) == Genotype.derive(alphas)
    with pytest.raises(ValueError, match="has 13 edges"):
        Genotype.from_edge_weights(normal[:-1], reduce)
    none, skip = [1.0] + [0.0] * 7, [0.0] * 3 + [1.0] + [0.0] * 4
    found = Genotype.from_edge_weights([none, skip], [none, none])
    assert found.normal == (("skip_connect", 1), ("max_pool_3x3", 0))  # of equal weights the first


def test_the_numbers_are_those_of_the_run(runs):
    path = runs / "runs" / "a"
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    epochs = [record for record in records if "upper/loss" in record]
    run = run_data.read_run(path)
    for name in ("lower/loss", "upper/accuracy", "cells/entropy_reduce_nats", "speed/epoch_s"):
        assert run["series"][name] == [record[name] for record in epochs]
    edge = epochs[1]["edge_weights_reduce/2-5_sep_conv_3x3"]
    assert run["edge_weights"]["reduce"][1][11][1] == pytest.approx(edge, abs=1e-5)
    size = network_size(Genotype.load(path / "genotype.json"))
    assert run["size"] == {"weights": size.weights, "multiply_adds": size.multiply_adds}
    differ = {flag for _, flags in run["config"] for flag, value, default in flags if value != default}
    assert differ == {argument.partition("=")[0] for argument in (*SEARCH, "--name") if argument.startswith("--")}


def test_the_command_of_the_page_trains_the_cell(copy):
    (_, command), _ = read("a")["commands"]
    assert command == "python train_final.py --genotype runs/a/genotype.json --dataset digits --train-limit 48"
    assert call("train_final", copy, *command.split()[2:], *SMALL[2:], "--epochs=1", "--name=again") == 0


def test_a_search_leaves_the_page_that_the_command_writes(copy, capsys):
    path = copy / "runs" / "a" / "report.html"
    before = path.read_text(encoding="utf-8")
    path.unlink()
    assert report.main(["runs/a"]) == 0
    assert path.read_text(encoding="utf-8") == before
    assert capsys.readouterr().out == "written: runs/a/report.html\n"


def test_a_search_ends_well_where_a_page_of_somebody_else_is(runs, copy, capfd):
    (copy / "runs" / "a" / "report.html").write_text("mine")
    assert call("search", copy, "--resume=runs/a", "--epochs=4") == 0
    out = capfd.readouterr().out
    assert "no report: runs/a/report.html: exists and is not a report" in out
    assert "written: genotypes/a.json, and in runs/a: genotype.json" in out
    assert (copy / "runs" / "a" / "report.html").read_text() == "mine"


def test_a_run_that_is_still_at_work_is_reported_as_far_as_it_is(copy):
    path = copy / "runs" / "a" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    second = next(index for index, line in enumerate(lines) if '"epoch": 2' in line and "upper/loss" in line)
    path.write_text("".join(lines[: second + 1]) + lines[second + 1][:30])  # the next one is being written
    run = read("a")
    assert (run["epochs"], run["num_epochs"]) == ([1, 2], 3)
    assert ["resume the run", "python search.py --resume runs/a"] in run["commands"]


def test_several_runs_make_one_page(copy):
    assert report.main(["runs/a", "runs/b"]) == 0
    data = data_of(Path("report.html").read_text(encoding="utf-8"))
    assert [(run["name"], run["seed"]) for run in data["runs"]] == [("a", 0), ("b", 1)]
    assert all(len(run["cells"]["normal"][-1]) == 8 for run in data["runs"])
    assert report.main(["runs/a", "runs/b", "--output=deep/page.html"]) == 0
    assert Path("deep/page.html").read_bytes() == Path("report.html").read_bytes()


def test_what_a_run_holds_stays_text(copy):
    run = copy / "runs" / "a<img src=x onerror=alert(3)>"
    (copy / "runs" / "a").rename(run)

    def change(config):
        config["config"]["data"]["data_dir"] = HOSTILE
        made_up = {"platform": HOSTILE, "command": ["search.py", HOSTILE], "versions": {HOSTILE: HOSTILE}}
        config["environment"] |= made_up

    edit_config(run, change)
    report.write([run], copy / "page.html")
    page = (copy / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == page.count("</script") == 3
    assert not any(text in page for text in ("<img", "&amp;", "\u2028"))
    data = data_of(page)["runs"][0]
    assert data["name"] == run.name
    assert [HOSTILE, HOSTILE] in data["environment"]
    assert ["--data-dir", HOSTILE, "data"] in data["config"][0][1]
    if CHROMIUM is not None:
        dom = drawn(copy / "page.html", copy / "profile")
        assert "<img" not in dom
        assert dom.count("<script") == 3
        assert html.escape(HOSTILE, quote=False) in dom


def test_nothing_is_loaded_from_elsewhere(runs):
    page = (runs / "runs" / "a" / "report.html").read_text(encoding="utf-8")
    assert page.startswith(report.MARKER)
    assert "content=\"default-src 'none'; " in page
    assert not re.search(r"unsafe|<link|<iframe|<img|\b(src|href)=|url\(|@import|fetch\(|XMLHttp|(import|eval)\(", page)
    # uPlot names the first in a comment; the second is the name space of SVG.
    named = {"https://github.com/leeoniya/uPlot", "http://www.w3.org/2000/svg"}
    assert set(re.findall(r"https?://[^\s\"')]+", page)) == named


def edited(name, pattern, text):
    """Replace the first match of a pattern in a file of a run."""

    def change(folder):
        path = folder / "runs" / name
        content = path.read_text(errors="surrogateescape")
        path.write_text(re.sub(pattern, text, content, count=1), errors="surrogateescape")

    return change


def linked(name):
    return lambda folder: (
        (folder / "runs" / name).rename(folder / "else") and (folder / "runs" / name).symlink_to(folder / "else")
    )


def set_in_config(*keys, value):
    def put(config):
        functools.reduce(dict.__getitem__, keys[:-1], config)[keys[-1]] = value

    return lambda folder: edit_config(folder / "runs" / "a", put)


METRICS = "runs/a/metrics.jsonl"
WRONG = [
    ("", None, "RUN_DIR: missing"),
    ("nowhere", None, "nowhere: not a run folder, because it has no config.json"),
    ("runs", None, "runs: not a run folder"),
    ("runs/a --out=x", None, "Unrecognized options: --out=x"),
    ("runs/a runs/final", None, "compare runs of one script only"),
    ("runs/a --output=runs/a/config.json", None, "runs/a/config.json: exists and is not a report"),
    ("runs/a --output=runs", None, "runs: exists and is not a report"),
    ("runs/a --output=runs/a/log.txt/page.html", None, "runs/a/log.txt/page.html: cannot be written"),
    ("runs/a", linked("a/metrics.jsonl"), f"{METRICS}: is a symbolic link"),
    ("runs/final", linked("final/accuracy.json"), "runs/final/accuracy.json: is a symbolic link"),
    ("runs/final", edited("final/accuracy.json", r"\]\s*\}\s*$", ""), "accuracy runs/final/accuracy.json: not"),
    (
        "runs/final",
        edited("final/accuracy.json", r'"num_images": \[', r"\g<0>1, "),
        "its counts contradict each other",
    ),
    ("runs/a", edited("a/metrics.jsonl", r"(?s).*", ""), "runs/a: no epoch is finished yet"),
    ("runs/a", lambda folder: (folder / METRICS).unlink(), "no epoch is finished yet"),
    ("runs/a", edited("a/metrics.jsonl", "^", "{}}\n"), f"{METRICS}, line 1: is not a record"),
    ("runs/a", edited("a/metrics.jsonl", "^", "\udcff\n"), f"{METRICS}, line 1: is not a record"),
    *[
        ("runs/a", edited("a/metrics.jsonl", r"\Z", f"{line}\n"), sentence)
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
    ("runs/a", edited("a/metrics.jsonl", "_skip_connect", "_skip"), "the edge weights are not those of"),
    ("runs/a", edited("a/metrics.jsonl", '(?<=normal/0-2_skip_connect": )[^,]*', "0.99"), "do not add up to 1"),
    ("runs/a", set_in_config("config", "supernet", "num_nodes", value=3), "not those of cells with 3 nodes"),
    ("runs/a", set_in_config("config", "data", "dataset", value="<b>"), "config runs/a/config.json: data.dataset"),
    ("runs/a", set_in_config("environment", "versions", value={"torch": 2}), "environment.versions"),
    ("runs/a", set_in_config("format_version", value=99), "install a newer nas"),
    ("runs/a", set_in_config("config", "selection", "searches", value=2), "runs/a: holds several searches"),
]


@pytest.mark.parametrize(("arguments", "change", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_and_nothing_is_written(copy, capsys, arguments, change, sentence):
    if change is not None:
        change(copy)
    before = content(copy)
    code = report.main(arguments.split())
    assert fault(code, capsys.readouterr().err, sentence) is None
    assert content(copy) == before


def test_limits_hold_before_anything_is_parsed(copy, monkeypatch, capsys):
    path = copy / "runs" / "a" / "metrics.jsonl"
    with path.open("ab") as file:
        file.truncate(run_data.MAX_METRICS_BYTES + 1)  # a hole takes no room
    assert report.main(["runs/a"]) == 2
    assert capsys.readouterr().err == "error: runs/a/metrics.jsonl: is larger than 256 MiB.\n"
    path.write_bytes(b"{" + b" " * run_data.MAX_LINE_BYTES)
    assert report.main(["runs/a"]) == 2
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
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_the_page_of_a_search(copy, scheme):
    preference = f"--blink-settings=preferredColorScheme={['dark', 'light'].index(scheme)}"
    dom = drawn(copy / "runs" / "a" / "report.html", copy / "profile", preference)
    other = "dark" if scheme == "light" else "light"
    assert f">{other}</button>" in dom  # the one that the button changes to
    assert dom.count('<svg class="cell"') == 2
    assert len(re.findall(r'<g class="kept kind-[a-z]+( changed)?"><g class="pill">', dom)) == 2 * 8
    last = read("a")["cells"]["normal"][-1]
    primitive = last[0][0].replace("_", " ").replace("3x3", "3×3").replace("5x5", "5×5")
    assert f'aria-label="Normal cell: {primitive} from c(k−{2 - last[0][1]}) to 0;' in dom
    assert dom.count("<canvas") == 7
    assert len(re.findall(r'<table class="heat">', dom)) == 1
    assert re.search(r'<tr class="own"><th scope="row">a</th>', dom)


@needs_chromium
def test_a_browser_draws_several_runs_and_final_networks(copy):
    dom = shown(copy, "a", "b")
    assert dom.count("<canvas") == 8
    assert "<h1>2 runs compared</h1>" in dom
    assert dom.count('<table class="heat">') == 2
    accuracies = [read(name)["series"]["upper/accuracy"][-1] for name in "ab"]
    mean, spread = sum(accuracies) / 2, abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert f"{100 * mean:.1f} ± {100 * spread:.1f} %" in dom
    assert f"<dt>test accuracy</dt><dd>{100 * read('final')['test']['accuracy']:.1f} %" in shown(copy, "final")
    assert "final (2)" in shown(copy, "final", "final")


@needs_chromium
@pytest.mark.parametrize("num_classes", [10, 30])
def test_a_final_network_is_shown_class_by_class(copy, num_classes):
    names = [HOSTILE, *map(str, range(1, num_classes))]
    edit_config(Path("runs/final"), lambda config: config["trained_on"].update(classes=names))
    targets = torch.cat([torch.arange(num_classes), torch.zeros(1000, dtype=int)])
    Measured(1.0, *count_answers(targets, targets * (targets == 0), num_classes)).save(Path("runs/final"), "test", 2)
    dom = shown(copy, "final")
    share = 100 * 1001 / len(targets)
    assert f"<dt>balanced accuracy</dt><dd>{100 / num_classes:.1f} %" in dom
    assert f"<dt>always guessing the largest class</dt><dd>{share:.1f} %" in dom
    assert "<img" not in dom
    assert f"would reach {share:.1f} %: this network is no better." in dom
    assert re.search(
        r'<th scope="row">1</th><td class="num">0.0 %</td><td class="num">0</td><td class="num">1</td>', dom
    )
    squares = re.search(r'<table class="heat confusion( dense)?">(.*?)</table>', dom)
    assert (squares[1] is not None) == (num_classes > 25)
    assert squares[2].count("<td") == num_classes**2
    assert squares[2].count('class="kept"') == num_classes
    assert 'title="“1” answered as “2”: 0 of 1"' in squares[2]
    assert f"{100 / num_classes:.1f} ± 0.0 %" in shown(copy, "final", "final")


@needs_chromium
def test_a_comparison_says_what_differs_and_leaves_unfinished_runs_out_of_the_mean(copy):
    edit_config(Path("runs/b"), lambda config: config["config"]["lower"].update(momentum=0.5, epochs=9))
    dom = shown(copy, "a", "b")
    differing = re.search(r"<h2>What differs</h2>.*?<thead>(.*?)</thead>", dom)[1]
    assert re.findall(r">(--[a-z-]+)<", differing) == ["--epochs", "--momentum"]
    accuracy = read("a")["series"]["upper/accuracy"][-1]
    assert f'mean ± spread of 1</th><td class="num">{100 * accuracy:.1f} %<' in dom


@needs_chromium
@pytest.mark.parametrize("name", ["NASNet", "AmoebaNet"])
def test_both_edges_from_one_state_to_a_node_are_drawn(copy, name):
    genotype = Genotype.load(SHIPPED / f"{name}.json")
    genotype.save("runs/final/genotype.json")
    dom = shown(copy, "final").split("</main>")[0]
    labels = re.findall(r'<tspan x="[^"]*" dy="[^"]*">([^<]*)</tspan>', dom)
    edges = [primitive for cell in (genotype.normal, genotype.reduce) for primitive, _ in cell]
    assert sorted(labels) == sorted(re.sub(r"(\d)x(\d)", r"\1×\2", edge.replace("_", " ")) for edge in edges)


def test_accuracies_of_an_earlier_epoch_are_left_out(copy):
    path = Path("runs/final/accuracy.json")
    run = read("final")
    assert run["answers"]["accuracy"] == run["test"]["accuracy"]
    path.write_text(path.read_text().replace('"epoch": 2', '"epoch": 1'))
    assert read("final")["answers"] is None
    path.unlink()
    assert read("final")["answers"] is None
    edit_config(path.parent, lambda config: config["config"]["training"].update(epochs=3))
    metrics = path.with_name("metrics.jsonl")
    lines = metrics.read_text().splitlines(True)
    last = json.loads(next(line for line in lines if "speed/epoch_s" in line))
    metrics.write_text("".join(lines) + json.dumps(last | {"epoch": 3}) + "\n")
    run = read("final")
    assert (run["test"], run["finished"]) == ({}, False)
    assert ["resume the run", "python train_final.py --resume runs/final"] in run["commands"]


def test_a_command_that_is_not_ours_is_not_shown(copy):
    labels = [dict(read("a")["commands"]).keys()]
    edit_config(Path("runs/a"), lambda config: config["environment"].update(command=["-c", "import os"]))
    labels.append(dict(read("a")["commands"]).keys())
    assert labels[0] - labels[1] == {"how the run was started"}


@needs_chromium
def test_a_training_that_leaves_the_test_set_alone_can_be_finished(copy):
    edit_config(
        Path("runs/final"), lambda config: config["config"]["training"].update(skip_test=True, holdout_fraction=0.5)
    )
    path = Path("runs/final/metrics.jsonl")
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "test/accuracy" not in line))
    dom = shown(copy, "final").split("</main>")[0]
    assert "2 of 2 epochs<" in dom
    assert "test accuracy" not in dom
    assert "--resume" not in dom
    assert "mean ± spread of 2</th>" in shown(copy, "final", "final")


@needs_chromium
@pytest.mark.parametrize(("name", "tables"), [("a", ".heat"), ("final", ".confusion, .flags")])
def test_a_phone_shows_the_whole_width(copy, name, tables):
    report.write([Path("runs", name)], Path("page.html"))
    page = re.sub(r"<meta http-equiv[^>]*>", "", Path("page.html").read_text(encoding="utf-8"))
    measure = f"""page.style.width = "390px";
    const over = (table) => table.scrollWidth - table.parentElement.clientWidth;
    const wide = [...document.querySelectorAll("{tables}")].map(over);
    root.dataset.wide = `${{Math.max(...wide, page.scrollWidth - 390)}}`; root.dataset.ready"""
    Path("page.html").write_text(page.replace("root.dataset.ready", measure), encoding="utf-8")
    assert 'data-wide="0"' in drawn(copy / "page.html", copy / "profile", "--window-size=500,800")


@needs_chromium
def test_each_of_many_runs_has_a_line_of_its_own(copy):
    dom = shown(copy, *["a"] * 28)
    lines = re.findall(r'<svg class="swatch"[^>]*><line ([^>]*)>', dom)
    assert len(lines) == 28 + 8 * 28  # of the table, and of eight legends
    assert len(set(lines)) == 28


@needs_chromium
def test_the_memory_of_a_run_is_shown_where_it_was_recorded(copy):
    path = Path("runs/a/metrics.jsonl")
    without = re.sub(r', "speed/peak_memory_gb": [0-9.]+', "", path.read_text())
    path.write_text(without)
    assert "memory" not in shown(copy, "a").split("</main>")[0]
    path.write_text(without.replace('"speed/epoch_s"', '"speed/peak_memory_gb": 1.234, "speed/epoch_s"'))
    assert "<dt>memory, peak</dt><dd>1.23<small> GB" in shown(copy, "a")
    assert "peak memory, GB</th>" in shown(copy, "a", "b")


def test_every_primitive_has_a_colour_and_every_script_is_in_the_page():
    style = (report.ASSETS / "report.css").read_text(encoding="utf-8")
    for name in {*PRIMITIVES}:
        assert f".kind-{name.split('_')[0]} {{" in style
    assert {path.name for path in report.ASSETS.glob("*.js")} == {*report.SCRIPTS, "uPlot.iife.min.js"}
