"""Functions in processes of their own: one that dies takes nothing with it."""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from transformer_jax import allocator, interruption
from transformer_jax.cli import escape_unprintable, log_to_stderr


class ChildError(ValueError):
    """What ended a child, in one sentence."""


def in_child(function: Callable, *arguments: Any) -> Any:
    """What a function of a module returns, called by a new process that the caller's end ends.

    Raises:
      ChildError: it raises an exception, whose traceback goes to stderr unless it is the user's
        to mend, or its process dies.
      Interrupted: a signal came, which has been passed on.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments))
    process.start()
    sender.close()
    with interruption.noted() as stop:
        while not receiver.poll(0.1):
            if stop.signal:  # the child may save before it ends
                process.terminate()
                process.join()
                stop.check()
        try:
            error, result = receiver.recv()
        except EOFError:
            error = ""
        process.join()
    error = error or process.exitcode and f"its process died, with exit code {process.exitcode}"
    if error:
        raise ChildError(error)
    return result


def _child(sender: Connection, function: Callable, arguments: tuple) -> None:
    allocator.share_arena()
    escape_unprintable()
    log_to_stderr()
    for number in interruption.NUMBERS:  # a terminal sends them to the parent too
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interruption.end_on_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    error, result = "", None
    try:
        result = function(*arguments)
    except Exception as raised:
        text = " ".join(str(raised).split())
        error = text or type(raised).__name__
        if not isinstance(raised, ValueError | OSError):
            traceback.print_exc()
            error = f"{type(raised).__name__}: {text[:300]}"
    sender.send((error, result))


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
