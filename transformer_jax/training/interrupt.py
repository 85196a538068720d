"""Ctrl-C and SIGTERM as a wish that the loop grants at the next safe place."""

import logging
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Work that may be abandoned was, because the user wishes to stop."""


class Interrupt:
    """Context in which the first SIGINT or SIGTERM is noted; a second SIGINT ends at once.

    In a thread other than the main one it notes nothing.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._old: dict[int, object] = {}

    def __enter__(self) -> "Interrupt":
        # Elsewhere Python takes no handlers: who started the thread decides when it ends.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logger.warning("%s: saving before the end; Ctrl-C again ends at once", self.signal.name)

    def check(self, *_) -> None:
        """Raises Interrupted if the user wishes to stop; takes what a callback is given."""
        if self.signal:
            raise Interrupted
