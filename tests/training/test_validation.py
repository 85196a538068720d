"""The validation loss: over all pairs of all corpora, however they are batched."""

import jax
import numpy as np
import pytest
from builders import model_parts, random_store, tiny_config
from flax import nnx

from transformer_jax.data.batches import Batch, pad_rows
from transformer_jax.data.vocabulary import BOS
from transformer_jax.devices import replicate
from transformer_jax.interruption import Stop
from transformer_jax.sharding import DataParallel
from transformer_jax.training import loss
from transformer_jax.training.metrics import means
from transformer_jax.training.step import batch_sums
from transformer_jax.training.trainer import Trainer
from transformer_jax.training.validation import LossEvaluator, Validation

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


def test_a_field_bounds_the_logits_of_training_and_validation(monkeypatch, tmp_path):
    whole, bytes_of_logits = loss.smoothed_cross_entropy, []

    def seen(logits_BTV, *arguments):
        bytes_of_logits.append(logits_BTV.size * 4)
        return whole(logits_BTV, *arguments)

    def refused(logits_BTV, *_):  # which spares the test to compile
        raise InterruptedError(logits_BTV.size * 4)

    monkeypatch.setattr(loss, "smoothed_cross_entropy", seen)
    config = tiny_config(training={"logits_mib": 0.005}, data={"valid": "numbers:valid"})
    trainer = Trainer(config, tmp_path)
    monkeypatch.setattr(loss, "smoothed_cross_entropy", refused)
    with pytest.raises(InterruptedError) as error:
        Validation(trainer)
    trainer.close()
    assert 0 < max(*bytes_of_logits, *error.value.args) < 0.005 * 2**20
