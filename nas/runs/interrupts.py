"""Ctrl-C and SIGTERM while a loop runs."""

import os
import signal
from types import FrameType
from typing import Self


class Interrupts:
    """A context in which the first SIGINT or SIGTERM asks the loop to stop after its step, and a second one raises.

    Attributes:
        received: number of the signal that asked to stop; None as long as none did.

    Raises:
        KeyboardInterrupt: at the second signal, wherever the program is.
    """

    def __enter__(self) -> Self:
        self.received: int | None = None
        self._handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nStopping after this step. Press Ctrl-C again to stop at once.\n")

    @property
    def exit_code(self) -> int:
        """The exit code by the convention of shells: 130 for Ctrl-C, 143 for SIGTERM or a signal to another process."""
        return 128 + (self.received or signal.SIGTERM)
