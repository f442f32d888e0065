"""Several searches run for real at a small size, killed and stopped on the way, and what they leave behind."""

import base64
import contextlib
import dataclasses
import functools
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
import signal
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from PIL import Image

import nas
import search
from nas.config.cli import parse
from nas.config.file import to_json
from nas.config.flags import FinalConfig, SearchConfig, Selection
from nas.data import datasets
from nas.errors import InputError
from nas.predict import predict
from nas.report import __main__ as report_command
from nas.report import overview
from nas.runs import checkpoint
from nas.runs.table import Table, sources
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import GenotypeFile
from nas.selection import protocol, ranking
from nas.selection.cells import Cell, distinct_cells
from nas.selection.job_configs import final_job, search_job, training_jobs
from nas.selection.jobs import Ending, Job
from tests import torture
from tests.in_process import TWO, WHOLE_PATH, call, in_this_process
from tests.report.test_page import CHROMIUM, DATA, in_browser, needs_chromium

SEARCH = [*torture.SMALL, "--num-nodes=1", "--epochs=2", "--checkpoint-minutes=0"]
SEVERAL = ["--searches=2", "--random-baseline=1", "--selection-epochs=1", "--selection-channels=2"]
COMMAND = [*SEARCH, *SEVERAL, "--selection-cells=3", "--name=m"]
RESUME_X = "resume with: python search.py --resume runs/x"
RAY = ["--ray", "--devices-per-search=0.5"] if importlib.util.find_spec("ray") else []


