"""What is planned for --time-budget: it fits, it grows with the time, it survives a slower machine and a kill."""

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.config.cli import parse
from nas.config.flags import FinalConfig, SearchConfig
from nas.config.values import seconds_of
from nas.errors import InputError
from nas.search_space.genotype import Genotype
from nas.selection import budget, clock, measure, protocol
from nas.selection.budget import Speed
from nas.selection.cells import Cell
from nas.selection.job_configs import final_job, training_jobs
from tests.in_process import TWO, call, in_this_process

START_S = 5.0


@functools.cache
def config_of(*flags):
    return parse(SearchConfig, ["--dataset=digits", "--train-final", "--name=b", *flags])


def speeds(per_cell_s, num_steps=400):
    """A machine on which an epoch takes so many seconds per cell of one channel."""
    return lambda stage, size: Speed(*size, per_cell_s * size[0] * size[1], START_S, num_steps)


def make(config, per_cell_s=0.1, slots=1):
    return budget.make(config, speeds(per_cell_s), slots, lambda line: None)


def total(plan):
    return sum(stage.planned_s for stage in plan.stages.values())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90m", 5400), ("8h", 28800), ("1.5h", 5400), ("2d", 172800), ("1h30m", 5400), ("8", 0), ("", 0)],
)
def test_times_as_people_write_them(text, seconds):
    assert seconds_of(text) == seconds


@given(
    minutes=st.integers(5, 20_000),
    per_cell_s=st.floats(0.001, 0.2),
    slots=st.integers(1, 8),
    space=st.sampled_from(["darts", "nas-bench-201"]),
    searches=st.sampled_from([1, 3]),
)
def test_a_plan_fits_into_its_time_and_its_flags_are_valid(minutes, per_cell_s, slots, space, searches):
    config = config_of("--time-budget=1h", f"--space={space}")
    selection = dataclasses.replace(config.selection, time_budget=f"{minutes}m", searches=searches)
    config = dataclasses.replace(config, selection=selection)
    try:
        plan = make(config, per_cell_s, slots)
    except InputError as error:
        assert str(error).startswith(f"--time-budget {minutes}m: too short; the least that this run would do")  # noqa: PT017
        return
    assert total(plan) <= 60 * minutes
    own = budget.planned(config, plan)
    assert searches in (1, own.selection.searches)  # 1 is the default, which leaves it open
    assert own.selection.searches + own.selection.random_baseline >= 2
    assert own.lower.epochs <= 50
    assert own.selection.final_epochs <= 600


def test_more_time_makes_it_larger_up_to_what_was_published():
    plans = [
        budget.planned(config, make(config)) for config in map(config_of, ["--time-budget=20m", "--time-budget=60d"])
    ]
    (small, large) = (plan.selection for plan in plans)
    assert (small.final_channels, small.final_cells) < (large.final_channels, large.final_cells) == (36, 20)
    assert (small.final_epochs, large.final_epochs, large.searches, large.random_baseline) == (
        small.final_epochs,
        600,
        4,
        4,
    )
    assert (plans[1].supernet.init_channels, plans[1].supernet.num_cells, plans[1].lower.epochs) == (16, 8, 50)
    assert large.candidates == ("DARTS_V2", "PC_DARTS_cifar")
    lines = budget.table(config_of("--time-budget=60d"), make(config_of("--time-budget=60d")))
    assert not lines[-1].startswith("There is no time for")
    lines = budget.table(config_of("--time-budget=20m"), make(config_of("--time-budget=20m")))
    assert "final training of the published size (36 channels, 20 cells)" in lines[-1]


def test_what_a_flag_says_is_not_planned():
    flags = [
        "--final-epochs=7",
        "--selection-channels=10",
        "--random-baseline=3",
        "--epochs=9",
        "--candidates",
        "DARTS_V1",
    ]
    config = config_of("--time-budget=5h", *flags)
    own = budget.planned(config, make(config))
    assert (own.selection.final_epochs, own.selection.selection_channels, own.selection.random_baseline) == (7, 10, 3)
    assert (own.lower.epochs, own.selection.candidates) == (9, ("DARTS_V1",))


def test_it_searches_by_the_preset_that_is_recommended():
    assert config_of("--time-budget=1h").run.preset == "robust"
    assert config_of("--time-budget=1h").upper.beta_decay > 0
    assert config_of("--time-budget=1h", "--preset=gaea").upper.relaxation == "simplex"
    assert config_of().run.preset == "darts"


