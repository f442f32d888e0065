"""`nas.open_run` on real runs: while they run, stopped, finished, and with files that are damaged or hostile."""

import functools
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

import nas
import search
import train_final
from nas.errors import InputError
from nas.runs.table import TABLE_VERSION
from nas.search_space import pictures
from nas.search_space.genotype_file import Candidate
from tests.in_process import TWO, call

SMALL = ["--dataset=digits", "--train-limit=48", "--init-channels=2", "--num-cells=3", "--batch-size=12"]
SEARCH = [*SMALL, *TWO, "--num-nodes=1", "--epochs=2"]
HOSTILE = "<img src=x onerror=alert(1)>"


def stopped(script, folder, *arguments):
    """Return a run as it is opened at the end of its first epoch, while it runs; it is then stopped."""
    opened = []

    def look(log_epoch, loop, *others):
        log_epoch(loop, *others)
        opened.append(nas.open_run(loop.folder.path))
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "log_epoch", functools.partial(look, script.log_epoch))
        assert call(script.__name__, folder, *arguments) == 143
    return opened[0]


@pytest.fixture(scope="module")
def made(no_pictures, tmp_path_factory):
    """A folder with finished and stopped runs in runs/, and what was opened while the stopped ones ran."""
    folder = tmp_path_factory.mktemp("opened")
    assert call("search", folder, *SEARCH, "--name=a") == 0
    final = [*SMALL, "--genotype=a", "--epochs=2"]
    assert call("train_final", folder, *final, "--name=final") == 0
    searching = stopped(search, folder, *SEARCH, "--name=part")
    return folder, searching, stopped(train_final, folder, *final, "--name=final-part")


