"""Functions in processes of their own: one that dies takes nothing with it."""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from transformer_jax.cli import escape_unprintable, log_to_stderr

logger = logging.getLogger(__name__)


class ChildError(Exception):
    """What ended a child, in one sentence."""


def in_child(function: Callable, *arguments: Any) -> Any:
    """What a function of a module returns, run by a new process.

    An interruption of the parent is passed on as SIGTERM, and the child waited for.

    Raises:
      ChildError: it raised an exception, whose traceback has gone to stderr unless it was the
        user's to mend, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        error, result = receiver.recv()
    except EOFError:
        process.join()
        raise ChildError(f"its process died, with exit code {process.exitcode}") from None
    except BaseException:
        process.terminate()
        process.join()
        raise
    process.join()
    if error is not None:
        raise ChildError(error)
    return result


def _child(sender: Connection, function: Callable, arguments: tuple) -> None:
    escape_unprintable()
    log_to_stderr()
    # A terminal sends Ctrl-C to both; it is the parent's to pass on. As an exception, so that
    # temporary folders go; training notes both signals itself, and saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    error, result = None, None
    try:
        result = function(*arguments)
    except Exception as raised:
        text = " ".join(str(raised).split())
        error = text or type(raised).__name__
        if not isinstance(raised, ValueError | OSError):  # a defect of ours
            traceback.print_exc()
            error = f"{type(raised).__name__}: {text[:300]}"
    sender.send((error, result))


def _end_with_parent() -> None:
    """What a killed parent started ends as well, so that it can be started again."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
