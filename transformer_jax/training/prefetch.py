"""What the next steps need, made by a thread of its own while a step runs."""

import queue
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """Items `first`, `first` + 1, ... in order, some of them made before they are asked for."""

    def __init__(self, make: Callable[[int], Item], first: int, depth: int = 2):
        """
        Args:
          make: the item of a number; called in the thread alone.
          first: number of the first item.
          depth: most items that wait; the thread rests while there are so many.
        """
        self._ready: queue.Queue = queue.Queue(depth)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(make, first), daemon=True)
        self._thread.start()

    def _run(self, make: Callable[[int], Item], number: int) -> None:
        while not self._closed.is_set():
            try:
                made = make(number), None
            except BaseException as error:  # to be raised where the item is asked for
                made = None, error
            self._ready.put(made)
            if made[1]:
                return
            number += 1

    def next(self) -> tuple[Item, float]:
        """The next item, and the seconds that it was waited for; or what `make` raised."""
        start = time.perf_counter()
        item, error = self._ready.get()
        if error:
            self._ready.put((None, error))  # for whoever asks again
            raise error
        return item, time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread, and waits for it."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.01)  # the thread may wait for room
            except queue.Empty:
                self._thread.join(timeout=0.01)
