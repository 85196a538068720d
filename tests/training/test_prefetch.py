"""Items made ahead: in order, not too many, with their errors, and without a thread left."""

import threading

import pytest

from transformer_jax.training.prefetch import Prefetcher

SECONDS = 20  # that no wait here takes unless something is wrong


class Maker:
    """Makes numbers, each only once it is allowed; says when it begins."""

    def __init__(self, fails_at: int | None = None):
        self.fails_at, self.begun, self.threads = fails_at, [], set()
        self._allowed = threading.Semaphore(0)
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

    @property
    def thread(self) -> threading.Thread:
        (thread,) = self.threads
        return thread


def closed(prefetcher: Prefetcher, maker: Maker) -> bool:
    """Closes it in a thread, which need not come to an end; whether both do."""
    closing = threading.Thread(target=prefetcher.close, daemon=True)
    closing.start()
    closing.join(SECONDS)
    return not closing.is_alive() and not maker.thread.is_alive()


def test_items_come_in_order_from_the_first_on():
    maker = Maker()
    maker.allow(100)
    prefetcher = Prefetcher(maker, 5)
    assert [prefetcher.next()[0] for _ in range(20)] == list(range(5, 25))
    prefetcher.close()
    assert maker.begun == list(range(5, 5 + len(maker.begun)))
    assert maker.thread is not threading.current_thread()


@pytest.mark.parametrize("depth", [1, 3])
def test_items_are_made_ahead_but_not_without_end(depth):
    maker = Maker()
    maker.allow(1000)
    prefetcher = Prefetcher(maker, 0, depth)
    for taken in range(4):
        maker.wait_for(taken + depth)  # one more than wait, in the thread's hands
        # What is begun too early is there once the thread has had time for it.
        maker.thread.join(0.05)
        assert maker.begun[-1] == taken + depth
        assert prefetcher.next()[0] == taken
    prefetcher.close()


def test_an_error_is_raised_where_its_item_is_asked_for_and_again():
    maker = Maker(fails_at=2)
    maker.allow(100)
    prefetcher = Prefetcher(maker, 0)
    maker.wait_for(2)
    assert [prefetcher.next()[0] for _ in range(2)] == [0, 1]
    for _ in range(3):
        with pytest.raises(OSError, match="item 2 is lost"):
            prefetcher.next()
    assert maker.begun == [0, 1, 2]
    assert closed(prefetcher, maker)


def test_an_interrupt_inside_make_is_not_lost():
    def interrupted(_):
        raise KeyboardInterrupt

    prefetcher = Prefetcher(interrupted, 0)
    with pytest.raises(KeyboardInterrupt):
        prefetcher.next()
    prefetcher.close()


def test_closing_ends_a_thread_that_waits_for_room():
    maker = Maker()
    maker.allow(100)
    prefetcher = Prefetcher(maker, 0, depth=2)
    maker.wait_for(2)
    maker.thread.join(0.05)
    assert maker.thread.is_alive()
    assert closed(prefetcher, maker)
    assert len(maker.begun) <= 5


def test_closing_waits_for_the_item_in_the_making_and_begins_no_other():
    maker = Maker()
    prefetcher = Prefetcher(maker, 0)
    maker.wait_for(0)
    closing = threading.Thread(target=prefetcher.close, daemon=True)
    closing.start()
    assert prefetcher._closed.wait(SECONDS)
    assert closing.is_alive()
    maker.allow(1)
    closing.join(SECONDS)
    assert not closing.is_alive() and not maker.thread.is_alive()
    assert maker.begun == [0]


@pytest.mark.parametrize("asked", [False, True])
def test_closing_after_an_error(asked):
    maker = Maker(fails_at=0)
    maker.allow(1)
    prefetcher = Prefetcher(maker, 0)
    maker.wait_for(0)
    if asked:
        with pytest.raises(OSError, match="lost"):
            prefetcher.next()
    assert closed(prefetcher, maker)
    prefetcher.close()  # and once more


def test_waiting_is_measured(monkeypatch):
    """By a clock that moves only while an item is made that somebody waits for."""
    now, asked, waited = [100.0], threading.Event(), []

    def clock() -> float:
        asked.set()
        return now[0]

    monkeypatch.setattr("transformer_jax.training.prefetch.time.perf_counter", clock)
    maker = Maker()
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
