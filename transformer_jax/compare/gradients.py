"""How far back a gradient reaches: its norm by the distance between an output and an input.

Sources: Hochreiter 1991; Bengio, Simard and Frasconi 1994, "Learning Long-Term Dependencies with
Gradient Descent is Difficult"; Pascanu, Mikolov and Bengio 2013, "On the difficulty of training
recurrent neural networks". Through time a gradient is a product with one Jacobian a place, so
that it vanishes or explodes exponentially with distance. Attention has one step between any two
places (Vaswani et al. 2017, section 4).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.data.vocabulary import UNK
from transformer_jax.model.build import build
from transformer_jax.model.masks import sentence_tokens

_EXPLODING_RADIUS = 3.0
_EXPLODING = f"tanh RNN, spectral radius {_EXPLODING_RADIUS:g}"


def gradient_by_distance(
    graphdef, params, vocab_size: int, *, length: int = 64, sources: int = 16, seed: int = 0
) -> list[float]:
    """Norm of the gradient of the encoder's last state by the embeddings before it.

    The state is the top layer's at the last place, projected on a random unit vector: another
    for each source, of `length` tokens drawn evenly from the vocabulary but for its special
    symbols. So it is the encoder that is measured, along the source; its tokens mean nothing.

    What the curves show:
      One direction: the product of Jacobians, falling or growing as a straight line on a
        logarithmic axis. Gates change the slope, not the form.
      Both directions (`bidirectional`): the same of the forward half. The backward half has
        read only the last token at the last place and adds to distance 0 alone.
      Transformer: no trend with distance. Distance 0 stands out, since the residual connection
        leads to it; the others share what the attention weights, which sum to one, let
        through. Layer norm divides by the size of the state, so that neither end depends on
        the scale of the weights below it.

    Args:
      graphdef, params: of `flax.nnx.split` of a model.
      vocab_size: entries of its table that are in use.
      length: tokens a source.
      sources: how many, over which the logarithms of the norms are averaged.
      seed: of tokens and vectors.

    Returns:
      `length` norms; the index is the distance in tokens, 0 the last token itself. They may be
      0.0 (smaller than a float32) or, of a model with such parameters, not finite.

    ValueError where the vocabulary has special symbols only.
    """
    if vocab_size <= UNK + 1:
        raise ValueError(f"vocab_size={vocab_size}: {UNK + 2} or more, one no special symbol")
    random = np.random.default_rng(seed)
    ids_BS = random.integers(UNK + 1, vocab_size, (sources, length))
    table = params["embedding"]["table"]
    direction_BD = random.normal(size=(sources, table.shape[1])).astype(np.float32)
    direction_BD /= np.linalg.norm(direction_BD, axis=-1, keepdims=True)
    tokens = sentence_tokens(jnp.arange(length, dtype=jnp.int32)[None], jnp.array([length]))

    def projection(rows_SD, direction_D, params):
        # Each place gets a row of its own, whichever token stands there.
        model = nnx.merge(graphdef, params)
        model.embedding.table = nnx.Param(rows_SD)
        last_D = model.encode(tokens).hidden[0, -1]
        return last_D.astype(jnp.float32) @ direction_D

    gradient = jax.jit(jax.vmap(jax.grad(projection), in_axes=(0, 0, None)))
    gradient_BSD = gradient(table[...][ids_BS], direction_BD, params)
    # In float64, where squares of what float32 can just hold are not zero.
    norm_BS = np.linalg.norm(np.asarray(gradient_BSD, np.float64), axis=-1)
    with np.errstate(divide="ignore"):
        return np.exp(np.log(norm_BS).mean(axis=0))[::-1].tolist()


def initial_gradients(
    model_dim: int = 128, vocab_size: int = 1000, length: int = 64
) -> dict[str, list[float]]:
    """`gradient_by_distance` of untrained encoders of one layer and equal width, by name.

    The RNNs are initialised as those without attention are (uniform in [-0.08, 0.08]): the
    tanh RNN's recurrent matrix has a spectral radius of about 0.046 sqrt(model_dim), below one
    up to a width of 470, and the gates of LSTM and GRU begin half open, which halves the
    gradient at each place: at such widths it vanishes in all three before they have learnt.

    The exploding one is the same tanh RNN, its recurrent matrix scaled to a spectral radius of 3.
    Beyond 1, a large tanh network is chaotic (Sompolinsky, Crisanti and Sommers 1988), but its
    units saturate, and tanh' < 1 takes back a part: at little more than 1 the growth hardly
    shows within a sentence.

    Args:
      model_dim: width, a multiple of 8 (the Transformer's heads).
      vocab_size, length: as of `gradient_by_distance`.
    """
    models = {
        name: build(
            ModelConfig(
                kind=kind,
                attention="none",
                num_layers=1,
                model_dim=model_dim,
                feed_forward_dim=4 * model_dim,
            ),
            vocab_size,
            rngs=nnx.Rngs(0),
        )
        for name, kind in (
            ("tanh RNN", "rnn"),
            (_EXPLODING, "rnn"),
            ("LSTM", "lstm"),
            ("GRU", "gru"),
            ("Transformer encoder", "transformer"),
        )
    }
    kernel = models[_EXPLODING].encoder[0].forward.dense_h.kernel
    radius = np.abs(np.linalg.eigvals(np.asarray(kernel[...]))).max()
    kernel[...] = kernel[...] * (_EXPLODING_RADIUS / radius)
    return {
        name: gradient_by_distance(*nnx.split(model), vocab_size, length=length)
        for name, model in models.items()
    }
