"""Teacher-forced scoring: log-probabilities and attention of given translations.

As in the engine, a pair's own lengths decide the shape that it is computed in.
"""

import collections
import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.config import DecodingConfig
from transformer_jax.data.batches import pad_rows
from transformer_jax.data.vocabulary import BOS, PAD
from transformer_jax.decoding.engine import ALL, ROWS, Models, bucket_lengths, each_device
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.model.masks import Tokens

# Which attention to return: all of it, or the cross attention of one (layer, head), where None
# stands for the mean of all.
Wanted = Literal["all"] | tuple[int | None, int | None] | None


class TokenPair(NamedTuple):
    """A source and its translation, token ids closed by EOS; `id` is the caller's."""

    id: int
    source: Sequence[int]
    target: Sequence[int]


class Scored(NamedTuple):
    """Of a pair of S source and T target tokens."""

    log_probs: np.ndarray  # [T] of each target token
    # Those wanted of "encoder" [L, H, S, S], "decoder" [L, H, T, T] and "cross" [L, H, T, S]; row t
    # belongs to the position that predicts target token t.
    attention: dict[str, np.ndarray]


def score(
    models: Models, pairs: Iterable[TokenPair], options: SearchOptions, attention: Wanted = None
) -> Iterator[tuple[int, Scored]]:
    """Yields (id, scores) as batches complete; no side is longer than `options.max_length`."""
    lengths = list(bucket_lengths(options.max_length))
    buckets = collections.defaultdict(list)
    for pair in pairs:
        buckets[tuple(next(n for n in lengths if n >= len(side)) for side in pair[1:])] += [pair]
    batch_size = (options.rows or DecodingConfig.rows) * jax.local_device_count()
    for shape, members in sorted(buckets.items()):
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            source = pad_rows([pair.source for pair in batch], batch_size, shape[0])
            inputs = [[BOS, *pair.target[:-1]] for pair in batch]
            target = pad_rows(inputs, batch_size, shape[1])
            labels_BT = pad_rows([pair.target for pair in batch], batch_size, shape[1]).ids
            scores = _score(models, source, target, labels_BT, attention=attention)
            log_probs_BT, weights = jax.device_get(scores)
            for row, pair in enumerate(batch):
                own = {name: _unpadded(name, x[row], pair) for name, x in weights.items()}
                yield pair.id, Scored(log_probs_BT[row, : len(pair.target)], own)


def _unpadded(name: str, weights: np.ndarray, pair: TokenPair) -> np.ndarray:
    queries = pair.source if name == "encoder" else pair.target
    keys = pair.target if name == "decoder" else pair.source
    return weights[:, :, : len(queries), : len(keys)]


@functools.partial(jax.jit, static_argnames="attention")
@each_device(ALL, ROWS, ROWS, ROWS)
def _score(
    models: Models, source: Tokens, target: Tokens, labels_BT, *, attention: Wanted
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-probabilities [B, T], and attention [B, L, H, ...]."""
    model, weights = models.merged(), {}
    if attention:
        memory, weights = model.encode(source, return_attention=True)
        logits_BTV, of_decoder = model.decode(memory, target, return_attention=True)
        weights |= of_decoder
    else:
        logits_BTV = model.decode(model.encode(source), target)
    if attention and attention != "all":
        weights = {"cross": mean_attention(weights["cross"], *attention)}
    chosen_BT1 = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)
    log_probs_BT = chosen_BT1[..., 0] - jax.nn.logsumexp(logits_BTV, axis=-1)
    log_probs_BT = jnp.where(labels_BT == PAD, 0.0, log_probs_BT)
    return log_probs_BT, {name: x.swapaxes(0, 1) for name, x in weights.items()}


def mean_attention(weights_LBHTS: jax.Array, layer: int | None, head: int | None) -> jax.Array:
    """[1, B, 1, T, S] attention of a layer and head, None for the mean of all."""
    if layer is not None:
        weights_LBHTS = weights_LBHTS[layer : layer + 1]
    if head is not None:
        weights_LBHTS = weights_LBHTS[:, :, head : head + 1]
    return weights_LBHTS.mean(axis=(0, 2))[None, :, None]
