"""The folder of one run: its config, lock and log, its checkpoints, and its records."""

import contextlib
import dataclasses
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock
from PIL import Image
from rich.console import Console
from torch import Tensor

from nas import files
from nas.config.file import CONFIG_VERSION, MAY_CHANGE, ConfigFile, read_config
from nas.config.flags import FinalConfig, Run, SearchConfig, TrainedOn
from nas.errors import InputError, Stopped, count, printable
from nas.machine.environment import environment
from nas.runs import checkpoint
from nas.runs.checkpoint import LoopState, Manifest
from nas.runs.lock import refuse_links, take_lock
from nas.runs.metrics import Records
from nas.search_space.genotype import Genotype
from nas.search_space.genotype_file import Provenance

BITS_DEPEND_ON = ("versions", "num_threads", "num_processes")
# TensorBoard takes the columns of its table from any one of the runs: so all have all.
COMPARED = ("test/accuracy", "upper/accuracy", "upper/loss", "lower/accuracy", "train/accuracy")


def folder_of_run(options: Run, default: Callable[[], str]) -> Path:
    """Return the folder of --resume, else that of --run-dir and --name, else one named by `default`, seed and time."""
    if options.resume is not None:
        return Path(options.resume)
    name = options.name or f"{default()}-seed{options.seed}-{datetime.now():%Y%m%d-%H%M%S}"
    return Path(options.run_dir, name)


def is_finished(path: Path, epochs: int) -> bool:
    """Return whether a run has finished this many epochs; if so, a line says it."""
    manifest = checkpoint.finished(path)
    if manifest is None or not manifest.is_done(epochs):
        return False
    num_epochs = count(manifest.progress.epochs, "epoch")
    print(f"{path}: finished after {num_epochs}; resume it with a larger --epochs to train further.")
    return True


def require_new(path: Path) -> None:
    """Raise InputError if the folder of a new run exists, as it may hold another run."""
    if os.path.lexists(path):
        quoted = shlex.quote(str(path))
        raise InputError(f"--name {path.name}: {path} exists already; choose another --name, or --resume {quoted}.")


