"""The train step: devices and micro-batches change nothing; sums are divided once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.data.batching import Batch
from transformer_jax.model.masks import Tokens
from transformer_jax.model.transformer import Transformer
from transformer_jax.training.parallel import parallel, place, replicate
from transformer_jax.training.step import (
    TrainState,
    make_eval_step,
    make_train_step,
    teacher_forcing,
)

VOCAB = 13


def random_batch(seed: int, rows: int = 8, length: int = 6) -> Batch:
    """Sentences of unequal lengths, so that a mean of means would be wrong."""
    random = np.random.default_rng(seed)

    def side(length: int) -> Tokens:
        ids = random.integers(4, VOCAB, (rows, length)).astype(np.int32)
        positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
        lengths = random.integers(2, length + 1, (rows, 1))
        return Tokens(ids, positions, (positions < lengths).astype(np.int32))

    return Batch(side(length), side(length + 1))


@functools.cache
def model_parts(dropout_rate: float = 0.0):
    config = ModelConfig(
        num_layers=1, model_dim=8, num_heads=2, feed_forward_dim=16, dropout_rate=dropout_rate
    )
    init = jax.jit(lambda: nnx.split(Transformer(config, VOCAB, rngs=nnx.Rngs(0)))[1])
    abstract = nnx.eval_shape(lambda: Transformer(config, VOCAB, rngs=nnx.Rngs(0)))
    return nnx.split(abstract)[0], init()


def losses(
    compile_step,
    put,
    *,
    accumulate_steps=1,
    dropout_rate=0.0,
    learning_rate=0.01,
    **options,
):
    """Losses of a few steps under some layout, and the last state."""
    graphdef, params = model_parts(dropout_rate)
    optimizer = optax.adam(learning_rate)
    body = make_train_step(
        graphdef,
        optimizer,
        lambda _: learning_rate,
        seed=0,
        smoothing=0.1,
        accumulate_steps=accumulate_steps,
        **options,
    )
    step = compile_step(body)
    state = replicate(TrainState(np.int32(0), params, optimizer.init(params)))
    result = []
    for number in range(4):
        state, metrics = step(state, put(random_batch(number)))
        result.append(float(metrics["loss"]) / float(metrics["tokens"]))
    return np.array(result), state


ONE_PROGRAM = {"reduce": lambda tree: tree, "device_index": lambda: 0}


@pytest.fixture(scope="module")
def single_device():
    return losses(jax.jit, lambda batch: batch, **ONE_PROGRAM)


def assert_same(result, reference):
    np.testing.assert_allclose(result[0], reference[0], rtol=1e-5)
    leaves = jax.tree.leaves(result[1].params)
    for got, wanted in zip(leaves, jax.tree.leaves(reference[1].params), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-4)


def test_four_devices_equal_one(single_device):
    assert jax.local_device_count() == 4
    assert_same(losses(parallel, place), single_device)


def test_micro_batches_equal_one_batch(single_device):
    assert_same(
        losses(jax.jit, lambda batch: batch, accumulate_steps=4, **ONE_PROGRAM), single_device
    )
    assert_same(losses(parallel, lambda batch: place(batch, 2), accumulate_steps=2), single_device)


def test_sharded_jit_equals_pmap(single_device):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    put = lambda batch: jax.device_put(batch, sharding)  # noqa: E731
    assert_same(losses(jax.jit, put, **ONE_PROGRAM), single_device)


def test_state_stays_replicated_and_the_step_compiles_once():
    graphdef, params = model_parts(0.1)
    optimizer = optax.adam(0.01)
    body = make_train_step(graphdef, optimizer, lambda _: 0.01, seed=0, smoothing=0.1)
    traces = []

    def counted(state, batch):
        traces.append(1)
        return body(state, batch)

    step = parallel(counted, donate_state=True)
    state = replicate(TrainState(np.int32(0), params, optimizer.init(params)))
    for number in range(3):
        state, _ = step(state, place(random_batch(number)))
        assert all(leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    assert len(traces) == 1
    assert int(state.step) == 3


def test_dropout_differs_by_step_and_repeats_by_seed():
    first, _ = losses(parallel, place, dropout_rate=0.5)
    again, _ = losses(parallel, place, dropout_rate=0.5)
    np.testing.assert_array_equal(first, again)
    frozen, _ = losses(
        parallel, lambda _: place(random_batch(0)), learning_rate=0.0, dropout_rate=0.5
    )
    assert len(set(frozen)) == len(frozen)  # the same parameters and batch, another key


def test_rows_that_devices_do_not_divide_are_filled_with_empty_ones():
    graphdef, params = model_parts()
    step = parallel(make_eval_step(graphdef, smoothing=0.1))
    six = jax.tree.map(lambda x: x[:6], random_batch(0))
    placed = place(six)
    assert placed.source.ids.shape == (4, 2, 6)
    sums = step(replicate(params), placed)
    whole = jax.tree.map(jnp.asarray, six)
    graph_sums = jax.jit(
        lambda params: make_train_step(
            graphdef, optax.sgd(0.0), lambda _: 0.0, seed=0, smoothing=0.1, **ONE_PROGRAM
        )(TrainState(jnp.int32(0), params, optax.sgd(0.0).init(params)), whole)[1]
    )(params)
    np.testing.assert_allclose(sums.loss, graph_sums["loss"], rtol=1e-5)
    assert float(sums.tokens) == float(graph_sums["tokens"])


def test_teacher_forcing_shifts_within_a_sentence():
    target = Tokens(
        np.array([[1, 7, 2, 1, 8, 2, 0]]),
        np.array([[0, 1, 2, 0, 1, 2, 0]]),
        np.array([[1, 1, 1, 2, 2, 2, 0]]),
    )
    inputs, labels_BT, weights_BT = teacher_forcing(target)
    np.testing.assert_array_equal(inputs.ids, [[1, 7, 2, 1, 8, 2]])
    np.testing.assert_array_equal(labels_BT, [[7, 2, 1, 8, 2, 0]])
    np.testing.assert_array_equal(weights_BT, [[1, 1, 0, 1, 1, 0]])
