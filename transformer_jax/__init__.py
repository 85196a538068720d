"""The Transformer of "Attention Is All You Need" in JAX and Flax.

Arrays of rank >= 1 carry the letters of their dimensions as a suffix, and einsums use the
same letters: `hidden_BTD`, `jnp.einsum("BTHK,BMHK->BHTM", query_BTHK, key_BMHK)`.

  B  batch               D  model dim           V  vocabulary
  S  source length       H  heads               W  beam width
  T  target length       K  head dim            L  layers
  M  length attended to  F  feed-forward dim    N  hypotheses returned
  R  B * W, hypotheses of all sentences         C  candidates of a beam
"""

from transformer_jax.config import Config
from transformer_jax.decoding.translator import Translation, Translator
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.loop import train

__all__ = ["Config", "Transformer", "Translation", "Translator", "train"]
