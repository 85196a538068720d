"""Teacher-forced passes over given translations: log-probabilities and attention.

As in the engine, a pair's own lengths decide the shape that it is computed in.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.data.batches import pad_rows
from transformer_jax.data.vocabulary import BOS, PAD
from transformer_jax.decoding.engine import ALL, ROWS, Models, bucket_lengths, each_device, merged
from transformer_jax.model.masks import Tokens


class Forced(NamedTuple):
    """Of a pair of S source and T target tokens, end symbols included.

    Attributes:
      log_probs: [T] natural logarithm of each target token's probability.
      attention: None; or "encoder" [L, H, S, S], "decoder" [L, H, T, T] and "cross"
        [L, H, T, S], where row t belongs to the place that predicts target token t.
    """

    log_probs: np.ndarray
    attention: dict[str, np.ndarray] | None


def forced(
    models: Models,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    rows: int,
    longest: int,
    mean_cross: tuple[int | None, int | None] | None = None,
    all_attention: bool = False,
) -> Iterator[tuple[int, Forced]]:
    """Of each pair, with its number, in the order in which they are computed.

    Args:
      models: see there.
      pairs: ids of source and target, each closed by the end symbol.
      rows: pairs that each device reads at a time.
      longest: length that no side exceeds.
      mean_cross: (layer, head) of the cross attention to return, None for the mean of all;
        what is returned has one layer of one head.
      all_attention: return all of it.
    """
    lengths = list(bucket_lengths(longest))
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        shape = tuple(next(n for n in lengths if n >= len(side)) for side in pair)
        groups.setdefault(shape, []).append(index)
    count = rows * jax.local_device_count()
    for shape, indices in sorted(groups.items()):
        for start in range(0, len(indices), count):
            group = indices[start : start + count]
            sources, targets = ([pairs[i][side] for i in group] for side in (0, 1))
            inputs = [[BOS, *target[:-1]] for target in targets]
            source, target, labels = (
                pad_rows(sentences, count, length)
                for sentences, length in zip((sources, inputs, targets), (*shape, shape[1]))
            )
            log_probs, attention = jax.device_get(
                _forced(
                    models.params,
                    source,
                    target,
                    labels.ids,
                    graphdefs=models.graphdefs,
                    mean_cross=mean_cross,
                    all_attention=all_attention,
                )
            )
            for row, index in enumerate(group):
                size = {"S": len(sources[row]), "T": len(targets[row])}
                own = {
                    name: weights[row, :, :, : size[axes[0]], : size[axes[1]]]
                    for name, axes in (("encoder", "SS"), ("decoder", "TT"), ("cross", "TS"))
                    if (weights := attention.get(name)) is not None
                }
                yield index, Forced(log_probs[row, : size["T"]], own or None)


@functools.partial(jax.jit, static_argnames=("graphdefs", "mean_cross", "all_attention"))
def _forced(params, source: Tokens, target: Tokens, labels_BT, **options):
    function = each_device(functools.partial(_forced_rows, **options), ALL, ROWS, ROWS, ROWS)
    return function(params, source, target, labels_BT)


def _forced_rows(
    params: Any, source: Tokens, target: Tokens, labels_BT, *, graphdefs, mean_cross, all_attention
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Log-probabilities [B, T], and attention [B, L, H, ...]."""
    model = merged(graphdefs, params)
    attention: dict[str, jax.Array] = {}
    if all_attention or mean_cross:
        memory, attention = model.encode(source, return_attention=True)
        logits_BTV, more = model.decode(memory, target, return_attention=True)
        attention |= more
    else:
        logits_BTV = model.decode(model.encode(source), target)
    if not all_attention:
        attention = {"cross": _chosen(attention["cross"], mean_cross)} if mean_cross else {}
    chosen_BT1 = jnp.take_along_axis(logits_BTV, labels_BT[..., None], axis=-1)
    log_probs_BT = chosen_BT1[..., 0] - jax.nn.logsumexp(logits_BTV, axis=-1)
    log_probs_BT = jnp.where(labels_BT == PAD, 0.0, log_probs_BT)
    return log_probs_BT, {name: x.swapaxes(0, 1) for name, x in attention.items()}


def _chosen(weights_LBHTS: jax.Array, mean_cross: tuple[int | None, int | None]) -> jax.Array:
    layer, head = mean_cross
    if layer is not None:
        weights_LBHTS = weights_LBHTS[layer : layer + 1]
    if head is not None:
        weights_LBHTS = weights_LBHTS[:, :, head : head + 1]
    return weights_LBHTS.mean(axis=(0, 2))[None, :, None]
