"""A translator that turns texts into capitals, and notes which came together."""

import threading
import types

import numpy as np
from attentions import attention_of

from transformer_jax.config import Config
from transformer_jax.decoding.alignment import Alignment
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Hypothesis, Translation


class Capitals:
    """Answers the last text first; `broken` is an error, `bad` is one with a sentence."""

    attention_shape = {"cross": (2, 3)}

    def __init__(self):
        self.config = Config()
        self.vocabulary = types.SimpleNamespace(
            pieces=lambda ids: [chr(i) for i in ids],
            has_piece=lambda text: text == "<2de>",
        )
        self.batches: list[list[str]] = []
        self.free = threading.Event()  # what is asked for waits until it is set
        self.free.set()

    def resolved(self, options: SearchOptions | None = None) -> SearchOptions:
        return (options or SearchOptions()).resolved(self.config.decoding)

    def stream(self, texts, options, *, prefixes):
        self.batches.append(list(texts))
        assert self.free.wait(20)
        for id in reversed(range(len(texts))):
            if texts[id] == "broken":
                raise RuntimeError("broken")
            if texts[id] == "bad":
                raise ValueError("it is bad")
            text = (prefixes[id] + texts[id]).upper()
            ids = tuple(map(ord, text))
            ranks = range(options.n_best)
            hypotheses = [Hypothesis(text, -float(rank), -1.0, ids) for rank in ranks]
            yield id, Translation(hypotheses, truncated=False)

    def align(self, sources, hypotheses, options, skip):
        """The words in reverse, each attended to with a weight of 3/4."""

        def one(source: list[str], target: list[str]) -> Alignment:
            weights = np.zeros((len(target), len(source)), np.float32)
            links = [(len(source) - 1 - t, t) for t in range(min(len(source), len(target)))]
            for s, t in links:
                weights[t, s] = 0.75
            return Alignment(source, target, weights, links)

        pairs = zip(sources, hypotheses)
        return [one(source.split()[skip:], target.text.split()) for source, target in pairs]

    def attention(self, source, hypothesis, options):
        pieces = [f"\u2581{word}" for word in source.split()]
        return attention_of(pieces, [f"\u2581{word}" for word in hypothesis.text.split()])
