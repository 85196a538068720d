"""Functions in processes of their own: one that dies takes nothing with it."""

import logging
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from transformer_jax.command_line import log_to_stderr

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
    if error:
        raise ChildError(error)
    return result


def _child(sender: Connection, function: Callable, arguments: tuple) -> None:
    log_to_stderr()
    try:
        sender.send(("", function(*arguments)))
    except KeyboardInterrupt:
        pass  # the parent has been interrupted as well
    except (ValueError, OSError) as error:
        sender.send((" ".join(str(error).split()), None))
    except Exception as error:
        traceback.print_exc()
        sender.send((f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", None))
