"""Jobs share batches, fail alone, and are not translated where nobody waits."""

import asyncio

import jax
import pytest
from serving.capitals import Capitals

from transformer_jax.decoding.options import SearchOptions
from transformer_jax.serving import batcher as module
from transformer_jax.serving.batcher import Batcher, Job
from transformer_jax.serving.requests import Refused, TranslationRequest


def job(*texts: str, **options) -> Job:
    resolved = Capitals().resolved(SearchOptions(**options))

    def finish(translator, request, translations) -> bytes:
        if "unshown" in request.texts:
            raise RuntimeError("the answer cannot be written")
        return " ".join(x.text for x in translations).encode()

    return Job(TranslationRequest(list(texts), resolved, n_best=1), finish)


@pytest.fixture
def translator():
    return Capitals()


@pytest.fixture
def batcher(translator):
    options = translator.resolved()
    batcher = Batcher(translator, options, capacity=8, batch_size=4)
    yield batcher
    translator.free.set()
    assert batcher.close(timeout=10)


async def answers(batcher: Batcher, *jobs: Job) -> list[bytes | BaseException]:
    """Of jobs that arrive while another is translated."""
    translator = batcher.translator
    translator.free.clear()
    translator.batches.clear()
    batcher.submit(first := job("first", max_length=2))
    while not translator.batches:
        await asyncio.sleep(0.001)
    for each in jobs:
        batcher.submit(each)
    translator.free.set()
    await first.future
    assert translator.batches.pop(0) == ["first"]
    futures = [each.future for each in jobs]
    return await asyncio.wait_for(asyncio.gather(*futures, return_exceptions=True), 20)


def test_jobs_that_arrive_together_share_batches_of_their_options(batcher, translator):
    async def ask():
        greedy = job("x", beam_size=1)
        jobs = [job("a"), job("b", "c"), greedy, job("d"), job("e")]
        return await answers(batcher, *jobs)

    assert asyncio.run(ask()) == [b"A", b"B C", b"X", b"D", b"E"]
    assert translator.batches == [["a", "b", "c", "d"], ["x"], ["e"]]
    assert (batcher.batches, batcher.texts, batcher.waiting) == (4, 7, 0)


def test_a_job_of_more_than_a_batch_goes_by_itself(batcher, translator):
    async def ask():
        return await answers(batcher, job(*"abcdef"), job("g"))

    assert asyncio.run(ask()) == [b"A B C D E F", b"G"]
    assert translator.batches == [list("abcdef"), ["g"]]


@pytest.mark.parametrize(
    ("text", "status"), [("broken", 500), ("bad", 422), ("unshown", 500)], ids=str
)
def test_a_job_that_fails_fails_alone(batcher, translator, text, status, caplog):
    async def ask():
        return await answers(batcher, job("a"), job(text), job("c"))

    first, failed, last = asyncio.run(ask())
    assert (first, last) == (b"A", b"C")
    assert isinstance(failed, Refused) and failed.status == status
    assert ("a request has failed" in caplog.text) == (status == 500)
    # "c" came first; only what could not be translated together is translated again.
    assert len(translator.batches) == (1 if text == "unshown" else 3) and batcher.alive


def test_an_answer_is_written_once_and_for_somebody(batcher, translator):
    written, searched, batcher.capacity = [], [], 9

    async def ask():
        jobs = [job("bad"), job(*"abc"), job("d"), job("e", "left"), job("f", "left")]
        for each in jobs:
            each.finish = lambda _, request, translations: written.append(request.texts) or b""
        stream = translator.stream

        def interrupted(texts, options, prefixes):
            if "bad" in texts and "a" in texts:  # fails with half of what "a" belongs to
                yield 1, next(stream(["a"], options, prefixes=[""]))[1]
                raise ValueError
            for id, answer in stream(texts, options, prefixes=prefixes):
                searched.append(texts[id])
                if texts[id] == "left":
                    jobs[-1 if "f" in texts else -2].future.cancel()
                    jobs[0].loop.call_soon_threadsafe(int)  # wakes it
                yield id, answer

        translator.stream = interrupted
        return await answers(batcher, *jobs)

    asyncio.run(ask())
    assert written == [["a", "b", "c"], ["d"]]
    assert searched == ["first", *"cb", "left", "e", "d", "left"]


async def asked(batcher: Batcher, each: Job) -> bytes:
    batcher.submit(each)
    return await asyncio.wait_for(each.future, 20)


def test_what_clients_have_compiled_is_bounded_and_the_servers_own_is_kept(batcher, monkeypatch):
    cleared, warmed = [], []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    monkeypatch.setattr(module, "warm_up", lambda _, options: warmed.append(options))

    async def ask():
        for top_k in range(1, 16):  # sixteen kinds, with the server's own
            for temperature in (0.5, 2.0):  # not a kind of its own
                await asked(batcher, job("a", sample=True, top_k=top_k, temperature=temperature))
        with pytest.raises(
            Refused, match="^16 kinds of search are compiled; try another in "
        ) as no:
            batcher.submit(job("b", sample=True, top_k=16))
        assert no.value.status == 503 and 500 < no.value.retry_after <= 600
        assert await asked(batcher, job("c", sample=True, top_k=3)) == b"C" and not cleared
        monkeypatch.setattr(module, "HELD_S", 0.0)
        await asked(batcher, job("d", sample=True, top_k=16))
        assert await asked(batcher, job("e")) == b"E"

    asyncio.run(ask())
    assert len(cleared) == 1 and warmed == [batcher.options]


def test_one_kind_of_search_is_compiled_at_a_time(batcher, translator):
    async def ask():
        translator.free.clear()
        jobs = [job("a", beam_size=2), job("b", beam_size=2), job("c")]
        for each in jobs:
            batcher.submit(each)
        with pytest.raises(Refused, match="^another kind of search is being compiled; try again"):
            batcher.submit(job("d", beam_size=3))
        translator.free.set()
        found = await asyncio.gather(*(each.future for each in jobs))
        return [*found, await asked(batcher, job("e", beam_size=3))]

    assert asyncio.run(ask()) == [b"A", b"B", b"C", b"E"]


def test_more_than_may_wait_is_refused_and_what_nobody_waits_for_is_left_out(batcher, translator):
    async def ask():
        translator.free.clear()
        first = job("a")
        batcher.submit(first)
        while not translator.batches:
            await asyncio.sleep(0.001)
        left, late = job(*"bcd"), job("e", "f", "g")
        batcher.submit(left)
        batcher.submit(late)
        with pytest.raises(Refused, match="^6 texts wait already; try again later$") as refused:
            batcher.submit(job("h", "i", "j"))
        assert refused.value.status == 503
        left.future.cancel()
        translator.free.set()
        return await first.future, await late.future

    assert asyncio.run(ask()) == (b"A", b"E F G")
    assert translator.batches == [["a"], ["e", "f", "g"]]
