"""How far back a gradient reaches, in untrained encoders and in trained runs: one JSON line.

    python benchmarks/gradient_by_distance.py --workdirs=runs/story/lstm_dot,runs/story/transformer

The norm of the gradient of an encoder's last state, projected on a random unit vector, by the
embedding of each token before it: the geometric mean over sources of random tokens. Through time
a gradient is a product with one Jacobian a position, so that it vanishes or explodes exponentially
with distance (Bengio et al. 1994; Pascanu et al. 2013); attention has one step between any two
positions (Vaswani et al. 2017, section 4).
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.data.vocabulary import UNK
from transformer_jax.decoding.translator import Translator
from transformer_jax.model.build import build
from transformer_jax.model.masks import sentence_tokens

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Trained runs, with commas.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of each source.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 128, "model_dim of the untrained encoders.", lower_bound=8)

EXPLODING = "tanh RNN, spectral radius 3"
KINDS = {
    "tanh RNN": "rnn",
    EXPLODING: "rnn",
    "LSTM": "lstm",
    "GRU": "gru",
    "Transformer encoder": "transformer",
}


def gradient_by_distance(
    graphdef, params, vocab_size: int, *, length: int, sources: int = 16, seed: int = 0
) -> list[float]:
    """`length` norms; the index is the distance in tokens, 0 the last token itself.

    They may be 0.0 (smaller than a float32) or, of a model with such parameters, not finite.
    """
    random = np.random.default_rng(seed)
    ids_BS = random.integers(UNK + 1, vocab_size, (sources, length))
    table = params["embedding"]["table"]
    direction_BD = random.normal(size=(sources, table.shape[1])).astype(np.float32)
    direction_BD /= np.linalg.norm(direction_BD, axis=-1, keepdims=True)
    tokens = sentence_tokens(jnp.arange(length, dtype=jnp.int32)[None], jnp.array([length]))

    def projection(rows_SD, direction_D, params):
        # Each position gets a row of its own, whichever token stands there.
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


def untrained(name: str, model_dim: int, vocab_size: int):
    """An encoder of one layer; the exploding RNN's recurrent matrix has a spectral radius of 3.

    The others keep their initialisation, whose radius is about 0.046 sqrt(model_dim). Beyond 1 a
    large tanh network is chaotic, but tanh' < 1 takes a part of the growth back: at little more
    than 1 it hardly shows within a sentence (Sompolinsky, Crisanti and Sommers 1988).
    """
    sizes = {"num_layers": 1, "model_dim": model_dim, "feed_forward_dim": 4 * model_dim}
    config = ModelConfig(kind=KINDS[name], attention="none", **sizes)
    model = build(config, vocab_size, rngs=nnx.Rngs(0))
    if name == EXPLODING:
        kernel = model.encoder[0].forward.dense_h.kernel
        kernel[...] *= 3 / np.abs(np.linalg.eigvals(np.asarray(kernel[...]))).max()
    return model


def measure(workdirs: list[str], length: int, model_dim: int, vocab_size: int = 1000) -> dict:
    """initial_gradients by the encoder's name, gradient_by_distance by the run's."""
    trained = {}
    for workdir in workdirs:
        translator = Translator.from_workdir(workdir)
        (graphdef,), (params,) = translator.models.graphdefs, translator.models.params
        trained[pathlib.Path(workdir).name] = gradient_by_distance(
            graphdef, params, len(translator.vocabulary), length=length
        )
    initial = {name: nnx.split(untrained(name, model_dim, vocab_size)) for name in KINDS}
    return {
        "initial_gradients": {
            name: gradient_by_distance(*model, vocab_size, length=length)
            for name, model in initial.items()
        },
        "gradient_by_distance": trained,
    }


def main(_) -> None:
    result = measure(_WORKDIRS.value, _LENGTH.value, _WIDTH.value)
    print(json.dumps({"benchmark": "gradient_by_distance"} | result), flush=True)


if __name__ == "__main__":
    app.run(main)
