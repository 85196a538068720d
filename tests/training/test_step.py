"""The train step: devices, micro-batches and packing change nothing; sums are divided once."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from builders import model_parts, random_batch, random_store
from flax import nnx

from transformer_jax.data.batches import Batch, Batches
from transformer_jax.data.packing import Growth, Shape, bucketed_rows, packed_rows
from transformer_jax.devices import parallel, place, replicate
from transformer_jax.model import masks
from transformer_jax.training.step import TrainState, batch_sums, make_eval_step, make_train_step


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
    graphdef, params = model_parts(dropout_rate=dropout_rate)
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


def test_logits_of_a_position_at_a_time_equal_all_at_once(single_device):
    def put(batch):
        return place(batch, 2)

    assert_same(losses(parallel, put, accumulate_steps=2, max_logits=1), single_device)


def test_an_rnn_is_evaluated_in_chunks_too():
    graphdef, params = model_parts(kind="gru")

    @jax.jit
    def sums(params):
        model, batch = nnx.merge(graphdef, params), random_batch(0)
        return [batch_sums(model, batch, 0.1, max_logits=most)[1] for most in (1, math.inf)]

    chunks, whole = sums(params)
    np.testing.assert_allclose(chunks, whole, rtol=1e-5)


def test_sharded_jit_equals_pmap(single_device):
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
    put = lambda batch: jax.device_put(batch, sharding)  # noqa: E731
    assert_same(losses(jax.jit, put, **ONE_PROGRAM), single_device)


def test_state_stays_replicated_and_the_step_compiles_once():
    graphdef, params = model_parts(dropout_rate=0.1)
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
    assert "callback" not in step.lower(state, place(random_batch(0))).as_text()


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
            graphdef, optax.adam(0.0), lambda _: 0.0, seed=0, smoothing=0.1, **ONE_PROGRAM
        )(TrainState(jnp.int32(0), params, optax.adam(0.0).init(params)), whole)[1]
    )(params)
    np.testing.assert_allclose(sums.loss, graph_sums["loss"], rtol=1e-5)
    assert float(sums.tokens) == float(graph_sums["tokens"])


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> tuple[Batch, Batch]:
    """All pairs of a store in one batch: packed in few rows, and one a row."""
    cache, stores = tmp_path_factory.mktemp("cache"), [random_store(12, 9, seed=5)]
    packed = packed_rows(stores, Shape(24, 24), Growth(), cache)
    alone = bucketed_rows(stores, 1, Growth(), cache)
    batches = [
        Batches(stores, packed, tokens_per_batch=24 * len(packed[0][0]), seed=None),
        Batches(stores, alone, tokens_per_batch=16 * max(alone[0][0].shape), seed=None),
    ]
    assert [int(x.steps_per_epoch[0]) for x in batches] == [1, 1]
    return batches[0].batch_at(0), batches[1].batch_at(0)


def sums_and_gradients(batch: Batch, norm: str):
    graphdef, params = model_parts(model_dim=16, feed_forward_dim=32, norm=norm)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params):
        return batch_sums(nnx.merge(graphdef, params), batch, 0.1)

    (_, sums), gradients = loss(params)
    return sums, gradients


@pytest.fixture(scope="module", params=["post", "pre"])
def one_a_row(request, layouts):
    """The norm, and the sums and gradients of a pair a row."""
    return request.param, sums_and_gradients(layouts[1], request.param)


def largest_difference(packed, alone) -> float:
    """Of the loss or of any gradient, relative to the largest entry of that array."""
    pairs = zip(*(jax.tree.leaves((sums.loss, grads)) for sums, grads in (packed, alone)))
    return max(float(abs(x - y).max() / abs(y).max()) for x, y in pairs)


def test_packed_pairs_have_the_loss_and_gradients_of_pairs_alone(layouts, one_a_row):
    norm, alone = one_a_row
    assert layouts[0].source.segments.max() >= 2 and layouts[1].source.segments.max() == 1
    packed = sums_and_gradients(layouts[0], norm)
    assert largest_difference(packed, alone) < 1e-5
    assert float(packed[0].tokens) == float(alone[0].tokens)
    assert float(packed[0].filled) == float(alone[0].filled)
    assert float(packed[0].places) < float(alone[0].places)


@pytest.mark.parametrize("mask", ["encoder", "decoder", "cross"])
def test_packing_needs_each_of_the_masks(layouts, one_a_row, mask, monkeypatch):
    """With segments told from padding only in one kind of attention, the equality is gone."""
    norm, alone = one_a_row
    wrong, calls = ("encoder", "decoder", "cross").index(mask), []
    segment_mask = masks.segment_mask

    def blurred(query_BT, memory_BM):
        calls.append(len(calls) == wrong)
        if calls[-1]:
            query_BT, memory_BM = (jnp.minimum(x, 1) for x in (query_BT, memory_BM))
        return segment_mask(query_BT, memory_BM)

    monkeypatch.setattr(masks, "segment_mask", blurred)
    packed = sums_and_gradients(layouts[0], norm)
    assert len(calls) == 3
    assert largest_difference(packed, alone) > 1e-2
