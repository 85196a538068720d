"""A translator that turns texts into capitals, and notes which came together."""

import threading
import types

import numpy as np

from transformer_jax.config import Config
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Attention, Hypothesis, Translation


class Capitals:
    """Answers the last text first; `broken` is an error, `bad` is one with a sentence."""

    attention_shape = {"cross": (1, 1)}

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

    def attention(self, source, hypothesis, options):
        return Attention(["a"], ["a"], ["a"], None, None, np.ones((1, 1, 1, 1), np.float32))