class RunFolder:
    """RunFolder is where one run writes, made by `create` or `reopen`; no other process writes there until `close`.

    As a context it ends in `Stopped` where the disk fails or Ctrl-C is pressed twice, with the command to go on.

    Attributes:
        path: the folder.
        started: when the run began, ISO 8601.
        go_on: the command that goes on with the run.
        saved_at: when the last checkpoint was written or read, by the monotonic clock.
        has_pictures: whether `draw` has made pictures, for which it takes Graphviz.
    """

    is_silent = False

    def __init__(self, path: Path, lock: FileLock, file: ConfigFile):
        self.path = path
        self.started: str = file.environment["date"]
        self.go_on = f"python {file.script} --resume {shlex.quote(str(path))}"
        self.saved_at = time.monotonic()
        # In a notebook each line would otherwise be an output of its own.
        self.console = Console(highlight=False, soft_wrap=True, force_jupyter=False)
        self._file = file
        self._lock = lock
        self._saved_step: int | None = None
        self._log = (path / "log.txt").open("a", encoding="utf-8", buffering=1)
        self._records: Records | None = None  # from `restore` on
        self._drawn: Genotype | None = None
        self.has_pictures = False

    @classmethod
    def create(
        cls,
        path: Path,
        config: SearchConfig | FinalConfig,
        trained_on: TrainedOn | None = None,
        fill: Callable[[Path], Any] = lambda folder: None,
    ) -> Self:
        """Make the folder of a new run, with its config.json, in one step.

        Args:
            path: a folder that exists is refused, as it may hold another run.
            fill: writes what else the folder holds from the start.

        Raises:
            InputError: the folder exists, or cannot be made.
        """
        require_new(path)
        file = ConfigFile(
            format_version=CONFIG_VERSION,
            config=_plain(config),
            trained_on=None if trained_on is None else dataclasses.asdict(trained_on),
            environment=environment(),
        )
        made = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            made.mkdir(parents=True)
            fill(made)
            files.write_json(made / "config.json", file.model_dump(exclude_defaults=True))
            os.rename(made, path)
            made = path
            return cls(path, take_lock(path), file)  # only now, as Windows renames no folder with an open file in it
        except BaseException as error:
            if made != path or not isinstance(error, InputError):  # then another process has taken the folder up
                shutil.rmtree(made, ignore_errors=True)
            if isinstance(error, OSError):
                raise InputError(f"--run-dir: {path} cannot be made ({error.strerror}).") from None
            raise

    @classmethod
    def reopen(cls, path: Path, config: SearchConfig | FinalConfig) -> Self:
        """Open the folder of a run to resume it.

        Args:
            config: with which it goes on; it replaces the one in config.json once `restore` has found nothing amiss.

        Raises:
            InputError: another process goes on with it, it holds a link, or it cannot be written.
        """
        refuse_links(path)
        file = read_config(path)
        now = {name: environment()[name] for name in ("command", "date", *BITS_DEPEND_ON)}
        file = file.model_copy(update={"config": _plain(config), "resumed": [*file.resumed, now]})
        try:
            lock = take_lock(path)
            files.remove_asides(path)
            return cls(path, lock, file)
        except OSError as error:
            raise InputError(f"--resume {path}: cannot be written ({error.strerror}).") from None

    def restore(self, tensors: Mapping[str, Tensor], data: str, genotype: str | None = None) -> LoopState:
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
                    f"--resume {self.path}: its checkpoints are gone, though {records} holds records; start a new run."
                )
            with self._stopped_by_failures():
                self._begin({}, 0.0)
                if self._file.resumed:
                    self.write_config()
                    self.log("there is no checkpoint yet: starting from the beginning")
            return LoopState()
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
            self.write_config()
            self._begin(manifest.sizes, manifest.elapsed_s)
            for problem in problems:
                self.log(f"{problem} Resuming from the previous checkpoint.")
            self.log(f"resumed after step {progress.steps}, {count(progress.epochs, 'epoch')} finished")
            for name, (before, now) in changed.items():
                if name != "threads":  # of which the number counts, not whether it was given
                    self.log(f"{name}: {before} before, {now} from here on")
            first, last = self._file.environment, self._file.resumed[-1]
            for name in BITS_DEPEND_ON:
                if first.get(name, 1) != last[name]:
                    self.log(f"{name} were {first.get(name)}, are {last[name]}: bits may differ")
        return progress

    def save(
        self, tensors: Mapping[str, Tensor], data: str, genotype: str, progress: LoopState, finished: bool = False
    ) -> None:
        """Write a checkpoint; arguments as in `checkpoint.Manifest`."""
        assert self._records is not None
        manifest = Manifest(
            config=self._file.config,
            data=data,
            genotype=genotype,
            progress=progress,
            elapsed_s=self.elapsed_s(),
            sizes=self._records.sizes(),
            finished=finished,
        )
        checkpoint.save(self.path, tensors, manifest)
        self._saved_step, self.saved_at = progress.steps, time.monotonic()

    def save_genotype(self, genotype: Genotype, provenance: Provenance) -> None:
        """Write genotype.json, replacing the file in one step."""
        genotype.save(self.path / "genotype.json", provenance)

    def draw(self, genotype: Genotype) -> None:
        """Draw the cells into cells/, if they are others than those that were drawn last."""
        if genotype != self._drawn:
            self.has_pictures, self._drawn = genotype.draw(self.path / "cells"), genotype

    def bad_step(self, progress: LoopState, problem: str) -> None:
        """Count a step that was not applied, and say why."""
        progress.bad_step()
        self.log(f"step {progress.steps} is not applied: {problem}")

    def write_config(self) -> None:
        """Replace config.json by the config with which the run is resumed."""
        files.write_json(self.path / "config.json", self._file.model_dump(exclude_defaults=True))

    def _begin(self, sizes: Mapping[str, int], elapsed_s: float) -> None:
        self._began = time.monotonic() - elapsed_s
        config = self._file.config
        flags = {
            name: value
            for group, values in config.items()
            for name, value in values.items()
            if (group not in ("run", "selection") or name == "seed") and value is not None
        }
        began = datetime.fromisoformat(self.started).timestamp()
        self._records = Records(self.path, sizes, began, flags, COMPARED, self.log)

    def log(self, line: str) -> None:
        """Print a line, and keep it in log.txt; control characters in it are escaped."""
        line = printable(line, 100_000)
        self.console.print(line, markup=False)
        self._keep(line)

    def _keep(self, line: str) -> None:
        self._log.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {line}\n")

    def elapsed_s(self) -> float:
        """Return the seconds that the run has taken, without those between a stop and a resume."""
        return time.monotonic() - self._began

    def record(self, epoch: int, step: int, scalars: Mapping[str, float]) -> None:
        """See `Records.write`."""
        assert self._records is not None
        self._records.write(epoch, step, self.elapsed_s(), scalars)

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Write a picture for TensorBoard."""
        assert self._records is not None
        self._records.picture(name, picture, step)

    def close(self) -> None:
        """Close all files, and release the lock."""
        for file in (self._log, self._records):
            with contextlib.suppress(OSError):  # on a full disk closing fails as writing did
                if file is not None:
                    file.close()
        self._lock.release()

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
        if self._records is None and self._saved_step is None:  # such as one of several searches
            return f"resume with: {self.go_on}"
        step = "no step" if self._saved_step is None else f"the checkpoint of step {self._saved_step}"
        return f"{step} is kept; resume with: {self.go_on}"


def _plain(config: SearchConfig | FinalConfig) -> dict[str, Any]:
    """Return a config as a dictionary, without the flags that only say how the run was started."""
    content = dataclasses.asdict(config)
    content["run"] |= {"resume": None, "config": None}
    return content
