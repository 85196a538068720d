"""Items made ahead: in order, not too many, with their errors, and without a thread left."""

import threading

import pytest

from transformer_jax.training.prefetch import Prefetcher

SECONDS = 20  # that no wait here takes unless something is wrong


class Maker:
    """Makes numbers, each only once it is allowed; knows those that were begun."""

    def __init__(self, fails_at: int | None = None, allowed: int = 1000):
        self.fails_at, self.begun, self.threads = fails_at, [], set()
        self._allowed = threading.Semaphore(allowed)
        self._changed = threading.Condition()

    def __call__(self, number: int) -> int:
        with self._changed:
            self.begun.append(number)
            self.threads.add(threading.current_thread())
            self._changed.notify_all()
        assert self._allowed.acquire(timeout=SECONDS)
        if number == self.fails_at:
            raise OSError(f"item {number} is lost")
        return number

    def allow(self, items: int) -> None:
        self._allowed.release(items)

    def wait_for(self, number: int) -> None:
        """Until the item is begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: number in self.begun, SECONDS)


@pytest.mark.parametrize("depth", [1, 3])
def test_items_come_in_order_and_are_made_ahead_but_not_without_end(depth):
    maker = Maker()
    prefetcher = Prefetcher(maker, 5, depth)
    for taken in range(5, 15):
        maker.wait_for(taken + depth - 1)
        (thread,) = maker.threads
        thread.join(0.02)  # time for an item that would be begun too early
        assert maker.begun[-1] == taken + depth - 1
        assert prefetcher.next()[0] == taken
    prefetcher.close()
    assert maker.begun == list(range(5, 5 + len(maker.begun)))
    assert thread is not threading.current_thread() and not thread.is_alive()


def test_an_error_is_raised_where_its_item_is_asked_for_and_again():
    maker = Maker(fails_at=2)
    prefetcher = Prefetcher(maker, 0)
    assert [prefetcher.next()[0] for _ in range(2)] == [0, 1]
    for _ in range(3):
        with pytest.raises(OSError, match="item 2 is lost"):
            prefetcher.next()
    prefetcher.close()
    prefetcher.close()  # and once more
    assert not any(thread.is_alive() for thread in maker.threads)


def test_an_interrupt_inside_make_is_not_lost():
    def interrupted(_):
        raise KeyboardInterrupt

    prefetcher = Prefetcher(interrupted, 0)
    with pytest.raises(KeyboardInterrupt):
        prefetcher.next()
    prefetcher.close()


def test_closing_waits_for_the_item_in_the_making_and_begins_no_other():
    maker = Maker(allowed=0)
    prefetcher = Prefetcher(maker, 0)
    maker.wait_for(0)
    closing = threading.Thread(target=prefetcher.close, daemon=True)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    maker.allow(1)
    closing.join(SECONDS)
    assert not closing.is_alive() and maker.begun == [0]
    assert not any(thread.is_alive() for thread in maker.threads)


def test_waiting_is_measured(monkeypatch):
    """By a clock that moves only while an item is made that somebody waits for."""
    now, asked, waited = [100.0], threading.Event(), []

    def clock() -> float:
        asked.set()
        return now[0]

    monkeypatch.setattr("transformer_jax.training.prefetch.time.perf_counter", clock)
    maker = Maker(allowed=0)
    prefetcher = Prefetcher(maker, 0)
    asking = threading.Thread(target=lambda: waited.append(prefetcher.next()), daemon=True)
    asking.start()
    assert asked.wait(SECONDS)
    now[0] += 7.0
    maker.allow(2)
    asking.join(SECONDS)
    maker.wait_for(2)  # so that 1 is there
    waited.append(prefetcher.next())
    assert waited == [(0, 7.0), (1, 0.0)]
    maker.allow(100)
    prefetcher.close()