def wait_for_step(run, step):
    end = time.monotonic() + 120
    while not ((manifest := checkpoint.newest(run)) and manifest.progress.steps >= step):
        assert time.monotonic() < end, f"no step in {run}"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run whose first search was killed, and which was stopped in its second one and called again.

    With it: exit codes and standard error of both calls, and when the files of the first search were last written.
    """
    folder = tmp_path_factory.mktemp("several")
    first, second = (folder / "runs" / "m" / f"m-seed{seed}" for seed in (0, 1))

    def disturb():
        wait_for_step(first, 2)
        os.kill(int((first / "pid").read_text()), signal.SIGKILL)
        wait_for_step(second, 2)
        os.kill(os.getpid(), signal.SIGTERM)

    disturber = threading.Thread(target=disturb)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        disturber.start()
        stopped = call("search", folder, *COMMAND)
        disturber.join()
        written = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
        gone_on = call("search", folder, *COMMAND, *RAY)
    return folder, (stopped, gone_on), errors.getvalue(), written


@pytest.mark.slow
def test_stopped_and_called_again_it_goes_on_and_does_not_touch_what_was_finished(finished):
    folder, codes, errors, written = finished
    run = folder / "runs" / "m"
    assert codes == (143, 0)
    assert re.search(r"resumed after step [2-9]", (run / "m-seed0" / "log.txt").read_text())
    assert errors == "stopped: finished 1 of 2 searches; resume with: python search.py --resume runs/m\n"
    jobs = ("m-seed0", "m-seed1", "retrained-seed0", "retrained-seed1", "retrained-random0")
    assert {path.name for path in run.iterdir()} == {
        *("config.json", "log.txt", "lock", "pid", "report.html", "retrained.html", "table.json", "random0.json"),
        "table-1.json",
        *(f"{name}{suffix}" for name in jobs for suffix in ("", ".out", ".config.json")),
    }
    assert {path.name for path in (folder / "genotypes").iterdir()} == {"m.json", "m-seed0.json", "m-seed1.json"}
    assert written == {path: path.stat().st_mtime_ns for path in (run / "m-seed0").rglob("*")}
    assert len(json.loads((run / "m-seed1" / "config.json").read_text())["resumed"]) == 1


@pytest.mark.slow
def test_the_best_cell_is_exported_with_the_table(finished):
    folder = finished[0]
    run = folder / "runs" / "m"
    exported = GenotypeFile.load(folder / "genotypes" / "m.json")
    rows = exported.provenance.candidates
    assert rows is not None
    assert [row.holdout_accuracy for row in rows] == sorted((row.holdout_accuracy for row in rows), reverse=True)
    assert sorted(seed for row in rows for seed in row.seeds) == [0, 1]
    assert [row.random_seeds for row in rows if row.random_seeds] == [(0,)]
    assert Genotype(**exported.cells()) == Genotype.from_text(rows[0].genotype)
    assert exported.provenance.seed == (rows[0].seeds or rows[0].random_seeds)[0]
    for row in rows:
        searches = [GenotypeFile.load(folder / "genotypes" / f"m-seed{seed}.json").provenance for seed in row.seeds]
        assert row.supernet_accuracies == tuple(found.supernet_accuracy for found in searches)
    table = json.loads(json.dumps([row.model_dump() for row in rows]))
    assert json.loads((run / "table.json").read_text())["cells"] == table
    opened = nas.open_run(run)
    assert (tuple(opened.table), opened.num_done, opened.is_finished) == (rows, 2, True)
    assert opened.genotype == Genotype(**exported.cells())
    log = (run / "log.txt").read_text()
    for line in (*ranking.table(rows), *ranking.verdict(rows)):
        assert f" {line}\n" in log
    assert "train it in full: python train_final.py --genotype genotypes/m.json --dataset digits" in log


@pytest.mark.slow
def test_other_flags_under_the_same_name_are_refused(finished, capfd):
    folder = finished[0]
    for more, sentence in (
        (["--epochs=3"], "--epochs 3: the run in runs/m has 2"),
        (["--searches=3"], "--searches 3: the run in runs/m has 2"),
        (["--seed=1"], "--seed 1: the run in runs/m has 0"),
        (["--lower-lr=0.1"], "--lower-lr 0.1: the run in runs/m has 0.025"),
    ):
        assert call("search", folder, *COMMAND, *more) == 2
        error = capfd.readouterr().err
        assert error.startswith(f"error: {sentence}, which cannot change")
        assert error.count("\n") == 1
    assert call("search", folder, "--resume=runs/m", "--epochs=3") == 2
    assert "--epochs 3: the run in runs/m has 2" in capfd.readouterr().err


@pytest.mark.slow
def test_another_cell_in_the_place_of_one_is_refused(finished, tmp_path):
    shutil.copytree(finished[0] / "runs" / "m", tmp_path, dirs_exist_ok=True)
    shutil.copy(tmp_path / "random0.json", tmp_path / "retrained-seed1" / "genotype.json")
    cells = distinct_cells(parse(SearchConfig, COMMAND), tmp_path)
    with pytest.raises(InputError, match=r"retrained-seed1: trained another cell than .*m-seed1/"):
        ranking.candidates([(cell, [tmp_path / f"retrained-{cell.name}"]) for cell in cells])


@pytest.mark.parametrize(
    ("begun", "endings", "code", "said"),
    [
        (True, [Ending(1, "x ended."), Ending(143, "")], 1, f"stopped: x ended (and 1 more); then {RESUME_X}\n"),
        (True, [Ending(2, "--device cuda: no such device.")], 2, "error: --device cuda: no such device.\n"),
        (False, [Ending(2, "--device cuda: no such device.")], 2, "error: --device cuda: no such device.\n"),
    ],
)
def test_what_cannot_be_finished_is_one_sentence_and_leaves_what_was_begun(
    tmp_path, monkeypatch, capfd, begun, endings, code, said
):
    def run_all(jobs, tick):
        if begun:
            jobs[0].path.mkdir()
            (jobs[0].path / "config.json").touch()
        return endings

    monkeypatch.setattr(protocol, "runner", lambda *_: contextlib.nullcontext(run_all))
    assert call("search", tmp_path, "--dataset=digits", "--searches=2", "--name=x") == code
    assert capfd.readouterr().err == said
    assert (tmp_path / "runs" / "x").exists() == begun


def test_a_dry_run_says_the_plan_and_writes_nothing(tmp_path, capfd):
    assert call("search", tmp_path, *COMMAND, "--num-cells=1", "--dry-run") == 0
    out = capfd.readouterr().out
    said = "2 searches, seeds 0 to 1, one after another\nthen each distinct cell, 1 random cell will be trained (1 "
    assert said in out
    assert " for 20 steps, until" in out
    assert list(tmp_path.iterdir()) == []


def test_given_cells_stand_beside_searched_and_random_ones(tmp_path, monkeypatch):
    def run_all(jobs, tick):
        (tmp_path / "own.json").unlink(missing_ok=True)  # it was read when the run began
        for job in jobs:
            assert call(job.script.stem, tmp_path, f"--config={job.config}", f"--name={job.path.name}") == 0
        return []

    monkeypatch.setattr(protocol, "runner", lambda *_: contextlib.nullcontext(run_all))
    Genotype.random(7, 1).save(tmp_path / "own.json")
    small = ["--dataset=digits", "--train-limit=48", "--init-channels=2", "--num-cells=1", "--num-nodes=1", *TWO]
    several = ["--random-baseline=1", "--selection-epochs=1", "--selection-channels=2", "--selection-cells=1"]
    given = ["--candidates", "DARTS_V2", "own.json", "--epochs=1", "--name=c"]
    assert call("search", tmp_path, *small, *several, *given, "--export-searched") == 0
    exported = GenotypeFile.load(tmp_path / "genotypes" / "c.json")
    rows = exported.provenance.candidates
    assert sorted(sources(row) for row in rows) == ["DARTS_V2", "own.json", "random 0", "seed 0"]
    best = next(row for row in rows if row.seeds)
    assert Genotype(**exported.cells()) == Genotype.from_text(best.genotype)
    log = (tmp_path / "runs" / "c" / "log.txt").read_text()
    assert "then each distinct cell, 1 random cell, DARTS_V2, own.json will be trained" in log
    assert f"written: genotypes/c.json ({sources(best)}), and in runs/c" in log
    assert "cells of --candidates: mean " in log


def test_halving_trains_the_better_half_on_and_keeps_what_it_was_decided_by(whole_path):
    run = whole_path / "runs" / "p"
    first, second, last = (Table.load(run / f"table-{epochs}.json").cells for epochs in (1, 2, 4))
    assert [len(first), len(second), len(last)] == [4, 2, 1]
    assert {row.epochs for row in first} == {1}
    assert {row.genotype for row in first[:2]} == {row.genotype for row in second}
    assert second[0].genotype == last[0].genotype
    table = Table.load(run / "table.json")
    assert table.cells == (*last, *second[1:], *first[2:])
    assert list(table.verdict) == ranking.verdict(first)
    for row in first:
        assert len(row.scores) == 2
        assert row.holdout_accuracy == pytest.approx(sum(row.scores) / 2)


def test_all_jobs_hold_out_the_same_images_and_no_search_sees_them(whole_path):
    run = whole_path / "runs" / "p"
    assert "24 images for the weights, 24 for the alphas" in (run / "p-seed0" / "log.txt").read_text()
    for folder in run.glob("retrained-*/"):
        assert "48 training images (12 held out)" in (folder / "log.txt").read_text()


def test_the_final_network_is_that_of_the_best_cell_and_can_be_loaded(whole_path, capfd):
    run = whole_path / "runs" / "p"
    exported = Genotype.load(whole_path / "genotypes" / "p.json")
    assert exported == Genotype.from_text(Table.load(run / "table.json").cells[0].genotype)
    assert Genotype.load(run / "final" / "genotype.json") == exported
    assert (run / "final" / "network.safetensors").exists()
    log = (run / "log.txt").read_text()
    assert re.search(r"the network of genotypes/p.json has a test accuracy of \d+\.\d\d%; it is in runs/p/final\n", log)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "runner", in_this_process(whole_path))
        assert call("search", whole_path, "--resume=runs/p") == 0
    assert "a test accuracy of" in capfd.readouterr().out


@pytest.fixture
def copy(whole_path, tmp_path, monkeypatch):
    """The run folder of a copy of it, whose page can be written anew."""
    shutil.copytree(whole_path / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "p"


def edit_json(file, place, value):
    """Set a value in a JSON file."""
    content = json.loads(file.read_text())
    *parents, last = place.split("/")
    functools.reduce(dict.__getitem__, parents, content)[last] = value
    file.write_text(json.dumps(content))


def shown_in(page):
    return json.loads(DATA.search(page.read_text(encoding="utf-8"))[1])


def test_one_page_says_all_of_the_run(whole_path, tmp_path):
    run = whole_path / "runs" / "p"
    assert "written: runs/p/overview.html and runs/p/MODEL_CARD.md\n" in (run / "log.txt").read_text()
    data = shown_in(run / "overview.html")
    about = data["overview"]
    assert [search["name"] for search in data["runs"]] == ["p-seed0"]
    assert about["conclusion"].startswith("Searched cells are ")
    rows = Table.load(run / "table.json").cells
    assert [(row["source"], row["score"], row["epochs"]) for row in about["cells"]] == [
        (sources(row), row.score, row.epochs) for row in rows
    ]
    exported = [row.genotype for row, shown in zip(rows, about["cells"], strict=True) if shown["exported"]]
    assert exported == [Genotype.load(whole_path / "genotypes" / "p.json").to_text()]
    low, high = about["interval"]
    assert low < about["final"]["test"]["accuracy"] < high
    times = {what: (number, time_s) for what, number, time_s in about["times"]}
    assert {what: number for what, (number, _) in times.items() if number} == {
        "searches": 1,
        "brief trainings": 8,
        "final training": 1,
    }
    assert times["final training"][1] == about["final"]["time_s"]
    commands = [command for _, command in about["final"]["commands"]]
    assert commands == [
        "python -m nas.predict runs/p/final IMAGE",
        "python train_final.py --evaluate runs/p/final",
        f"python search.py {shlex.join(WHOLE_PATH)}",
    ]


def test_the_examples_are_test_images_and_what_predict_says_of_them(whole_path, tmp_path):
    run = whole_path / "runs" / "p"
    examples = shown_in(run / "overview.html")["overview"]["examples"]
    test = datasets.load("digits", Path("data"), "test")
    assert len(examples) == 12
    assert not any(example["right"] for example in examples[8:])
    for number, example in enumerate(examples):
        file = tmp_path / f"{number}.png"
        file.write_bytes(base64.b64decode(example["picture"].removeprefix("data:image/png;base64,")))
        pixels = torch.from_numpy(np.array(Image.open(file)))
        (place,) = (test.images[:, 0] == pixels).all(dim=(1, 2)).nonzero()
        assert example["truth"] == test.classes[test.targets[place]]
        (probabilities,) = predict(str(run / "final"), [str(file)])
        assert [name for name, _ in example["likely"]] == list(probabilities)[:3]
        assert dict(example["likely"]) == pytest.approx(
            {name: probabilities[name] for name, _ in example["likely"]}, abs=1e-4
        )
        assert example["right"] == (next(iter(probabilities)) == example["truth"])


def test_the_card_says_what_holds_for_this_run(whole_path):
    card = (whole_path / "runs" / "p" / "MODEL_CARD.md").read_text(encoding="utf-8")
    answers = shown_in(whole_path / "runs" / "p" / "overview.html")["overview"]["final"]["answers"]
    assert card.startswith("<!-- nas.model_card -->\n# p\n")
    for line in (
        f"- on the test set: **{answers['accuracy']:.2%}** (95 % interval ",
        "- 60 training images\n- 360 test images, used once",
        "- the cells were compared on 20% of the training images, which no search saw;",
        "- 1 search; 4 cells trained briefly\n- chosen: the cell with the best accuracy on held-out images, ",
        "--selection-halving yes, ",
        "- network.safetensors: ",
        "    python -m nas.predict runs/p/final IMAGE\n",
        f"    {Genotype.load(whole_path / 'genotypes' / 'p.json').to_text()}\n",
        "Searched cells are ",
    ):
        assert line in card
    assert "network.onnx" not in card


def test_the_command_renews_the_page_and_files_of_somebody_else_stay(copy, capsys):
    page, card = copy / "overview.html", copy / "MODEL_CARD.md"
    before = page.read_text(encoding="utf-8")
    page.unlink()
    assert report_command.main(["runs/p"]) == 0
    assert capsys.readouterr().out == "written: runs/p/overview.html\n"
    assert page.read_text(encoding="utf-8") == before
    for file in (page, card):
        file.write_text("mine")
    assert report_command.main(["runs/p"]) == 2
    assert "runs/p/overview.html: exists and is not a report" in capsys.readouterr().err
    run = types.SimpleNamespace(path=Path("runs/p"), log=print)
    protocol.write_overview(run)
    said = capsys.readouterr().out
    assert "no overview.html: runs/p/overview.html: exists and is not a report" in said
    assert "no MODEL_CARD.md: runs/p/MODEL_CARD.md: exists and is not a model card" in said
    assert page.read_text() == card.read_text() == "mine"


HOSTILE = ["</script><img src=x onerror=alert(1)>", "[x](javascript:alert)", "`a\n# b`|*c*", *"3456789"]


def test_names_that_are_hostile_stay_text_in_the_page_and_in_the_card(copy, monkeypatch):
    load = datasets._load_digits
    monkeypatch.setattr(datasets, "_load_digits", lambda part: load(part)._replace(classes=tuple(HOSTILE)))
    edit_json(copy / "final" / "config.json", "trained_on/classes", HOSTILE)
    edit_json(copy / "final" / "config.json", "environment/versions", {HOSTILE[0]: HOSTILE[2]})
    edit_json(copy / "table.json", "verdict", [HOSTILE[0]])
    copy = copy.rename(copy.with_name("[p](www.x.org) <b>"))
    protocol.write_overview(types.SimpleNamespace(path=copy, log=print))
    text = (copy / "overview.html").read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script") == 3
    assert "<img" not in text
    assert {example["truth"] for example in shown_in(copy / "overview.html")["overview"]["examples"]} & {*HOSTILE[:3]}
    html = MarkdownIt().enable("table").render((copy / "MODEL_CARD.md").read_text(encoding="utf-8"))
    tags = set(re.findall(r"<(/?[a-z]\w*)[^>]*>", html))
    assert {tag.strip("/") for tag in tags} <= {"h1", "h2", "p", "ul", "li", "strong", "code", "pre"}
    assert "<h1>[p](www.x.org) &lt;b&gt;</h1>" in html
    assert "“[x](javascript:alert)”" in html or "[x](javascript:alert)," in html
    if CHROMIUM:
        dom = in_browser(copy / "overview.html", dark=True)
        assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", dom.split("</main>")[0])
        assert len(re.findall(r'<img src="data:image/png;base64,[\w+/=]+" alt="', dom)) == dom.count("<img") == 12


@needs_chromium
def test_a_browser_draws_the_page_on_a_phone(copy):
    about = shown_in(copy / "overview.html")["overview"]
    dom = in_browser(copy / "overview.html", on_phone=True).split("</main>")[0]
    assert f"<dt>test accuracy</dt><dd>{100 * about['final']['test']['accuracy']:.1f} %" in dom
    assert dom.count('<svg class="cell"') == 2
    assert dom.count('class="card wrong"') == sum(not example["right"] for example in about["examples"])
    assert re.findall(r'<tr class="own"><th scope="row">([^<]*)<small> exported<', dom) == [
        row["source"] for row in about["cells"] if row["exported"]
    ]
    assert re.findall(r'<span class="dot" style="[^"]*"></span>([^<]*)<', dom) == [part[0] for part in about["times"]]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda run: (run / "final" / "accuracy.json").unlink(), "runs/p/final: has no test accuracy yet"),
        (lambda run: (run / "table.json").write_text("{}"), "table runs/p/table.json: cells: missing"),
        (lambda run: shutil.copytree(run / "final", run / "p-seed0", dirs_exist_ok=True), "p-seed0: was not written"),
        (lambda run: shutil.rmtree(run / "final"), "runs/p: holds several searches; give one of the run folders in it"),
    ],
)
def test_a_page_on_what_is_missing_or_damaged_is_refused(copy, capsys, change, sentence):
    change(copy)
    (copy / "overview.html").unlink()
    assert report_command.main(["runs/p"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (copy / "overview.html").exists()


def test_a_page_can_be_written_where_the_images_are_not(copy, capsys):
    edit_json(copy / "final" / "config.json", "config/data/dataset", "cifar10")
    overview.write(copy, copy / "overview.html")
    about = shown_in(copy / "overview.html")["overview"]
    assert (about["examples"], about["why_none"]) == ([], "the images are not in data.")


@pytest.mark.parametrize(
    ("resumed", "has_rest"),
    [("2000-01-01T00:00:00+00:00", False), ("9000-01-01T00:00:00+00:00", True), (3, False)],
)
def test_the_time_between_runs_is_named_only_where_none_of_it_was_a_pause(copy, resumed, has_rest):
    edit_json(copy / "config.json", "environment/date", "2000-01-01T00:00:00+00:00")
    edit_json(copy / "config.json", "resumed", [{"date": resumed}])
    assert ("the rest" in [part.what for part in overview.read(copy).times]) == has_rest


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("DARTS_V9", "--candidates: genotype DARTS_V9"),
        (
            "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
            "a cell of --space nas-bench-201, but this search is in da",
        ),
    ],
)
def test_a_given_cell_that_is_none_or_of_another_space_is_refused_before_anything_is_written(
    tmp_path, capfd, source, sentence
):
    for how in ("--name=x", "--dry-run"):
        assert call("search", tmp_path, "--dataset=digits", "--candidates", source, how) == 2
        assert sentence in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="--searches: cannot be combined with torchrun"):
        search.main(parse(SearchConfig, COMMAND))


@pytest.mark.parametrize("unseen", [None, 0.25], ids=["as published", "with images that no search sees"])
def test_a_job_is_one_run_of_a_script_with_a_config_file(tmp_path, monkeypatch, unseen):
    monkeypatch.chdir(tmp_path)
    images = [] if unseen is None else ["--data-seed=5"]
    given = ["--threads=3", "--stem=imagenet", "--device=cpu", "--no-flip"]
    quick = ["--preset=quick", "--dataset=digits", "--run-dir=runs/x"]
    several = ["--searches=4", "--seed=5", "--name=x", "--ray", f"--selection-fraction={unseen or 0}"]
    several += ["--selection-seeds=2", "--train-final", "--final-epochs=7"]
    config = parse(SearchConfig, [*quick, *several, *given])
    search = search_job(config, Path("scripts"), Path("runs/x"), 7)
    assert search == Job(
        Path("scripts/search.py").resolve(), Path("runs/x/x-seed7"), Path(f"{search.folder}.config.json"), 8, tmp_path
    )
    alone = parse(SearchConfig, [f"--config={search.config}", "--name=x-seed7"])
    expected = parse(SearchConfig, [*quick, "--seed=7", "--name=x-seed7", *given, *images])
    assert to_json(alone) == to_json(with_call_of(expected, alone, selection=Selection(selection_fraction=unseen)))
    cell = Cell(Genotype.random(0), Path("random0.json"), random_seeds=[0])
    train = training_jobs(config, Path("scripts"), Path("runs/x"), cell, 10)
    assert [job.folder.name for job in train] == ["retrained-random0", "retrained-random0-1"]
    trained = parse(FinalConfig, [f"--config={train[1].config}", "--name=retrained-random0-1"])
    short = ["--init-channels=16", "--num-cells=3", "--epochs=10", f"--holdout-fraction={unseen or 0.5}", "--skip-test"]
    short += ["--genotype=random0.json", "--dataset=digits", "--run-dir=runs/x", "--name=retrained-random0-1"]
    expected = parse(FinalConfig, [*short, *given, "--seed=6", "--data-seed=5"])
    assert trained == with_call_of(expected, trained)
    last = final_job(config, Path("scripts"), Path("runs/x"), Path("genotypes/x.json"))
    trained = parse(FinalConfig, [f"--config={last.config}", "--name=final"])
    full = ["--genotype=genotypes/x.json", "--dataset=digits", "--run-dir=runs/x", "--name=final", "--seed=5"]
    size = ["--init-channels=36", "--num-cells=20", "--epochs=7"]
    assert trained == with_call_of(parse(FinalConfig, [*full, *size, *given]), trained)


def with_call_of(config, other, **more):
    """A config, but for what says from where it was read."""
    call = {"config": other.run.config} | ({"preset": other.run.preset} if hasattr(other.run, "preset") else {})
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **call), **more)


def test_cells_that_were_found_twice_are_trained_once(tmp_path):
    config = parse(SearchConfig, ["--searches=3", "--random-baseline=2", "--name=x"])
    for seed, cell in enumerate((1, 2, 1)):
        (tmp_path / f"x-seed{seed}").mkdir()
        Genotype.random(cell).save(tmp_path / f"x-seed{seed}" / "genotype.json")
    cells = distinct_cells(config, tmp_path)
    assert [(cell.seeds, cell.random_seeds) for cell in cells] == [([0, 2], [1]), ([1], []), ([], [0])]
    assert [cell.name for cell in cells] == ["seed0", "seed1", "random0"]


def test_without_the_test_set_its_images_are_not_read(tmp_path, monkeypatch, capfd):
    load = datasets.load

    def load_but_test(name, folder, part, *more, **others):
        assert part == "train"
        return load(name, folder, part, *more, **others)

    monkeypatch.setattr(datasets, "load", load_but_test)
    flags = ["--genotype=DARTS_V2", "--epochs=1", "--skip-test", "--holdout-fraction=0.5", "--name=a"]
    assert call("train_final", tmp_path, *torture.SMALL, "--num-cells=1", *flags) == 0
    lines = [json.loads(line) for line in (tmp_path / "runs" / "a" / "metrics.jsonl").read_text().splitlines()]
    last = capfd.readouterr().out.splitlines()[-1]
    accuracy = lines[-1]["holdout/accuracy"]
    assert last.startswith(f"held-out accuracy after epoch 1: {accuracy:.2%} of 48 images (loss ")
    assert call("train_final", tmp_path, "--resume=runs/a") == 0
    monkeypatch.undo()  # now it is asked for
    assert call("train_final", tmp_path, "--evaluate=runs/a") == 0
    assert "runs/a: test accuracy " in capfd.readouterr().out
