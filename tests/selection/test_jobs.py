"""Jobs with a script that does nothing but what a file tells it: it lives, dies and goes on within a second."""

import importlib.util
import multiprocessing
import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from nas.errors import InputError
from nas.runs.lock import take_lock
from nas.selection import jobs
from nas.selection.jobs import Job, in_turn, is_done, resources_of_job, run_job, runner

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path

folder = Path(sys.argv[2]) if sys.argv[1] == "--resume" else Path("runs", sys.argv[2])
folder.mkdir(exist_ok=True)
starts = folder.with_suffix(".starts")
number = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    print(f"{os.environ['OMP_NUM_THREADS']} threads:", *sys.argv[1:], file=file)

def save(steps, finished=False):
    progress = {"epochs": 2 * finished, "steps": steps, "bad_steps": steps * (move == "b")}
    manifest = {"config": {}, "data": "0" * 32, "genotype": "", "progress": progress, "elapsed_s": 1.0, "sizes": {}}
    header = json.dumps({"__metadata__": {"manifest": json.dumps(manifest | {"finished": finished})}}).encode()
    path = folder / "checkpoint.safetensors"
    path.with_suffix(".aside").write_bytes(len(header).to_bytes(8, "little") + header)
    os.replace(path.with_suffix(".aside"), path)

def stop(*_):
    save(number + 1)
    print("stopped: after a step.")
    sys.exit(143)

signal.signal(signal.SIGTERM, stop)
move = Path("moves").read_text()[number]
if move == "w":
    print("error: --x: wrong.", file=sys.stderr)
    sys.exit(2)
if move == "p":
    print(5000 * "x")
    sys.exit(1)
if move == "z":  # sleeps until it is asked to stop
    (folder / "asleep.aside").write_text(str(os.getpid()))
    os.rename(folder / "asleep.aside", folder / "asleep")
    time.sleep(60)
if move in "kfb":
    save(number + 1, finished=move == "f")
if move == "b":  # as after too many bad steps in a row
    sys.exit("stopped: 10 steps in a row were not finite.")
if move in "kd":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def make(tmp_path):
    """Makes a job in a folder; `moves` says what each start of the script does."""
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "runs").mkdir()

    def make_job(moves, name="a"):
        (tmp_path / "moves").write_text(moves)
        return Job(tmp_path / "script.py", Path("runs", name), Path("config.json"), 2, tmp_path)

    return make_job


def starts(job):
    return job.path.with_suffix(".starts").read_text().splitlines()