@pytest.fixture
def runs(made, tmp_path, monkeypatch):
    shutil.copytree(made[0] / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def change(path, place, value):
    content = json.loads(path.read_text())
    *parents, last = place.split("/")
    functools.reduce(dict.__getitem__, parents, content)[last] = value
    path.write_text(json.dumps(content))


def test_a_running_search_shows_what_it_has_so_far_and_a_line_that_is_half_written_is_left_out(made, runs):
    running, part = made[1], nas.open_run("runs/part")
    assert repr(running).startswith("runs/part: search, 0 of 2 epochs, not finished, supernet accuracy ")
    assert repr(part).startswith("runs/part: search, 1 of 2 epochs, not finished, supernet accuracy ")
    assert (running.kind, running.table, running.accuracy) == ("search", [], None)
    assert running.genotype == part.genotype == nas.Genotype.load(runs / "part" / "genotype.json")
    assert [step for step, _ in running.curves["upper/accuracy"]] == [2]
    with (runs / "part" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "step": 5, "upper/acc')
    assert nas.open_run("runs/part").curves == part.curves
    for name in ("metrics.jsonl", "genotype.json", "checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (runs / "part" / name).unlink()  # a run that has just begun
    begun = nas.open_run(runs / "part")
    assert (begun.num_done, begun.genotype, begun.curves) == (0, None, {})


def test_a_finished_search_has_all_records_and_its_config(runs):
    run = nas.open_run("runs/a")
    assert run.is_finished
    assert run.config.supernet.num_nodes == 1
    lines = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    assert run.curves.keys() == set().union(*lines) - {"step"}
    for name, curve in run.curves.items():
        assert curve == [(line["step"], line[name]) for line in lines if name in line]
    with pytest.raises(InputError, match=r"runs/a: this is a run of search\.py"):
        run.network()
    change(runs / "a" / "config.json", "config/lower/epochs", 3)  # as --resume writes it
    assert repr(nas.open_run("runs/a")).startswith("runs/a: search, 2 of 3 epochs, not finished")


def test_a_trained_network_is_there_once_the_training_is_finished_and_with_more_epochs_no_more(made, runs):
    run = nas.open_run("runs/final")
    assert (run.kind, run.num_done, run.is_finished) == ("final training", 2, True)
    assert run.curves["test/accuracy"] == [(8, pytest.approx(run.accuracy))]
    network = run.network()
    assert not network.training
    assert network(torch.zeros(2, 1, 8, 8))[0].shape == (2, 10)
    for unfinished in (made[2], nas.open_run("runs/final-part")):
        assert (unfinished.is_finished, unfinished.accuracy) == (False, None)
        with pytest.raises(InputError, match=rf"final-part: not finished \({unfinished.num_done} of 2 epochs\); open"):
            unfinished.network()
    for path in (runs / "final").glob("checkpoint*"):
        path.unlink()  # to send the network elsewhere
    assert nas.open_run("runs/final").network()
    change(runs / "final" / "config.json", "config/training/epochs", 3)
    resumed = nas.open_run("runs/final")
    assert resumed.accuracy is None
    with pytest.raises(InputError, match="not finished"):
        resumed.network()


@pytest.fixture
def several(runs):
    """Two searches and a random cell, of which the random one is the best."""
    (runs / "m").mkdir()
    for name in ("m", "m/m-seed0", "m/m-seed1"):
        shutil.copytree(runs / "a", runs / name, dirs_exist_ok=True)
    for name in ("metrics.jsonl", "genotype.json", "checkpoint.safetensors", "checkpoint.previous.safetensors"):
        (runs / "m" / name).unlink()
    change(runs / "m" / "config.json", "config/selection/searches", 2)
    change(runs / "m" / "config.json", "config/run/name", "m")
    common = {"weights": 5, "multiply_adds": 9, "supernet_accuracies": (), "holdout_loss": 1.0}
    cells = [
        Candidate(seeds=seeds, names=names, genotype=text, random_seeds=(), holdout_accuracy=accuracy, **common)
        for seeds, names, text, accuracy in (
            ((), (HOSTILE,), nas.Genotype.load("DARTS_V2").to_text(), 0.75),
            ((0, 1), (), nas.Genotype.load(runs / "a" / "genotype.json").to_text(), 0.5),
        )
    ]
    content = {"format_version": TABLE_VERSION, "cells": [cell.model_dump() for cell in cells]}
    (runs / "m" / "table.json").write_text(json.dumps(content))
    return runs / "m", cells


def test_several_searches_have_their_table_and_the_best_cell_once_all_are_finished(several, no_pictures):
    folder, cells = several
    run = nas.open_run(folder)
    assert (run.kind, run.num_done, run.is_finished, run.table) == ("several searches", 2, True, cells)
    assert run.genotype == nas.Genotype.load("DARTS_V2")
    shown = run._repr_html_()
    assert "&lt;img" in shown
    assert "<img" not in shown
    assert "75.00 %" in shown
    change(folder / "config.json", "config/selection/export_searched", True)
    assert nas.open_run(folder).genotype.to_text() == cells[1].genotype
    change(folder / "table.json", "cells", [{}])
    with pytest.raises(InputError, match=r"^table runs/m/table\.json: cells\[0\]\.seeds: missing\.$"):
        nas.open_run(folder)
    shutil.copytree(folder.parent / "part", folder / "m-seed1", dirs_exist_ok=True)  # it searches again
    run = nas.open_run(folder)
    assert (run.num_done, run.is_finished, run.table, run.genotype) == (1, False, [], None)


def test_a_notebook_gets_pictures_or_else_lines_and_names_are_escaped(runs, monkeypatch):
    os.rename("runs/a", f"runs/{HOSTILE}")
    run = nas.open_run(f"runs/{HOSTILE}")
    lines = run._repr_html_()
    assert "--skip_connect--&gt; node 0" in lines or "--sep_conv_3x3--&gt; node 0" in lines
    monkeypatch.setattr(
        pictures, "_render", lambda source, suffix: b'<?xml?><svg width="100pt" height="8pt" viewBox=""/>'
    )
    drawn = run._repr_html_()
    assert drawn.count('width="65" viewBox=""/>') == 2
    assert "xml" not in drawn
    for shown in (lines, drawn):
        assert "&lt;img src=x" in shown
        assert "<img" not in shown


METRICS = "a/metrics.jsonl"
WRONG = [
    ("nowhere", None, "", "runs/nowhere: not a run folder."),
    ("a/config.json", None, "", "runs/a/config.json: not a run folder."),
    ("x" * 300, None, "", f"runs/{'x' * 300}: cannot be read (File name too long)."),
    ("a/cells", None, "", "runs/a/cells: not a run folder, because it has no config.json."),
    ("a", METRICS, '{"epoch": 1}\n', "runs/a/metrics.jsonl, line 1: step must be a whole number."),
    ("a", METRICS, '{"step": 1.5}\n', "runs/a/metrics.jsonl, line 1: step must be a whole number."),
    ("a", METRICS, '{"step": 1}\n{]\n', "runs/a/metrics.jsonl, line 2: is not a record; remove the line."),
    ("a", "a/genotype.json", "{}", "genotype runs/a/genotype.json: format_version: missing."),
    ("a", "a/config.json", "{}", "config runs/a/config.json: format_version: missing."),
    ("final", "final/accuracy.json", "{}", "accuracy runs/final/accuracy.json: format_version: missing."),
]


@pytest.mark.parametrize(("folder", "file", "content", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence(runs, folder, file, content, sentence):
    if file is not None:
        (runs / file).write_text(content)
    with pytest.raises(InputError) as raised:
        nas.open_run(runs / folder)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "genotype.json", "accuracy.json", "table.json"])
def test_a_link_is_not_followed(runs, name):
    path = runs / "final" / name
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    with pytest.raises(InputError, match=f"^runs/final/{name}: is a symbolic link"):
        nas.open_run(runs / "final")
