"""Gradient norms by distance, of models whose Jacobians are known and of untrained ones."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from gradient_by_distance import gradient_by_distance, measure

from transformer_jax.config import ModelConfig
from transformer_jax.model.build import build

VOCAB = 12


def make_rnn(**fields):
    """Bahdanau's initial values: an orthogonal recurrence, and states so small that tanh' is 1."""
    config = ModelConfig(kind="rnn", attention="additive", num_layers=1, model_dim=16, **fields)
    return build(config, VOCAB, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("factor", [0.1, 0.8, 1.25])
def test_a_recurrence_that_scales_gives_its_powers(factor):
    """Down to where the squares of float32 are zero."""
    model = make_rnn()
    cell = model.encoder[0].forward
    cell.dense_h.kernel[...] = cell.dense_h.kernel[...] * factor
    cell.dense_i.kernel[...] = jnp.eye(16)
    model.embedding.table[...] = model.embedding.table[...] / 100
    length = 30 if factor < 1 else 10
    norms = gradient_by_distance(*nnx.split(model), VOCAB, length=length, sources=3)
    np.testing.assert_allclose(norms, factor ** np.arange(length), rtol=1e-3)


def test_the_backward_half_of_the_last_position_has_read_the_last_token_alone():
    model = make_rnn(bidirectional=True)
    forwards = model.encoder[0].forward.dense_i.kernel
    forwards[...] = jnp.zeros_like(forwards[...])
    norms = gradient_by_distance(*nnx.split(model), VOCAB, length=5, sources=2)
    assert norms[0] > 0 and norms[1:] == [0.0] * 4


def test_sources_differ_by_the_seed_alone():
    model = nnx.split(make_rnn())
    first, again, other = (
        gradient_by_distance(*model, VOCAB, length=4, sources=2, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again and first != other


def test_untrained_rnns_vanish_or_explode_and_attention_reaches_all_positions_alike():
    norms = measure([], length=24, model_dim=32, vocab_size=50)["initial_gradients"]
    assert all(len(of_model) == 24 for of_model in norms.values())
    rnn, exploding, lstm, gru, transformer = map(np.array, norms.values())
    assert list(norms) == [
        "tanh RNN",
        "tanh RNN, spectral radius 3",
        "LSTM",
        "GRU",
        "Transformer encoder",
    ]
    # By a steady factor a position: about the spectral radius, 0.046 sqrt(32), and about 1/2.
    for vanishing, least, most in ((rnn, 0.15, 0.4), (lstm, 0.4, 0.65), (gru, 0.4, 0.65)):
        factor = (vanishing[23] / vanishing[5]) ** (1 / 18)
        assert least < factor < most
    assert exploding[23] > 20 * exploding[0]
    assert transformer[1:].max() < 10 * transformer[1:].min()
