"""The Transformer of "Attention Is All You Need" in JAX and Flax.

Arrays of rank >= 1 carry the letters of their dimensions as a suffix, and einsums use the
same letters: `hidden_BTD`, `jnp.einsum("BHTK,BHMK->BHTM", query_BHTK, key_BHMK)`.

  B  batch               D  model dim           V  vocabulary
  S  source length       H  heads               W  beam width
  T  target length       K  head dim            L  layers
  M  length attended to  F  feed-forward dim    N  hypotheses returned
  R  B * W, hypotheses of all sentences         C  candidates for the next token
  J  rows refilled       P  pairs or rows of a corpus
  I  M * W, history entries of a sentence       E  several D side by side
  1  broadcast
"""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Config": "transformer_jax.config",
    "SearchOptions": "transformer_jax.decoding.options",
    "TrainingResult": "transformer_jax.training.loop",
    "Transformer": "transformer_jax.model.transformer",
    "Translation": "transformer_jax.decoding.translator",
    "Translator": "transformer_jax.decoding.translator",
    "train": "transformer_jax.training.loop",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    """Imports a public name when it is first asked for: JAX and Orbax take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