def test_what_does_not_fit_into_memory_is_not_planned():
    def measure(stage, size):
        return speeds(0.001)(stage, size) if size[0] < 36 else None

    plan = budget.make(config_of("--time-budget=8h"), measure, 1, lambda line: None)
    assert plan.stages["final"].flags["selection"]["final_channels"] == 18


def test_the_final_training_takes_more_of_a_short_time():
    shares = []
    for minutes in (7, 2000):
        config = config_of(f"--time-budget={minutes}m")
        plan = make(config)
        shares.append(plan.stages["final"].planned_s / total(plan))
    assert 0.6 < shares[0] < 0.9
    assert shares[1] < 0.6


def test_no_half_of_the_cells_is_dropped_after_too_few_steps():
    config = config_of("--time-budget=10h")
    for num_steps, halving in ((4, False), (400, True)):
        plan = budget.make(config, speeds(0.1, num_steps), 1, lambda line: None)
        assert plan.stages["choice"].flags["selection"]["selection_halving"] == halving


def test_on_a_slower_machine_what_is_left_is_planned_anew(tmp_path):
    config = config_of("--time-budget=2h")
    plan = make(config)
    before = {name: stage.model_copy(deep=True) for name, stage in plan.stages.items()}
    assert clock.begin(config, plan, "search")[0].startswith("stage")
    plan.used_s += 2 * plan.stages["search"].planned_s
    lines = clock.begin(config, plan, "choice")
    assert re.match(r"the searches took \d:\d\d:\d\d; planned: \d:\d\d:\d\d. What is left:", lines[0])
    assert plan.stages["search"].flags == before["search"].flags  # as it has begun
    final = plan.stages["final"].flags["selection"]
    planned = before["final"].flags["selection"]
    assert final["final_epochs"] * final["final_channels"] < 0.95 * planned["final_epochs"] * planned["final_channels"]
    left = total(plan) - before["search"].planned_s
    assert plan.used_s + left <= plan.budget_s
    assert clock.begin(config, plan, "choice") == []  # a run that goes on


def whole_of_final(plan, config, tmp_path, monkeypatch, done, epochs_s):
    """Train in full while the run has so many epochs of these times; return the epochs of the jobs, and their flags."""
    jobs = []

    def run_jobs(some, what, watch=lambda: None):
        jobs.extend(some)
        flags.append(parse(FinalConfig, [f"--config={some[0].config}", "--name=x"]))
        watch()

    flags: list = []
    monkeypatch.setattr(clock, "num_epochs", lambda job: done)
    monkeypatch.setattr(clock, "seconds_of_epochs", lambda folder: epochs_s)
    monkeypatch.setattr(protocol, "read_run", lambda folder: {"test": {"accuracy": 0.5}})
    monkeypatch.setattr(protocol, "write_overview", lambda run: None)
    run = SimpleNamespace(path=tmp_path, log=lambda line: None)
    counted = clock.Clock(config, tmp_path)
    protocol.train_in_full(budget.planned(config, plan), tmp_path, run, run_jobs, counted, tmp_path / "x.json")
    return [job.epochs for job in jobs], flags


@pytest.mark.parametrize(("pace", "expected"), [(1.0, 1.03), (0.5, 2.06), (1.6, 0.62), (9.0, 0.5)])
def test_the_pace_of_the_first_epochs_settles_the_number_of_all(tmp_path, monkeypatch, pace, expected):
    config = config_of("--time-budget=2h")
    plan = make(config)
    for stage in plan.stages:
        clock.begin(config, plan, stage)
    plan.used_s = plan.budget_s * (1 - budget.RESERVE) - plan.stages["final"].planned_s
    final = plan.stages["final"].flags["selection"]
    epoch_s = pace * 0.1 * final["final_channels"] * final["final_cells"]
    done = max(2, math.ceil(0.15 * plan.stages["final"].planned_s / epoch_s))
    plan.used_s += done * epoch_s
    plan.save(tmp_path)
    last_s = [epoch_s] * (done - 1) + [5 * epoch_s]  # the first one was slow
    epochs, flags = whole_of_final(plan, config, tmp_path, monkeypatch, done, last_s)
    planned = final["final_epochs"]
    assert epochs[0] == planned // 2
    assert epochs[1] == pytest.approx(expected * planned, abs=0.04 * planned)
    assert (
        plan.used_s + (epochs[1] - done) * epoch_s < plan.budget_s or pace == 9
    )  # a run has no fewer than it began with
    assert flags[1].network == flags[0].network
    assert dataclasses.replace(flags[1].training, epochs=1) == dataclasses.replace(flags[0].training, epochs=1)
    again, _ = whole_of_final(plan, config, tmp_path, monkeypatch, done, last_s)  # after a kill
    assert again == [epochs[1]]


