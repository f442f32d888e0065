"""The folder of one run: config.json, metrics.jsonl, TensorBoard's event files, log.txt; and its progress on screen."""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from PIL import Image
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from torch import Tensor

from nas import checkpoint, files
from nas.checkpoint import Manifest, Progress
from nas.config import CONFIG_VERSION, MAY_CHANGE, ConfigFile, FinalConfig, Run, SearchConfig, TrainedOn, read_config
from nas.environment import environment
from nas.errors import InputError, Stopped
from nas.event_file import EventFile
from nas.forecast import duration, outlook

PLAIN_LINE_EVERY_S = 60.0
TIMED_STEPS = 10
COMPARED = {"search": ("upper/accuracy", "upper/loss", "lower/accuracy"), "final": ("test/accuracy", "train/accuracy")}
EVENT_FILES = "events.out.tfevents.*"
_RECORD = TypeAdapter(dict[str, float])


def folder_of_run(options: Run, default: str) -> Path:
    """Of --resume, else of --run-dir and --name, else with a name of `default`, seed and time."""
    if options.resume is not None:
        return Path(options.resume)
    return Path(options.run_dir, options.name or f"{default}-seed{options.seed}-{datetime.now():%Y%m%d-%H%M%S}")


def is_finished(path: Path, epochs: int) -> bool:
    """Whether nothing of so many epochs is left to do in a run folder; if so, it is said."""
    manifest = checkpoint.finished(path)
    if manifest is None or manifest.progress.epochs < epochs:
        return False
    print(f"{path}: finished after {manifest.progress.epochs} epochs; --epochs with a larger number goes on.")
    return True


