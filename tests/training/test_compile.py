"""Steps compiled before they are called, and the largest batch that a device holds."""

import json
import logging

import jax
import numpy as np
import optax
import pytest
from builders import model_parts, random_store, tiny_config
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.config import Config
from transformer_jax.data.batches import Batches
from transformer_jax.data.packing import Growth, Shape, bucketed_rows, packed_rows
from transformer_jax.devices import parallel, place, replicate
from transformer_jax.training import trainer as trainer_module
from transformer_jax.training.compile import CompiledSteps, largest_batch
from transformer_jax.training.step import TrainState, make_train_step
from transformer_jax.training.trainer import Trainer

VOCAB = 20
COMPILING = "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="module", params=["packed", "bucketed"])
def batches(request, tmp_path_factory) -> Batches:
    stores, cache = [random_store(60, vocab_size=VOCAB)], tmp_path_factory.mktemp("cache")
    if request.param == "packed":
        rows = packed_rows(stores, Shape(40, 48), Growth(), cache)
    else:
        rows = bucketed_rows(stores, 3, Growth(), cache)
    return Batches(stores, rows, tokens_per_batch=200, seed=0)


@pytest.fixture(scope="module")
def step_and_state():
    """A train step, and the first state, made anew at each call."""
    graphdef, params = model_parts(VOCAB, dropout_rate=0.1)
    optimizer = optax.adam(0.01)
    body = make_train_step(graphdef, optimizer, lambda _: 0.01, seed=0, smoothing=0.1)
    step = parallel(body, donate_state=True)
    return step, lambda: replicate(TrainState(np.int32(0), params, optimizer.init(params)))


@pytest.fixture
def compilations():
    """Seconds of each compilation so far."""
    seconds: list[float] = []

    def note(event, duration, **_):
        if event == COMPILING:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield seconds
    jax.monitoring.unregister_event_duration_listener(note)


def test_all_shapes_are_compiled_before_the_first_call(batches, step_and_state, compilations):
    step, state = step_and_state[0], step_and_state[1]()
    placed = [place(batches.batch_at(number)) for number in range(int(batches.epoch_sizes[0]))]
    assert len({batch.source.ids.shape for batch in placed}) == len(batches.shapes)
    compilations.clear()
    compiled = CompiledSteps(step, state, batches)
    assert len(compilations) == len(batches.shapes)
    for batch in placed:
        state, _ = compiled(state, batch)
    assert len(compilations) == len(batches.shapes)


def test_compiled_steps_give_what_the_step_gives(batches, step_and_state):
    step, new_state = step_and_state
    states = [new_state(), new_state()]
    compiled = CompiledSteps(step, states[0], batches)
    for number in range(3):
        results = []
        for index, function in enumerate((compiled, step)):
            states[index], metrics = function(states[index], place(batches.batch_at(number)))
            jax.block_until_ready(metrics)
            results.append(jax.tree.leaves(jax.device_get((states[index], metrics))))
        for got, wanted in zip(*results, strict=True):
            np.testing.assert_array_equal(got, wanted)


def test_the_largest_shape_says_what_memory_is_needed(batches, step_and_state):
    step, new_state = step_and_state
    state = new_state()
    few = CompiledSteps(step, state, batches).bytes
    parameters = sum(x.nbytes for x in jax.tree.leaves(state))
    assert few > parameters

    class Wider:
        shapes = [*batches.shapes, (64, Shape(40, 48))]

    both, alone = Wider(), Wider()
    alone.shapes = Wider.shapes[-1:]
    assert (
        CompiledSteps(step, state, both).bytes == CompiledSteps(step, state, alone).bytes > 2 * few
    )


ANY = 10**15
GIB = 2**30
NEEDS = {
    "linear": lambda n, _: GIB // 100 + 700_000 * n,
    "slightly convex": lambda n, _: GIB // 100 + 700_000 * n + n * n // 2,
    "nothing but the batch": lambda n, _: 700_000 * n,
    "with a threshold": lambda n, _: 700_000 * n + (GIB if n > 10_000 else 0),
    # Rows are filled up to a multiple of devices and micro-batches: the first need is equal.
    "in steps": lambda n, step: GIB // 100 + 700_000 * (-(-n // step) * step),
}


