"""One thread that translates: requests that arrive together share its batches.

What a request is answered does not depend on its companions: the engine's batch size is constant,
and at equal batch size a sentence's tokens and scores are equal to the bit.
"""

import asyncio
import collections
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable

import jax

from transformer_jax.data.vocabulary import EOS, UNK
from transformer_jax.decoding import engine
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translation, Translator
from transformer_jax.serving.requests import Refused, TranslationRequest

logger = logging.getLogger(__name__)

_GATHER_S = 0.005  # after which those that have arrived are translated
_MAX_KINDS = 16  # kinds of search, each compiled for each shape, that are held
HELD_S = 600.0  # how long they are, before others may take their places

Finish = Callable[[Translator, TranslationRequest, list[Translation]], bytes]


class Job:
    """A request under way; `future` gets its answer, and is cancelled where nobody waits for it."""

    def __init__(self, request: TranslationRequest, finish: Finish):
        self.request, self.finish = request, finish
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[bytes] = self.loop.create_future()
        self.translations: dict[int, Translation] = {}
        self.settled = False

    @property
    def wanted(self) -> bool:
        """Whether it has no answer yet, and somebody waits for one."""
        return not self.settled and not self.future.cancelled()

    def settle(self, answer: bytes | Exception) -> None:
        """Hands the answer, or why there is none, to the event loop."""

        def hand_over() -> None:
            if self.future.done():
                return
            failed = isinstance(answer, Exception)
            (self.future.set_exception if failed else self.future.set_result)(answer)

        self.settled = True
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.loop.call_soon_threadsafe(hand_over)


def warm_up(translator: Translator, options: SearchOptions) -> None:
    """Compiles the search of each shape that resolved options have."""
    lengths = engine.bucket_lengths(options.max_length)
    sentences = [engine.Sentence(n, [UNK] * (n - 1) + [EOS], max_length=1) for n in lengths]
    for _ in engine.translate(translator.models, sentences, options):
        pass


class Batcher:
    """Translates jobs in the order of their arrival, those with equal options together."""

    def __init__(
        self, translator: Translator, options: SearchOptions, capacity: int, batch_size: int
    ):
        """
        Args:
          translator: used by the batcher's thread alone.
          options: resolved; those whose programs are always compiled.
          capacity: texts that may wait.
          batch_size: texts that share a batch; a job of more has one of its own.
        """
        self.translator, self.options = translator, options
        self.capacity, self.batch_size = capacity, batch_size
        self.waiting = self.texts = self.batches = 0  # texts that wait; texts and batches so far
        self._queue: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._kinds = {jax.tree.structure(options)}  # of search, that are compiled
        self._new: set[jax.tree_util.PyTreeDef] = set()  # the one to be compiled next
        self._held_since = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="translation", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether jobs are still translated."""
        return self._thread.is_alive()

    def submit(self, job: Job) -> None:
        """Queues a job; Refused where too many texts wait, or too much would be compiled."""
        count = len(job.request.texts)
        with self._changed:
            if self.waiting + count > self.capacity:
                raise Refused(503, f"{self.waiting} texts wait already; try again later")
            self._admit(jax.tree.structure(job.request.options))
            self._queue.append(job)
            self.waiting += count
            self._changed.notify()

    def close(self, timeout: float) -> bool:
        """Ends the thread after its batch; returns whether that was within `timeout` seconds."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self.alive

    def _run(self) -> None:
        while jobs := self._next():
            self._answer(jobs)
            kind = jax.tree.structure(jobs[0].request.options)
            self._kinds.add(kind)  # though nobody may have waited for it
            self._new.discard(kind)

    def _next(self) -> list[Job]:
        """The next batch of jobs; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            is_full = self.waiting >= self.batch_size
        if not is_full:
            time.sleep(_GATHER_S)
        with self._changed:
            if self._closed:
                return []
            jobs, room, options = [], self.batch_size, self._queue[0].request.options
            for job in list(self._queue):
                count = len(job.request.texts)
                if job.request.options == options and (count <= room or not jobs):
                    jobs.append(job)
                    self._queue.remove(job)
                    self.waiting -= count
                    room -= count
            return jobs

    def _answer(self, jobs: list[Job]) -> None:
        """Answers jobs of equal options; where one of them fails, each by itself."""
        jobs = [job for job in jobs if job.wanted]
        if not jobs:
            return
        try:
            self._translate(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].settle(_reason(error))
                return
            for job in jobs:
                self._answer([job])

    def _translate(self, jobs: list[Job]) -> None:
        options = jobs[0].request.options
        self._hold_programs(jax.tree.structure(options))
        rows = [(job, index) for job in jobs for index in range(len(job.request.texts))]
        self.batches += 1
        self.texts += len(rows)
        texts = [job.request.texts[index] for job, index in rows]
        prefixes = [job.request.prefix for job, _ in rows]
        for id, translation in self.translator.stream(texts, options, prefixes=prefixes):
            job, index = rows[id]
            job.translations[index] = translation
            if len(job.translations) == len(job.request.texts) and job.wanted:
                job.settle(self._finished(job))
            if not any(job.wanted for job in jobs):
                return

    def _finished(self, job: Job) -> bytes | Exception:
        try:
            ordered = [job.translations[index] for index in range(len(job.translations))]
            return job.finish(self.translator, job.request, ordered)
        except Exception as error:
            return _reason(error)

    def _admit(self, kind: jax.tree_util.PyTreeDef) -> None:
        """Bounds the time of compilation, which a client could have without end: one at a time."""
        if kind in self._kinds or kind in self._new:
            return
        if self._new:
            raise Refused(503, "another kind of search is being compiled; try again later", 5)
        left = math.ceil(self._held_since + HELD_S - time.monotonic())
        if len(self._kinds) >= _MAX_KINDS and left > 0:
            sentence = f"{_MAX_KINDS} kinds of search are compiled; try another in {left} seconds"
            raise Refused(503, sentence, left)
        self._new.add(kind)

    def _hold_programs(self, kind: jax.tree_util.PyTreeDef) -> None:
        """Bounds the memory of what is compiled; that of the server's own options stays."""
        if kind not in self._kinds and len(self._kinds) >= _MAX_KINDS:
            jax.clear_caches()
            self._kinds = {jax.tree.structure(self.options)}
            self._held_since = time.monotonic()
            warm_up(self.translator, self.options)
        self._kinds.add(kind)


def _reason(error: Exception) -> Exception:
    """What a client is told of an error."""
    if isinstance(error, ValueError):
        return Refused(422, str(error))
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return Refused(503, "out of memory: ask for fewer or shorter texts, or a smaller beam")
    logger.error("a request has failed", exc_info=error)
    return Refused(500, "the server has failed; its log says why")