class RunFolder:
    """Where one run writes, made by `create` or `reopen`; nobody else writes there until `close`.

    As a context it ends in `Stopped` where the disk fails or Ctrl-C is pressed twice, with the command to go on.

    Attributes:
        path: the folder.
        started: when the run began, ISO 8601.
        go_on: the command that goes on with the run.
        saved_at: when the last checkpoint was written or read, by the monotonic clock.
    """

    def __init__(self, path: Path, lock: int, file: ConfigFile):
        self.path = path
        self.started: str = file.environment["date"]
        self.go_on = f"python {file.script} --resume {shlex.quote(str(path))}"
        self.saved_at = time.monotonic()
        self.console = Console(highlight=False, soft_wrap=True)
        self._file = file
        self._lock = lock
        self._saved_step: int | None = None
        self._log = (path / "log.txt").open("a", encoding="utf-8", buffering=1)
        self._open: list[TextIO | EventFile] = [self._log]

    @classmethod
    def create(cls, path: Path, config: SearchConfig | FinalConfig, trained_on: TrainedOn | None = None) -> Self:
        """Make the folder of a new run, with its config.json, in one step.

        Args:
            path: a folder that exists is refused, as it may hold another run.

        Raises:
            InputError: the folder exists, or cannot be made.
        """
        if os.path.lexists(path):
            raise InputError(f"--name {path.name}: {path} exists already; choose another --name, or --resume {path}.")
        file = ConfigFile(
            format_version=CONFIG_VERSION,
            config=_plain(config),
            trained_on=None if trained_on is None else dataclasses.asdict(trained_on),
            environment=environment(),
        )
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            aside.mkdir(parents=True)
            try:
                lock = _lock(aside)
                files.write_json(aside / "config.json", file.model_dump(exclude_defaults=True))
                os.rename(aside, path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return cls(path, lock, file)
        except OSError as error:
            raise InputError(f"--run-dir: {path} cannot be made ({error.strerror}).") from None

    @classmethod
    def reopen(cls, path: Path, config: SearchConfig | FinalConfig) -> Self:
        """Open the folder of a run to go on with it.

        Args:
            config: with which it goes on; it replaces the one in config.json once `restore` has found nothing amiss.

        Raises:
            InputError: another process goes on with it, it holds a link, or it cannot be written.
        """
        _refuse_links(path)
        file = read_config(path)
        now = {name: environment()[name] for name in ("command", "date", "versions", "num_threads")}
        file = file.model_copy(update={"config": _plain(config), "resumed": [*file.resumed, now]})
        try:
            lock = _lock(path)
            for name in ("config.json", "genotype.json", "weights.safetensors", "report.html", checkpoint.CURRENT):
                files.remove_asides(path / name)
            return cls(path, lock, file)
        except OSError as error:
            raise InputError(f"--resume {path}: cannot be written ({error.strerror}).") from None

    def restore(self, tensors: Mapping[str, Tensor], data: str, genotype: str | None = None) -> Progress:
        """Read the last checkpoint into the tensors of the run, and forget what was recorded after it.

        Args:
            data: fingerprint of the images.
            genotype: of the run, as text, where it is given from the start.

        Raises:
            InputError: no checkpoint can be read, all are gone, or it is of another config or of other images.
        """
        manifest, problems = checkpoint.load_newest(self.path, tensors)
        if manifest is None:
            records = self.path / "metrics.jsonl"
            if records.exists() and records.stat().st_size:  # the first checkpoint comes before the first record
                raise InputError(
                    f"--resume {self.path}: its checkpoints are gone, though {records} holds records; begin a new run."
                )
            with self._stopped_by_failures():
                self._begin({}, 0.0)
                if self._file.resumed:
                    self._write_config()
                    self.log("there is no checkpoint yet: from the start")
            return Progress()
        if manifest.data != data:
            raise InputError(
                f"--resume {self.path}: the images are not those of the run (fingerprint {data}, then {manifest.data})."
            )
        if genotype is not None and manifest.genotype != genotype:
            raise InputError(f"--resume {self.path}: genotype.json is not the genotype of the checkpoint.")
        changed = {
            name: (before, self._file.config.get(group, {}).get(name))
            for group, flags in manifest.config.items()
            for name, before in flags.items()
            if before != self._file.config.get(group, {}).get(name)
        }
        for name, (before, now) in changed.items():
            if name not in MAY_CHANGE:
                raise InputError(f"--resume {self.path}: {name} is {now} in config.json, {before} in the checkpoint.")
        progress = manifest.progress
        self._saved_step = progress.steps
        with self._stopped_by_failures():
            self._write_config()
            self._begin(manifest.sizes, manifest.elapsed_s)
            for problem in problems:
                self.log(f"{problem} Going on from the checkpoint before it.")
            self.log(f"resumed after step {progress.steps}, {progress.epochs} epochs finished")
            for name, (before, now) in changed.items():
                self.log(f"{name}: {before} until here, {now} from here on")
            first, last = self._file.environment, self._file.resumed[-1]
            for name in ("versions", "num_threads"):
                if first.get(name) != last[name]:
                    self.log(f"{name} were {first.get(name)}, are {last[name]}: bits may differ")
        return progress

    def save(
        self, tensors: Mapping[str, Tensor], data: str, genotype: str, progress: Progress, finished: bool = False
    ) -> None:
        """Write a checkpoint; arguments as in `checkpoint.Manifest`."""
        manifest = Manifest(
            config=self._file.config,
            data=data,
            genotype=genotype,
            progress=progress,
            elapsed_s=self.elapsed_s(),
            sizes=self._sizes(),
            finished=finished,
        )
        checkpoint.save(self.path, tensors, manifest)
        self._saved_step, self.saved_at = progress.steps, time.monotonic()

    def bad_step(self, progress: Progress, problem: str) -> None:
        """Count a step that was not applied, and say why."""
        progress.bad_step()
        self.log(f"step {progress.steps} is not applied: {problem}")

    def _write_config(self) -> None:
        files.write_json(self.path / "config.json", self._file.model_dump(exclude_defaults=True))

    def _begin(self, sizes: Mapping[str, int], elapsed_s: float) -> None:
        self._began = time.monotonic() - elapsed_s
        path = self.path / "metrics.jsonl"
        size = sizes.get("metrics.jsonl", 0)
        self._metrics = path.open("a", encoding="utf-8", buffering=1)
        self._open.append(self._metrics)
        if os.path.getsize(path) < size:
            self.log(f"{path} was cut or removed: what it held before step {self._saved_step} is incomplete.")
        else:
            os.truncate(path, size)
        found = {f"tensorboard/{file.name}": file for file in (self.path / "tensorboard").glob(EVENT_FILES)}
        complete = all(
            name in found and found[name].stat().st_size >= size
            for name, size in sizes.items()
            if name.startswith("tensorboard/")
        )
        for name, file in found.items():
            if complete and name in sizes:
                os.truncate(file, sizes[name])
            else:
                file.unlink()
        self._events = self._new_events()
        if not complete:
            self._restore_curves()

    def _restore_curves(self) -> None:
        """Write the scalars of metrics.jsonl into the event file."""
        path, started = self.path / "metrics.jsonl", datetime.fromisoformat(self.started).timestamp()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                values = _RECORD.validate_json(line)
                values.pop("epoch")
                step, time_s = int(values.pop("step")), values.pop("time_s")
            except (ValidationError, KeyError, ValueError):
                raise InputError(f"{path}, line {number}: not a record; remove the line.") from None
            self._events.scalars(values, step, started + time_s)
        self.log(
            f"{self._events.path.parent} was removed: its curves are those of metrics.jsonl, its pictures are lost."
        )

    def log(self, line: str) -> None:
        """Print a line, and keep it in log.txt."""
        self.console.print(line, markup=False)
        self._keep(line)

    def _keep(self, line: str) -> None:
        self._log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")

    def elapsed_s(self) -> float:
        """Seconds that the run has taken, without those between an end and going on."""
        return time.monotonic() - self._began

    def record(self, epoch: int, step: int, scalars: Mapping[str, float]) -> None:
        """One line in metrics.jsonl, and the same scalars in TensorBoard.

        Args:
            epoch: counted from 1.
            step: steps taken since the start of the run.
            scalars: by name, and what stands before a '/' groups them in TensorBoard; what is not finite is left out.
        """
        scalars = {name: value for name, value in scalars.items() if math.isfinite(value)}
        line = {"epoch": epoch, "step": step, "time_s": round(self.elapsed_s(), 3), **scalars}
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        if not self._renew_events():
            self._events.scalars(scalars, step)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """A picture in TensorBoard."""
        self._renew_events()
        self._events.picture(name, picture, step)

    def _renew_events(self) -> bool:
        """Whether TensorBoard's folder was deleted, and is there again with all that metrics.jsonl holds."""
        if not self._events.deleted:
            return False
        self._events.close()
        self._events = self._new_events()
        self._restore_curves()
        return True

    def _new_events(self) -> EventFile:
        events = EventFile(self.path / "tensorboard")
        self._open.append(events)
        flags = {
            name: value
            for group, values in self._file.config.items()
            if group != "run"
            for name, value in values.items()
        }
        flags["seed"] = self._file.config["run"]["seed"]
        known = {name: value for name, value in flags.items() if value is not None}
        events.flags(known, COMPARED["search" if self._file.trained_on is None else "final"])
        return events

    def _sizes(self) -> dict[str, int]:
        """Of the files that only grow, all of them on the disk by now."""
        self._renew_events()
        os.fsync(self._metrics.fileno())
        self._events.sync()
        paths = [self.path / "metrics.jsonl", *sorted((self.path / "tensorboard").glob(EVENT_FILES))]
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in paths if path.exists()}

    @contextlib.contextmanager
    def progress(self, num_steps: int, done: int, images_a_step: int) -> Iterator[Callable[[], None]]:
        """Hands out what to call after each step: on a terminal a bar with the time left, elsewhere a line a minute.

        On both there is a line, after a few steps, on how quick they are and when the last one will have been taken.

        Args:
            done: steps of `num_steps` that were taken before.
        """
        began = said = time.monotonic()
        step = done

        def advance() -> None:
            nonlocal began, said, step
            step += 1
            now = time.monotonic()
            if step == done + 1:
                began = said = now  # the first step of a process is slower than the others
            elif step == done + 1 + TIMED_STEPS and step < num_steps:
                self.log(outlook((now - began) / TIMED_STEPS, num_steps - step, images_a_step))
            elif not self.console.is_terminal and now - said >= PLAIN_LINE_EVERY_S:
                said = now
                left = (now - began) / (step - done - 1) * (num_steps - step)
                self.log(f"step {step} of {num_steps}, {duration(left)} left")

        if not self.console.is_terminal:
            yield advance
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("steps, time left"), TimeRemainingColumn())
        with Bar(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("", total=num_steps, completed=done)

            def advance_with_bar() -> None:
                advance()
                bar.advance(task)

            yield advance_with_bar

    def close(self) -> None:
        """Give the folder free."""
        for file in self._open:
            with contextlib.suppress(OSError):  # on a full disk closing fails as writing did
                file.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        try:
            with self._stopped_by_failures():
                if isinstance(error, Stopped):
                    self._keep(f"stopped: {error}")  # the script prints it
                if isinstance(error, OSError | KeyboardInterrupt | RuntimeError):
                    raise error
        finally:
            self.close()

    @contextlib.contextmanager
    def _stopped_by_failures(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = error.filename or self.path
            raise Stopped(f"{where}: {error.strerror or error}; {self._what_is_kept()}") from None
        except KeyboardInterrupt:
            raise Stopped(f"at once; {self._what_is_kept()}", 130) from None
        except RuntimeError as error:
            if "does not have a deterministic implementation" not in str(error):
                raise
            operation = str(error).partition(" ")[0]
            raise Stopped(
                f"{operation} is not deterministic; leave out --deterministic, or take --device cpu."
            ) from None

    def _what_is_kept(self) -> str:
        if not (self.path / "config.json").exists():
            return "the run folder is gone"
        step = "no step" if self._saved_step is None else f"the checkpoint of step {self._saved_step}"
        return f"{step} is kept; then go on: {self.go_on}"


def _plain(config: SearchConfig | FinalConfig) -> dict[str, Any]:
    """As a dictionary; how the run was begun or resumed is no part of it."""
    content = dataclasses.asdict(config)
    content["run"] |= {"resume": None, "config": None}
    return content


def _lock(path: Path) -> int:
    """Take the lock of a run folder, which ends with the process that holds it, however that ends."""
    descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise InputError(f"--resume {path}: process {holder} is at work in it; wait for it, or stop it.") from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _refuse_links(path: Path) -> None:
    """A run goes on writing into what it finds, and by a link that could be any file.

    Raises:
        InputError: there is a link in the folder, or something else that is neither a file nor a folder.
    """
    for parent, folders, names in os.walk(path):
        for entry in (Path(parent, name) for name in folders + names):
            if entry.is_symlink() or not (entry.is_dir() or (entry.is_file() and entry.stat().st_nlink == 1)):
                raise InputError(f"--resume {path}: {entry} is a link or no regular file; remove it.")