@pytest.mark.parametrize(("done", "num_known"), [(0, 0), (1, 1), (2, 1), (3, 3)])
def test_a_pace_that_is_not_known_settles_nothing(tmp_path, monkeypatch, done, num_known):
    config = config_of("--time-budget=2h")
    plan = make(config)
    plan.save(tmp_path)
    epochs, _ = whole_of_final(plan, config, tmp_path, monkeypatch, done, [1.0] * num_known)
    assert set(epochs) == {plan.stages["final"].flags["selection"]["final_epochs"] // 2}
    assert budget.Plan.load(tmp_path, config).final_epochs is None


def test_a_plan_with_the_most_epochs_can_have_fewer_if_the_pace_is_slow(tmp_path, monkeypatch):
    config = config_of("--time-budget=8h")
    plan = make(config)
    for stage in plan.stages:
        clock.begin(config, plan, stage)
    plan.stages["final"].flags["selection"]["final_epochs"] = config.selection.final_epochs
    plan.used_s = 0.5 * plan.budget_s
    plan.save(tmp_path)
    epochs, _ = whole_of_final(plan, config, tmp_path, monkeypatch, 100, [plan.budget_s / 800] * 100)
    assert epochs[0] == 300
    assert 300 < epochs[1] < 500


@pytest.mark.parametrize("flags", [["--time-budget=2h", "--final-epochs=7"], []])
def test_epochs_that_are_given_are_settled(tmp_path, monkeypatch, flags):
    config = config_of(*flags)
    plan = make(config_of("--time-budget=2h", *flags))
    plan.save(tmp_path)
    monkeypatch.setattr(budget, "planned", lambda config, plan: config)
    epochs, _ = whole_of_final(plan, config, tmp_path, monkeypatch, 3, [1e6] * 3)
    assert epochs == [config.selection.final_epochs]


def test_a_stage_that_was_quick_gives_its_time_to_the_next_ones_which_need_not_be_quick():
    config = config_of("--time-budget=2h")
    plan = make(config)
    clock.begin(config, plan, "search")
    plan.used_s += 0.3 * plan.stages["search"].planned_s
    clock.begin(config, plan, "choice")
    final = plan.stages["final"]
    size = final.flags["selection"]
    epoch_s = 0.1 * size["final_channels"] * size["final_cells"]  # as measured
    assert final.planned_s == pytest.approx(START_S + size["final_epochs"] * epoch_s)
    assert plan.used_s + plan.stages["choice"].planned_s + final.planned_s > 0.8 * plan.budget_s


def test_the_time_that_was_used_is_kept(tmp_path, monkeypatch):
    config = config_of("--time-budget=2h")
    make(config).save(tmp_path)
    now = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: now[0])
    first = clock.Clock(config, tmp_path)
    for _ in range(20):
        now[0] += 1
        first.tick()
    kept = budget.Plan.load(tmp_path, config).used_s  # the process is killed here
    assert 10 <= kept <= 20.1
    second = clock.Clock(config, tmp_path)
    now[0] += 5
    lines = []
    second.end(lines.append)
    assert budget.Plan.load(tmp_path, config).used_s == pytest.approx(kept + 5)
    assert lines == [f"used 0:00:{round(kept + 5):02} of the 2:00:00 of --time-budget"]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ([], "{"),
        ([], {"format_version": 1}),
        (["budget_s"], -1.0),
        (["budget_s"], 1e300),
        (["slots"], 10**9),
        (["speeds"], {}),
        (["speeds", "choice"], []),
        (["speeds", "final", 0, 2], 0.0),
        (["speeds", "final", 0, 2], math.nan),
        (["speeds", "final", 0, 3], -1.0),
        (["stages"], {}),
        (["stages", "later"], {"flags": {}, "planned_s": 1.0}),
        (["stages", "choice", "planned_s"], 0.0),
        (["stages", "search", "flags"], {"run": {}}),
        (["stages", "search", "flags", "selection"], {}),
        (["stages", "search", "flags", "selection", "searches"], "1"),
        (["stages", "search", "flags", "selection", "ray"], "elsewhere:1"),
        (["stages", "search", "flags", "lower", "epochs"], -1),
        (["stages", "search", "flags", "lower"], {"unknown": 1}),
    ],
)
def test_a_damaged_or_hostile_plan_is_one_sentence(tmp_path, place, value):
    config = config_of("--time-budget=2h")
    make(config).save(tmp_path)
    path = tmp_path / budget.FILE
    content = {"plan": json.loads(path.read_text())}
    inner = functools.reduce(lambda found, name: found[name], ["plan", *place][:-1], content)
    inner[["plan", *place][-1]] = value
    path.write_text(value if isinstance(value, str) and not place else json.dumps(content["plan"]))
    with pytest.raises(InputError, match=r"^plan .*plan\.json: (?!plan)"):
        budget.Plan.load(tmp_path, config)


