"""One run of a script: its config, its folder, its device, and the processes that share it."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import torch

from nas.config.flags import FinalConfig, SearchConfig, TrainedOn
from nas.data.datasets import Split, fingerprint
from nas.distributed import World
from nas.machine.threads import take_threads
from nas.runs.folder import RunFolder, folder_of_run, is_finished
from nas.runs.silent import SilentRun
from nas.training.steps import pick_device

Result = TypeVar("Result")


class Run:
    """Run is a run that is about to start, or to be resumed.

    Attributes:
        config: of the run.
        world: the processes that share each batch.
        path: the folder of the run.
        exported: the file that the genotype of a search is exported to.
        device: where it computes.
        notes: lines for the log on the threads and the images.
        fingerprint: of the images, once `check_images` was called.
        trained_on: of a final network alone: its images.
    """

    def __init__(
        self, config: SearchConfig | FinalConfig, world: World, path: Path, device: torch.device, notes: list[str]
    ):
        self.config, self.world, self.path, self.device, self.notes = config, world, path, device, notes
        self.exported = Path("genotypes", f"{path.resolve().name}.json")
        self.fingerprint = ""
        self.trained_on: TrainedOn | None = None
        self._folder: RunFolder | None = None

    @classmethod
    def open(
        cls, config: SearchConfig | FinalConfig, world: World, epochs: int, default_name: Callable[[], str]
    ) -> Self | None:
        """Choose folder, threads and device; a run that is resumed takes the lock of its folder.

        Args:
            epochs: that the run will have.
            default_name: returns the first part of the name of the folder, where no flag names it.

        Returns:
            None if nothing is left to do.

        Raises:
            InputError: the device, or the run to be resumed, cannot be had.
        """
        options = config.run
        path = Path(world.from_main(lambda: str(folder_of_run(options, default_name))))
        is_resumed = options.resume is not None
        (finished,) = world.any(world.is_main and is_resumed and is_finished(path, epochs))
        if finished:
            return None
        threads = take_threads(options, path, world)
        with world.raise_on_all():
            run = cls(config, world, path, pick_device(options.device, world), [threads])
            if options.deterministic:  # only then, as the call itself takes seconds to import what it sets
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else a GPU refuses matrix products
                torch.use_deterministic_algorithms(True)
            if world.is_main and is_resumed:
                run._folder = RunFolder.reopen(path, config)
        return run

    @property
    def is_resumed(self) -> bool:
        """Whether the run goes on from a checkpoint."""
        return self.config.run.resume is not None

    @property
    def started(self) -> str:
        """When a run that is resumed was begun, ISO 8601; empty in other processes than the main one."""
        return self._folder.started if self._folder else ""

    def load(self, read: Callable[[], Result]) -> Result:
        """Return what `read` returns; the processes of a machine call it one after another, as it may fill caches."""
        return self.world.local_first(read)

    def on_all(self, make: Callable[[], Result]) -> Result:
        """Return what `make` returns; what it raises in one process ends all of them."""
        with self.world.raise_on_all():
            return make()
        raise AssertionError("raise_on_all suppresses nothing")

    def on_main(self, make: Callable[[], str | None]) -> str:
        """Return the text that `make` returns in the main process; what it raises ends all processes."""
        return self.world.from_main(lambda: make() or "")

    def check_images(self, *splits: Split) -> None:
        """Take the fingerprint of the images, which a run keeps.

        Raises:
            InputError: a process has read other images than the main one.
        """
        self.fingerprint = fingerprint(*splits)
        self.world.check_same_images(self.fingerprint)

    def begin(self) -> RunFolder | SilentRun:
        """Return the folder of the run, made if the run is new; another process than the main one writes nothing.

        Raises:
            InputError: the folder exists already, or cannot be made.
        """
        with self.world.raise_on_all():
            if not self.world.is_main:
                return SilentRun(self.path, self.world.rank)
            return self._folder or RunFolder.create(self.path, self.config, self.trained_on)
        raise AssertionError("raise_on_all suppresses nothing")