@pytest.mark.parametrize("kind", NEEDS)
@settings(deadline=None)
@given(
    least=st.integers(8, 4096),
    leasts=st.integers(1, 6),
    limit=st.integers(GIB // 10, 200 * GIB),
)
def test_the_largest_batch_fits_and_leaves_little_room(kind, least, leasts, limit):
    tried: dict[int, int] = {}

    def need(tokens: int) -> int:
        return NEEDS[kind](tokens, least * leasts)

    def bytes_of(tokens: int) -> int:
        assert tokens % least == 0
        tried[tokens] = need(tokens)
        return tried[tokens]

    if need(least) > limit:
        with pytest.raises(ValueError, match=f"a step of {least} tokens needs"):
            largest_batch(bytes_of, least, ANY, limit)
        return
    tokens = largest_batch(bytes_of, least, ANY, limit)
    assert tried[tokens] <= limit
    # What is far too large is not compiled, where that alone may end in an error.
    assert len(tried) <= 13 and max(tried) <= 2 * limit / 700_000 + 2 * least * leasts
    if kind != "in steps":
        assert tried[tokens] > 0.97 * limit or need(tokens + least) > limit
    elif len(tried) < 13:
        assert tried[tokens] > 0.97 * limit or need(tokens + least * leasts) > limit
    else:
        assert tried[tokens] > 0.7 * limit


@pytest.mark.parametrize(("most", "chosen"), [(10, 64), (64, 64), (300, 256), (6400, 6400)])
def test_no_more_than_what_is_wanted_is_chosen(most, chosen):
    tried = []

    def bytes_of(tokens: int) -> int:
        tried.append(tokens)
        return tokens

    assert largest_batch(bytes_of, 64, most, GIB) == chosen == max(tried)


def test_a_device_that_cannot_hold_the_smallest_is_told_in_gib():
    with pytest.raises(ValueError, match=r"of 64 tokens needs 3\.00 GiB of a device that has 2\."):
        largest_batch(lambda tokens: 3 * GIB, 64, ANY, 2 * GIB)


def make_config(accumulate_steps: int = 1) -> Config:
    data = {"max_pairs": 2000, "tokens_per_batch": 0}
    training = {"log_every": 1, "accumulate_steps": accumulate_steps}
    return tiny_config(2, model={"dropout_rate": 0.1}, data=data, training=training)


def test_a_run_chooses_its_batch_by_memory_and_keeps_it(tmp_path, monkeypatch, caplog):
    """Each size is compiled once, the chosen one too."""
    limit, sizes = 20_000_000, []
    compile_steps = trainer_module.CompiledSteps

    def counted(step, state, batches, *options):
        sizes.append(batches.batch_rows)
        return compile_steps(step, state, batches, *options)

    monkeypatch.setattr(trainer_module, "CompiledSteps", counted)
    monkeypatch.setattr(trainer_module, "usable_memory", lambda: limit)
    with caplog.at_level(logging.INFO):
        first = Trainer(make_config(), tmp_path)
    chosen = first.progress.tokens_per_batch
    assert first.batches.batch_rows in sizes and len(sizes) == len({tuple(x) for x in sizes})
    assert 0.9 * limit < first.compiled.bytes <= limit
    assert f"tokens_per_batch={chosen}, the most" in caplog.text
    rows, shape = first.batches.shapes[0]
    assert (rows + 1) * max(shape) > chosen >= rows * max(shape) and rows > 8
    first.advance()
    first.save()
    first.close()
    kept = next((tmp_path / "checkpoints").rglob("run/*")).read_text()
    assert json.loads(kept)["progress"]["tokens_per_batch"] == chosen
    monkeypatch.setattr(trainer_module, "usable_memory", lambda: 2 * limit)
    resumed = Trainer(make_config(), tmp_path)
    resumed.close()
    assert resumed.step == 1 and resumed.progress.tokens_per_batch == chosen
    assert resumed.batches.shapes == first.batches.shapes


def test_micro_batches_of_several_devices_do_not_lead_the_choice_astray(tmp_path, monkeypatch):
    """Of 8 rows and of 16 rows each becomes 4 devices times 4 micro-batches of one row."""
    limit = 5_000_000
    monkeypatch.setattr(trainer_module, "usable_memory", lambda: limit)
    trainer = Trainer(make_config(accumulate_steps=4), tmp_path)
    trainer.close()
    assert 0.5 * limit < trainer.compiled.bytes <= limit


def test_a_device_too_small_for_a_run_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "usable_memory", lambda: 1000)
    with pytest.raises(ValueError, match=r"needs .* GiB of a device that has .* smaller model"):
        Trainer(make_config(), tmp_path)
