"""Signals that ask a process to end: obeyed at once, or noted by a run that has to save first.

Python runs a signal's handler between two instructions of the main thread: not while XLA compiles,
and what a handler raises within a callback of the garbage collector is lost. So commands read the
signals in a thread of their own, from a pipe that the interpreter writes them to.
"""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from signal import Signals
from types import FrameType

logger = logging.getLogger(__name__)

# Ctrl-C; a scheduler's end; a closed terminal; Slurm's --signal, ahead of the end.
NUMBERS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


class Interrupted(Exception):
    """Raised to abort an evaluation that a signal interrupts."""


class Stop:
    """The first signal that has come, in `signal`; `plan` is what comes before the end."""

    def __init__(self, plan: str = "saving"):
        self.signal: Signals | None = None
        self.plan = plan

    def note(self, number: int) -> None:
        """Notes a signal."""
        self.signal = Signals(number)
        sentence = "%s: %s before the end; a second signal ends at once"
        logger.warning(sentence, self.signal.name, self.plan)

    def check(self, *_) -> None:
        """Raises Interrupted once a signal has come; takes the arguments of any callback."""
        if self.signal:
            raise Interrupted


_stop: Stop | None = None  # of a run that saves before it ends
_pipe: tuple[int, int] | None = None  # to a command's thread
_undo: list[Callable[[], None]] = []


def end_on_signals(status: int = 0) -> None:
    """From now on a signal ends this process, a command, at once, unless it is `noted`.

    Args:
      status: of the exit after a first signal, when the same command goes on; 0 = as after a
        second one, 128 + its number.
    """
    global _pipe
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)
        threading.Thread(target=_watch, args=(_pipe[0], status), daemon=True).start()
    signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    for number in _obeyed():
        signal.signal(number, _leave_to_thread)


def _leave_to_thread(number: int, frame: FrameType | None) -> None:
    """The handler of a signal that the interpreter writes to the pipe."""


def _obeyed() -> list[Signals]:
    """The signals that are not ignored, as nohup does with SIGHUP."""
    return [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]


def _watch(reader: int, status: int) -> None:
    while True:
        number = os.read(reader, 1)[0]
        if number not in NUMBERS:
            continue
        stop = _stop
        if stop and not stop.signal:
            stop.note(number)
        else:
            _end(Signals(number), 0 if stop else status)


def _end(number: Signals, status: int) -> None:
    """Ends the process: no handler, no finally, no thread that compiles can hinder it."""
    for undo in reversed(_undo):
        with contextlib.suppress(Exception):
            undo()
    how = "; the same command goes on" if status else ""
    with contextlib.suppress(OSError):  # a terminal that is closed, a pipe that nobody reads
        os.write(2, f"\nstopped by {number.name}{how}\n".encode())
    os._exit(status or 128 + number)


@contextlib.contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Has `undo` called where a signal ends the process within the body."""
    _undo.append(undo)
    try:
        yield
    finally:
        _undo.remove(undo)


@contextlib.contextmanager
def noted(plan: str = "saving") -> Iterator[Stop]:
    """The first signal within the body is noted, for the body to end soon.

    In a thread other than the main one of a program that imports the package, none are.
    """
    global _stop
    stop, handlers = Stop(plan), {}

    def restore() -> None:
        for number, handler in handlers.items():
            signal.signal(number, handler)

    def note(number: int, frame: FrameType | None) -> None:
        restore()  # so that a second signal does what it would do without us
        stop.note(number)

    if any(signal.getsignal(number) is _leave_to_thread for number in NUMBERS):
        _stop = stop
    elif threading.current_thread() is threading.main_thread():
        handlers = {number: signal.signal(number, note) for number in _obeyed()}
    try:
        yield stop
    finally:
        _stop = None
        restore()
