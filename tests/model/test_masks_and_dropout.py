"""Masks from segments, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np

from transformer_jax.model.layers import dropout
from transformer_jax.model.masks import causal_mask, segment_mask, sentence_tokens


def test_segments_keep_pairs_apart_and_padding_out():
    mask = segment_mask(jnp.array([[1, 2, 0]]), jnp.array([[1, 1, 2, 0]]))
    expected = [[[True, True, False, False], [False, False, True, False], [False] * 4]]
    np.testing.assert_array_equal(mask, expected)


def test_causal_sees_itself_and_before():
    np.testing.assert_array_equal(causal_mask(3)[0], [[1, 0, 0], [1, 1, 0], [1, 1, 1]])


def test_sentence_tokens_mark_the_real_ones():
    tokens = sentence_tokens(jnp.array([[5, 6, 0], [7, 0, 0]]), jnp.array([2, 0]))
    np.testing.assert_array_equal(tokens.segments, [[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(tokens.positions, [[0, 1, 2]] * 2)


def test_dropout_keeps_the_mean_and_the_rate():
    x = jnp.ones((1000, 1000))
    dropped = dropout(x, 0.1, jax.random.key(0, impl="rbg"))
    assert abs(float((dropped == 0).mean()) - 0.1) < 0.002
    assert abs(float(dropped.mean()) - 1) < 0.002
    kept = np.unique(np.asarray(dropped[dropped != 0]))
    np.testing.assert_allclose(kept, [1 / 0.9], rtol=1e-4)


def test_no_key_or_no_rate_is_the_identity():
    x = jnp.arange(5.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_dropout_keeps_the_dtype():
    assert dropout(jnp.ones(8, jnp.bfloat16), 0.5, jax.random.key(0)).dtype == jnp.bfloat16