SMALL = [
    "--dataset=digits",
    "--train-limit=60",
    "--batch-size=12",
    "--num-nodes=1",
    *TWO,
    "--train-final",
    "--searches=2",
]
SMALL += ["--init-channels=2", "--num-cells=1", "--selection-channels=2", "--selection-cells=1", "--final-channels=2"]
SMALL += ["--final-cells=1", "--epochs=1", "--selection-epochs=1", "--final-epochs=1", "--time-budget=5m"]


def test_a_whole_run_is_measured_and_planned(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(protocol, "runner", in_this_process(tmp_path))
    assert call("search", tmp_path, *SMALL, "--name=b") == 0
    out = capfd.readouterr().out
    assert re.search(r"measured for the searches: 2 channels, 1 cell, \d+\.\d s per epoch\n", out)
    assert re.search(r"\nsearches +2 searches +2 channels, 1 cell +1 +0:0\d:\d\d\n", out)
    log = (tmp_path / "runs" / "b" / "log.txt").read_text()
    assert re.search(r" the searches took 0:0\d:\d\d; planned: 0:0\d:\d\d. What is left:\n", log)
    assert re.search(r"used 0:0\d:\d\d of the 0:05:00 of --time-budget\n$", log)
    plan = budget.Plan.load(tmp_path / "runs" / "b")
    assert {name: len(found) for name, found in plan.speeds.items()} == {"search": 1, "choice": 1, "final": 1}
    assert all(speed.num_steps >= 1 and 0 < speed.epoch_s < 60 for (speed,) in plan.speeds.values())


@pytest.mark.parametrize(
    ("flags", "num_images", "batch_size"),
    [([], 9_999, 32), ([], 10_000, 64), (["--batch-size=48"], 9_999, 48), (["--preset=pc-darts"], 9_999, 256)],
)
def test_where_there_are_few_images_so_are_those_of_a_batch_in_all_stages(monkeypatch, flags, num_images, batch_size):
    monkeypatch.setattr(measure, "dry_run_of", lambda config, *_: pytest.fail(f"measured {config.lower.batch_size}"))
    config = config_of("--time-budget=1h", *flags)
    with pytest.raises(pytest.fail.Exception, match=f"^measured {batch_size}$"):
        measure.make_plan(config, num_images, Path("."), lambda jobs, tick: [], lambda line: None)
    plan = budget.make(
        dataclasses.replace(config, lower=dataclasses.replace(config.lower, batch_size=batch_size)),
        speeds(0.1),
        1,
        lambda line: None,
    )
    assert budget.planned(config, plan).lower.batch_size == batch_size


@pytest.mark.parametrize(
    ("epochs", "drop_path", "cutout"),
    [(12, 0.004, 0), (99, 0.033, 0), (300, 0.1, None), (600, 0.2, None), (900, 0.2, None)],
)
def test_a_planned_training_of_few_epochs_hides_less_of_the_images(tmp_path, monkeypatch, epochs, drop_path, cutout):
    monkeypatch.chdir(tmp_path)
    cell = Cell(Genotype.random(0), tmp_path / "a.json", random_seeds=[0])
    for planned, expected in ((["--time-budget=1h"], (drop_path, cutout, 64)), ([], (0.2, None, 96))):
        flags = [*planned, f"--final-epochs={epochs}", f"--selection-epochs={epochs}"]
        config = config_of(*flags)
        jobs = [final_job(config, tmp_path, tmp_path, cell.file), *training_jobs(config, tmp_path, tmp_path, cell, 3)]
        for job in jobs:
            trained = parse(FinalConfig, [f"--config={job.config}", "--name=c"])
            found = trained.network.drop_path, trained.training.cutout, trained.training.batch_size
            assert found == (pytest.approx(expected[0]), *expected[1:])


def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(protocol, "runner", in_this_process(tmp_path))
    monkeypatch.setattr(protocol, "make_plan", lambda config, *_: make(config))
    assert call("search", tmp_path, *SMALL, "--dry-run") == 0
    assert re.search(r"\nin all +0:00:\d\d of the 0:0\d:\d\d that are left\n", capfd.readouterr().out)
    assert list(tmp_path.iterdir()) == []
