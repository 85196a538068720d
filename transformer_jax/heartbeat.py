"""Signs of life from work that takes minutes without a word."""

import contextlib
import logging
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def heartbeat(what: str, seconds: float = 10.0) -> Iterator[None]:
    """Logs `what` and the time that it has taken, every `seconds` while the body runs."""
    start, done = time.monotonic(), threading.Event()

    def beat() -> None:
        while not done.wait(seconds):
            logger.info("%s: %.0f s", what, time.monotonic() - start)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
