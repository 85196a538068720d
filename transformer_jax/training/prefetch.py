"""Background prefetching of batches."""

import collections
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Prefetcher(Generic[Item]):
    """make(first), make(first + 1), ... in order, computed ahead by one background thread."""

    def __init__(self, make: Callable[[int], Item], first: int, depth: int = 3):
        """Starts to make the first `depth` items, and from then on one for each item taken."""
        self._make, self._next = make, first
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._futures: collections.deque[Future] = collections.deque()
        for _ in range(depth):
            self._submit()

    def _submit(self) -> None:
        self._futures.append(self._pool.submit(self._make, self._next))
        self._next += 1

    def next(self) -> tuple[Item, float]:
        """The next item and the seconds spent waiting for it; or the error of making it."""
        start = time.perf_counter()
        item = self._futures[0].result()  # stays the first after an error
        self._futures.popleft()
        self._submit()
        return item, time.perf_counter() - start

    def close(self) -> None:
        """Ends the thread, after the item that it is making."""
        self._pool.shutdown(cancel_futures=True)
