"""The loop that both scripts share: resumed, guarded, recorded, saved and stopped, on every process alike."""

import contextlib
import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from nas.data.loader import Batch, Loader
from nas.data.sampler import generator
from nas.errors import Stopped
from nas.runs.checkpoint import LoopState
from nas.runs.interrupts import Interrupts
from nas.runs.progress_bar import outlook, progress_bar
from nas.search_space.genotype import Genotype
from nas.training.run import Run
from nas.training.steps import rollback_if_not_finite, scalars_to_host, seconds_of_step

RECORD_EVERY_STEPS = 10
TakeStep = Callable[..., Mapping[str, Tensor]]


class Loop:
    """Loop runs the steps and epochs of a run.

    As a context it owns the run folder, the signals and the progress bar. It begins by making the folder, or by reading
    the last checkpoint, and ends, where nothing was raised, with a checkpoint that says that the run is finished.

        with loop:
            for epoch in loop.epochs():  # each ends with a checkpoint
                for step in loop.steps():  # each ends with a checkpoint, if one is due
                    loop.take(take_step, loader.batch(step), rates={"lower/learning_rate": 0.025})

    Args:
        run: that begins or goes on.
        tensors: that a step moves, by name.
        genotype: the one that is trained, or a function that derives it as it is now.
        num_epochs: of the whole run.
        loaders: from which the batches of a step come.
        level: begins the names of the scalars of a step, such as lower/step_loss, that an epoch averages.
        rate_flag: the flag of the learning rate, which is the likely cause of a step that is not finite.
        notes: lines for the log.

    Attributes:
        state: where the run is.
        folder: the run folder, or what stands for it in other processes than the main one.
        status: shown beside the accuracy on the progress bar.
    """

    def __init__(
        self,
        run: Run,
        tensors: Mapping[str, Tensor],
        genotype: Genotype | Callable[[], Genotype],
        num_epochs: int,
        loaders: Sequence[Loader],
        level: str,
        rate_flag: str,
        notes: Sequence[str] = (),
    ):
        self.run, self.tensors, self.num_epochs = run, tensors, num_epochs
        self.notes = [*run.notes, *notes]
        self.state = LoopState()
        self._loaders, self._level, self._rate_flag = loaders, level, rate_flag
        self.status = ""
        self._genotype = genotype
        self._steps_per_epoch = loaders[0].num_batches
        self._images_per_step = sum(loader.batch_size for loader in loaders)
        self._options = run.config.run
        self._recent_began, self._recent_images = time.monotonic(), 0

    @property
    def genotype(self) -> Genotype:
        """The genotype as it is now."""
        return self._genotype if isinstance(self._genotype, Genotype) else self._genotype()

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.num_epochs * self._steps_per_epoch

    def rehearse(self, take_step: TakeStep, notes: Sequence[str] = (), runs: int = 1) -> None:
        """Take a few steps, and print what a run would do and how long it would take.

        Args:
            take_step: as in `take`.
            notes: further lines.
            runs: number of runs, one after another.

        Raises:
            InputError: a step is not finite; the flag that is the likely cause is named.
        """
        with self.run.world.raise_on_all():
            batches = [loader.batch(0) for loader in self._loaders]
            step_s = seconds_of_step(
                lambda: scalars_to_host(take_step(*batches), self.tensors), self.tensors, self._blame
            )
        self.run.world.print(*self.notes, *notes, outlook(step_s, runs * self.num_steps, self._images_per_step))

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self.folder = stack.enter_context(self.run.begin())
            self._interrupts = stack.enter_context(Interrupts())
            self._restore()
            for line in self.notes:
                self.folder.log(line)
            runs = shlex.quote(str(self.run.path.parent))
            self.folder.log(f"{self.folder.path}: tensorboard --logdir {runs} shows the run while it trains")
            self.folder.draw(self.genotype)
            if self.state.steps == 0:
                self.save()
            stack.push(self._finish)
            self._bar = stack.enter_context(contextlib.ExitStack())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(kind, error, traceback)

    def epochs(self) -> Iterator[int]:
        """Yield the number of each epoch that is left, counted from 0; each ends with a checkpoint."""
        self._advance = self._bar.enter_context(
            progress_bar(
                self.folder.console,
                self.folder.log,
                self.num_steps,
                self.state.steps,
                self._images_per_step,
                self.folder.go_on,
            )
        )
        for epoch in range(self.state.epochs, self.num_epochs):
            if self.state.ended_early:
                break
            if self.state.steps == epoch * self._steps_per_epoch:
                self.state.begin_epoch(self.folder.elapsed_s())
            self._recent_began, self._recent_images = time.monotonic(), 0
            yield epoch
            self.state.epochs = epoch + 1
            self.save()
        self._bar.close()

    def steps(self) -> Iterator[int]:
        """Yield the number of each step that is left in the epoch, counted from 0 over all epochs."""
        for step in range(self.state.steps, (self.state.epochs + 1) * self._steps_per_epoch):
            yield step
            self.poll(due=time.monotonic() - self.folder.saved_at >= 60 * self._options.checkpoint_minutes)
            self._advance(f"{self.state.status(self._level)}{self.status}")

    def end_early(self, why: str) -> None:
        """End the run with this epoch; `why` is logged."""
        self.state.ended_early = True
        self.folder.log(f"the search ends with this epoch: {why}")

    def take(self, take_step: TakeStep, *batches: Batch, rates: Mapping[str, float], record: bool = False) -> None:
        """Take a step on batches, and record it; a step that is not finite is undone, and counted.

        Args:
            take_step: moves the models, and returns the scalars of the step by name, each of shape (), on the device.
                `num_correct` among them is the number of correct answers to the first batch.
            rates: what the schedules say, by the name that they are recorded by.
            record: whether to record the step whatever its number.

        Raises:
            Stopped: too many steps in a row were not finite.
        """
        scalars: dict[str, float] = {}
        # What a step draws depends on its number alone, so that a run that is resumed draws the same.
        torch.manual_seed(generator("step", self._options.seed, self.state.steps).initial_seed())
        try:
            with rollback_if_not_finite(self.tensors):
                scalars = scalars_to_host(take_step(*batches), self.tensors)
            num_correct = scalars.pop("num_correct")
            self.state.good_step(scalars[f"{self._level}/step_loss"], num_correct, batches[0].size)
            losses = {name: value for name, value in scalars.items() if name.endswith("/step_loss")}
            self.state.track_max({f"{name}_max": value for name, value in losses.items()})
        except FloatingPointError as error:
            which = "; ".join(batch.describe() for batch in batches)
            self.folder.bad_step(self.state, f"{error} {which}")
            if self.state.bad_steps_in_a_row >= self._options.max_bad_steps:
                self.save()
                raise Stopped(self._too_many_bad_steps(error)) from None
        self._recent_images += sum(batch.size for batch in batches)
        if record or (self.state.steps - 1) % RECORD_EVERY_STEPS == 0:
            speed = self._recent_images / (time.monotonic() - self._recent_began)
            recorded = scalars | dict(rates) | {"speed/images_per_s": speed} | self.state.pop_max()
            self.folder.record(self.state.epochs + 1, self.state.steps, recorded)
            self._recent_began, self._recent_images = time.monotonic(), 0

    def poll(self, due: bool = False) -> None:
        """Write a checkpoint if one is due, or if a signal asks to stop.

        Raises:
            Stopped: a signal has asked to stop, in whichever process.
        """
        asked, due = self.run.world.any(self._interrupts.received is not None, due)
        if asked or due:
            self.save()
        if asked:
            raise Stopped(
                f"after step {self.state.steps}; resume with: {self.folder.go_on}", self._interrupts.exit_code
            )

    def save(self, finished: bool = False) -> None:
        """Write a checkpoint, after comparing all processes."""
        self.run.world.check_identical(self.tensors)
        self.folder.save(self.tensors, self.run.fingerprint, self.genotype.to_text(), self.state, finished)

    def _restore(self) -> None:
        """Read the last checkpoint in the main process, and copy it to the others."""
        world = self.run.world
        given = self._genotype.to_text() if isinstance(self._genotype, Genotype) else None

        def restore() -> str:
            return json.dumps(dataclasses.asdict(self.folder.restore(self.tensors, self.run.fingerprint, given)))

        state = world.from_main(restore)
        world.copy_from_main(list(self.tensors.values()))
        self.state = LoopState(**json.loads(state))

    def _finish(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.save(finished=True)

    def _blame(self, error: FloatingPointError) -> str:
        return "--alpha-lr" if "alpha" in str(error) else self._rate_flag

    def _too_many_bad_steps(self, error: FloatingPointError) -> str:
        number = self.state.bad_steps_in_a_row
        several = f"{number} steps in a row were not finite, the last one"
        which = "the last step was not finite," if number == 1 else several
        return (
            f"{which} because {error} Start a new run with a smaller "
            f"{self._blame(error)}; the checkpoint of this run holds the last good state."
        )
