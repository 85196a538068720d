"""The validation loss: over all pairs of all corpora, however they are batched."""

import jax
import numpy as np
import pytest
from builders import model_parts, random_store
from flax import nnx

from transformer_jax.data.batches import Batch, pad_rows
from transformer_jax.data.vocabulary import BOS
from transformer_jax.devices import replicate
from transformer_jax.interruption import Stop
from transformer_jax.sharding import DataParallel
from transformer_jax.training.metrics import means
from transformer_jax.training.step import batch_sums
from transformer_jax.training.validation import LossEvaluator

# Of unequal sizes and lengths, so that a mean of means would be wrong.
STORES = [random_store(30, 20, seed=1), random_store(5, 7, seed=2)]


@pytest.fixture(scope="module")
def expected():
    """All pairs in one batch, one a row."""
    graphdef, params = model_parts(dropout_rate=0.3)
    pairs = [(store.source[i], store.target[i]) for store in STORES for i in range(len(store))]
    source = pad_rows([x.tolist() for x, _ in pairs], len(pairs), 20)
    inputs = pad_rows([[BOS, *y[:-1].tolist()] for _, y in pairs], len(pairs), 20)
    labels = pad_rows([y.tolist() for _, y in pairs], len(pairs), 20).ids
    batch = Batch(source, inputs, labels)
    sums = jax.jit(lambda params: batch_sums(nnx.merge(graphdef, params), batch, 0.1)[1])
    return means({k: float(v) for k, v in sums(params)._asdict().items()})


@pytest.mark.parametrize("tokens_per_batch", [40, 400])
def test_the_loss_is_that_of_all_pairs_in_one_batch(expected, tmp_path, tokens_per_batch):
    """Without dropout, over four devices, and the same for any size of batches."""
    graphdef, params = model_parts(dropout_rate=0.3)
    params = replicate(params)
    evaluate = LossEvaluator(
        graphdef,
        params,
        STORES,
        smoothing=0.1,
        tokens_per_batch=tokens_per_batch,
        cache=tmp_path,
        layout=DataParallel(),
    )
    values = evaluate(params, Stop())
    for name in ("loss", "perplexity", "accuracy", "probability"):
        assert values[name] == pytest.approx(expected[name], rel=1e-5)
    # Other parameters, the same programs.
    other = jax.tree.map(lambda x: 2 * np.asarray(x), params)
    assert evaluate(replicate(other), Stop())["loss"] > 1.01 * values["loss"]
    assert evaluate(params, Stop()) == values
