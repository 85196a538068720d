"""Attention made up of random weights, for figures and pages."""

from collections.abc import Sequence

import numpy as np

from transformer_jax.decoding.translator import Attention

LAYERS, HEADS = 2, 3
ENGLISH = ["\u2581two", "\u2581hun", "dred"]
GERMAN = ["\u2581zwei", "hundert"]


def attention_of(source: Sequence[str] = ENGLISH, target: Sequence[str] = GERMAN) -> Attention:
    """Of sentences without EOS."""
    generator = np.random.default_rng(0)

    def weights(rows: int, columns: int) -> np.ndarray:
        return generator.dirichlet(np.ones(columns), (LAYERS, HEADS, rows)).astype(np.float32)

    s, t = len(source) + 1, len(target) + 1
    tokens = [*source, "<eos>"], ["<sos>", *target], [*target, "<eos>"]
    return Attention(*tokens, weights(s, s), np.tril(weights(t, t)), weights(t, s))