def test_what_dies_is_gone_on_with_as_long_as_it_gets_on(make, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    job = make("kdddkf")
    assert run_job(job) == (0, "")
    begun, resumed = (f"7 threads: --{flag} --config config.json" for flag in ("name a", "resume runs/a"))
    assert starts(job) == [begun] + 5 * [resumed]
    assert is_done(job)
    assert run_job(job) == (0, "")
    assert len(starts(job)) == 6


def test_a_job_beside_others_is_told_its_share_of_the_cores(make):
    job = make("f")
    assert run_job(job, threads=2) == (0, "")
    assert starts(job) == ["2 threads: --name a --config config.json"]


@pytest.mark.parametrize(
    ("moves", "num_starts", "how"),
    [
        ("dddddd", 4, "by SIGKILL: it printed nothing"),
        # Steps that were not applied are no progress; the first start has made a checkpoint.
        ("bbbbbb", 5, "with exit code 1: 10 steps in a row were not finite."),
    ],
)
def test_what_does_not_get_on_is_given_up(make, moves, num_starts, how):
    job = make(moves)
    assert run_job(job) == (1, f"runs/a ended 4 times in a row {how}")
    assert len(starts(job)) == num_starts


def test_a_full_disk_is_not_tried_again(make):
    job, unlimited = make("pppp"), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, unlimited[1]))
        with pytest.raises(OSError, match="File too large"):
            run_job(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert len(starts(job)) == 1


def test_wrong_input_is_not_tried_again_and_ends_the_others(make):
    job = make("wf")
    other = make("wf", "b")
    assert in_turn([job, other], lambda: None) == [(2, "--x: wrong.")]
    assert len(starts(job)) == 1
    assert not other.path.exists()


def asks_to_stop(job):
    def tick():
        if (job.path / "asleep").exists():
            raise KeyboardInterrupt

    return tick


def test_asked_to_stop_it_waits_for_the_script_and_goes_on_later(make):
    job = make("zf")
    with pytest.raises(KeyboardInterrupt):
        run_job(job, asks_to_stop(job))
    assert job.output.read_text() == "stopped: after a step.\n"
    assert not is_done(job)
    assert run_job(job) == (0, "")


def test_a_script_that_is_asked_to_stop_by_somebody_else_is_not_begun_again(make):
    job = make("z")
    asleep = job.path / "asleep"

    def tick():
        if asleep.exists():
            os.kill(int(asleep.read_text()), signal.SIGTERM)
            asleep.unlink()

    assert run_job(job, tick) == (143, "runs/a was asked to stop")


def test_a_run_folder_at_work_is_waited_for(make, monkeypatch):
    monkeypatch.setattr(jobs, "POLL_S", 0.01)
    job = make("f")
    job.path.mkdir()
    lock = take_lock(job.path)
    ticks = []

    def tick():
        ticks.append(job.path.with_suffix(".starts").exists())
        if len(ticks) == 5:
            lock.release()

    assert run_job(job, tick) == (0, "")
    assert ticks[:5] == 5 * [False]


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel of Linux for it")
def test_a_script_does_not_outlive_whoever_started_it(make):
    job = make("zf")
    driver = multiprocessing.get_context("fork").Process(target=run_job, args=(job,))
    driver.start()
    wait_until((job.path / "asleep").exists)
    driver.kill()
    driver.join()
    wait_until(lambda: job.output.read_text() == "stopped: after a step.\n")
    assert run_job(job) == (0, "")


def wait_until(there, timeout_s=60):
    end = time.monotonic() + timeout_s
    while not there():
        assert time.monotonic() < end
        time.sleep(0.02)


with_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")


@with_ray
def test_where_there_is_no_ray_one_sentence_says_so(monkeypatch):
    def too_slow(*_, **__):
        raise Exception("The current node timed out during startup.\nThis could happen because")

    def sentence(address):
        with pytest.raises(InputError) as error:
            runner(address, 1.0, "auto").__enter__()
        return str(error.value)

    assert sentence("127.0.0.1:1").startswith("--ray 127.0.0.1:1: cannot connect to Ray, or start it (")
    monkeypatch.setattr("ray.init", too_slow)
    why = "The current node timed out during startup."
    assert sentence("local") == f"--ray local: cannot connect to Ray, or start it ({why})."
    monkeypatch.setitem(sys.modules, "ray", None)
    assert sentence("local") == "--ray: the package ray is missing; install it with: pip install '.[ray]'"


@pytest.fixture
def in_the_background():
    """SIGINT is ignored, as in what a script begins with &, and in all that this begins."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@with_ray
def test_on_ray(make, in_the_background, monkeypatch, tmp_path):
    import ray

    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # which the share of a job goes before
    quota = tmp_path / "cpu.max"
    quota.write_text("100000 100000\n")  # of a container that may use one core
    monkeypatch.setattr("nas.machine.threads.CPU_MAX", quota)
    before = signal.getsignal(signal.SIGTERM)
    with runner("local", 0.5, "cpu") as run_all:
        assert ray.cluster_resources()["CPU"] == 1
        assert signal.getsignal(signal.SIGTERM) == before
        some = [make("kf", name) for name in "ab"]
        assert run_all(some, lambda: None) == []
        assert all(map(is_done, some))
        assert [len(starts(job)) for job in some] == [2, 2]
        assert all(line.startswith("1 threads: ") for job in some for line in starts(job))

        sleeping = make("zf", "c")
        with pytest.raises(KeyboardInterrupt):
            run_all([*some, sleeping], asks_to_stop(sleeping))
        assert sleeping.output.read_text() == "stopped: after a step.\n"
        assert [len(starts(job)) for job in (*some, sleeping)] == [2, 2, 1]

        wrong = make("w", "d")
        assert run_all([wrong], lambda: None) == [(2, "--x: wrong.")]


@with_ray
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of a process")
def test_jobs_share_a_gpu_of_a_cluster(make):
    """The GPU is one that Ray counts and hands out, and that nothing computes on."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 1})
    try:
        for share, at_once in ((0.5, 2), (1.0, 1)):
            some = [make("zf", f"{at_once}-at-once-{number}") for number in range(3)]
            seen: set[str] = set()

            def tick(some=some, seen=seen, at_once=at_once):
                asleep = [job.path / "asleep" for job in some if (job.path / "asleep").exists()]
                seen.update(Path(f"/proc/{file.read_text()}/environ").read_text() for file in asleep)
                assert len(asleep) <= at_once
                if len(asleep) == at_once:
                    time.sleep(2)  # in which one more would begin, if it might
                    assert sum((job.path / "asleep").exists() for job in some) == at_once
                    raise KeyboardInterrupt

            with runner(cluster.address, share, "auto") as run_all, pytest.raises(KeyboardInterrupt):
                run_all(some, tick)
            assert seen
            assert all("\0CUDA_VISIBLE_DEVICES=0\0" in environment for environment in seen)
    finally:
        cluster.shutdown()


def test_a_job_takes_a_share_of_a_gpu_where_there_is_one():
    mixed, two, four = [{"CPU": 16.0}, {"CPU": 8.0, "GPU": 2.0}], [{"CPU": 2.0}], [{"CPU": 4.0}]
    for nodes, share, device, threads, resources in (
        (mixed, 0.5, "auto", None, {"num_gpus": 0.5, "num_cpus": 0.0}),
        (mixed, 0.5, "auto", 32, {"num_gpus": 0.5, "num_cpus": 0.0}),
        (mixed, 4.0, "cpu", None, {"num_cpus": 4.0}),
        (two, 1.0, "auto", 2, {"num_cpus": 2}),
        (four, 3.0, "auto", 2, {"num_cpus": 3.0}),
        (two, 0.0003, "auto", None, {"num_cpus": 0.0003}),
        (two, 1 / 3, "auto", None, {"num_cpus": 0.3333}),  # what Ray counts is no finer
    ):
        assert resources_of_job(nodes, share, device, threads) == resources
    with pytest.raises(InputError, match="--threads 32: no node has as many cores; the largest has 16"):
        resources_of_job(mixed, 1.0, "cpu", threads=32)
    with pytest.raises(InputError, match="--devices-per-search 4: no node has as many; the largest has 2 GPU"):
        resources_of_job(mixed, 4.0, "auto")
