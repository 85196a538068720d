"""Graceful shutdown: defers SIGINT and SIGTERM to the next step boundary."""

import logging
import signal
import threading
from types import FrameType

logger = logging.getLogger(__name__)


class Interrupted(Exception):
    """Raised to abort an evaluation that a signal interrupts."""


class GracefulShutdown:
    """Context that notes the first SIGINT or SIGTERM in `signal`.

    A second SIGINT raises KeyboardInterrupt at once. In a thread other than the main one,
    where Python takes no handlers, it notes nothing.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._handlers: dict[int, object] = {}

    def __enter__(self) -> "GracefulShutdown":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
        logger.warning("%s: saving before the end; Ctrl-C again ends at once", self.signal.name)

    def check(self, *_) -> None:
        """Raises Interrupted once a signal has come; takes the arguments of any callback."""
        if self.signal:
            raise Interrupted
