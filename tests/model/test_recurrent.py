"""RNN encoder-decoders: against NumPy, and the contracts that they share with the Transformer."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from references import cell_step, linear

from transformer_jax.config import ModelConfig
from transformer_jax.model.build import abstract_model, build, first_params
from transformer_jax.model.masks import Tokens, sentence_tokens
from transformer_jax.model.recurrent import RecurrentModel

VOCAB, DIM, LAYERS = 17, 8, 2

# Every kind of attention, of cell, of feeding, both directions; not every combination.
MODELS = {
    "rnn": {"kind": "rnn", "attention": "none"},
    "lstm, fed at every step": {"kind": "lstm", "attention": "none", "context": "every_step"},
    "bidirectional gru": {"kind": "gru", "attention": "none", "bidirectional": True},
    "lstm, dot": {"kind": "lstm", "attention": "dot", "bidirectional": True},
    "gru, general, fed": {"kind": "gru", "attention": "general", "input_feeding": True},
    "lstm, concat, fed": {"kind": "lstm", "attention": "concat", "input_feeding": True},
    "rnn, concat": {"kind": "rnn", "attention": "concat"},
    "gru, additive": {"kind": "gru", "attention": "additive", "bidirectional": True},
    "lstm, additive": {"kind": "lstm", "attention": "additive"},
}


def make_model(**fields) -> RecurrentModel:
    """With parameters so large that all of them tell, the zeros of biases too."""
    config = ModelConfig(**{"num_layers": LAYERS, "model_dim": DIM} | fields)
    graphdef, params = abstract_model(config, VOCAB)
    leaves, structure = jax.tree.flatten(params)
    random = np.random.default_rng(0)
    large = [jnp.asarray(random.normal(size=x.shape) * 0.7, jnp.float32) for x in leaves]
    return nnx.merge(graphdef, jax.tree.unflatten(structure, large))


@pytest.fixture(params=MODELS, scope="module")
def fields(request):
    return MODELS[request.param]


@pytest.fixture(scope="module")
def model(fields):
    return make_model(**fields)


def make_tokens(batch: int, length: int, seed: int = 0, lengths=None) -> Tokens:
    ids = jax.random.randint(jax.random.key(seed), (batch, length), 4, VOCAB)
    return sentence_tokens(ids, jnp.array(lengths if lengths else [length] * batch))


@functools.partial(jax.jit, static_argnums=0)
def _forward(graphdef, params, source, target, keys):
    model = nnx.merge(graphdef, params)
    return model.decode(model.encode(source, keys[0]), target, keys[1], return_attention=True)


def run(model, source, target, keys=(None, None)):
    """Logits and attention of a whole pass, as one compiled program."""
    return _forward(*nnx.split(model), source, target, keys)


# One shape for most tests, so that each model compiles once.
LENGTHS = [9, 5, 3, 1]
SOURCE, TARGET = (4, 9), (4, 6)


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


class Reference:
    """One sentence at a time, one step at a time, in float64: logits [T, V], weights [T, S]."""

    def __init__(self, model, fields):
        self.model, self.fields = model, fields

    def array(self, variable):
        return np.asarray(variable[...], np.float64)

    def over(self, cell, inputs):
        size = 2 if self.fields["kind"] == "lstm" else 1
        state, seen = [np.zeros(cell.hidden_features)] * size, []
        for x in inputs:
            state = cell_step(self.fields["kind"], cell, state, x)
            seen.append(state[-1])
        return seen, state

    def encode(self, ids):
        hidden, states = list(self.array(self.model.embedding.table)[ids]), []
        for layer in self.model.encoder:
            seen, state = self.over(layer.forward, hidden)
            if self.fields.get("bidirectional"):
                back, last = self.over(layer.backward, hidden[::-1])
                seen = [np.concatenate(pair) for pair in zip(seen, back[::-1])]
                state = [
                    linear(bridge, np.concatenate(pair))
                    for bridge, pair in zip(layer.bridge, zip(state, last))
                ]
                state[-1] = np.tanh(state[-1])
            hidden = seen
            states.append(state)
        return np.array(hidden), states

    def attend(self, query, memory):
        attention = self.model.attention
        if self.fields["attention"] == "dot":
            scores = memory @ query
        elif self.fields["attention"] == "general":
            scores = memory @ linear(attention.query, query)
        else:
            parts = linear(attention.query, query)[None] + linear(attention.key, memory)
            scores = np.tanh(parts) @ self.array(attention.vector)
        weights = softmax(scores)
        return weights @ memory, weights

    def __call__(self, source_ids, target_ids):
        fields, model = self.fields, self.model
        kind = fields["attention"]
        memory, states = self.encode(source_ids)
        summary, attentional = states[-1][-1], np.zeros(DIM)
        table, logits, all_weights = self.array(model.embedding.table), [], []
        for token in target_ids:
            embedded, weights = table[token], None
            inputs = [embedded]
            if kind == "additive":
                context, weights = self.attend(states[-1][-1], memory)
                inputs.append(context)
            if fields.get("input_feeding"):
                inputs.append(attentional)
            if fields.get("context") == "every_step":
                inputs.append(summary)
            hidden = np.concatenate(inputs)
            states = list(states)
            for layer, cell in enumerate(model.decoder):
                states[layer] = cell_step(fields["kind"], cell, states[layer], hidden)
                hidden = states[layer][-1]
            if kind == "additive":
                pairs = linear(model.output, np.concatenate([hidden, embedded, context]))
                hidden = np.array([max(pair) for pair in zip(pairs[::2], pairs[1::2])])
            elif kind != "none":
                context, weights = self.attend(hidden, memory)
                hidden = np.tanh(linear(model.output, np.concatenate([context, hidden])))
                attentional = hidden
            logits.append(table @ hidden)
            all_weights.append(weights)
        return np.array(logits), all_weights


def test_teacher_forcing_equals_the_written_out_reference(model, fields):
    source, target = make_tokens(*SOURCE, lengths=LENGTHS), make_tokens(*TARGET, seed=1)
    logits_BTV, attention = run(model, source, target)
    for row, length in enumerate(LENGTHS):
        expected, weights = Reference(model, fields)(
            np.asarray(source.ids)[row, :length], np.asarray(target.ids)[row]
        )
        assert expected.std() > 0.2
        np.testing.assert_allclose(logits_BTV[row], expected, atol=2e-4)
        if fields["attention"] == "none":
            assert attention == {}
        else:
            shown_TS = attention["cross"][0, row, 0]
            np.testing.assert_allclose(shown_TS[:, :length], np.array(weights), atol=1e-4)
            assert not shown_TS[:, length:].any()


def test_later_words_companions_and_padding_change_nothing(model):
    """To the bit: the same program, with other words where none may tell."""
    source, target = make_tokens(*SOURCE, lengths=LENGTHS), make_tokens(*TARGET, seed=1)
    expected, _ = run(model, source, target)
    other = jnp.where(source.segments == 0, 3, source.ids)
    np.testing.assert_array_equal(run(model, source._replace(ids=other), target)[0], expected)
    later = target._replace(ids=target.ids.at[:, 3].set((target.ids[:, 3] + 1) % VOCAB))
    changed, _ = run(model, source, later)
    np.testing.assert_array_equal(changed[:, :3], expected[:, :3])
    assert (np.abs(changed[:, 3:] - expected[:, 3:]).max(axis=-1) > 0).all()
    others = [make_tokens(*shape, seed=7) for shape in (SOURCE, TARGET)]
    mixed = [
        jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[1:]]), *pair)
        for pair in zip((source, target), others)
    ]
    np.testing.assert_array_equal(run(model, *mixed)[0][0], expected[0])
    # And padding of the target carries the state: what follows it goes on from before it.
    hole = target.segments.at[:, 2].set(0)
    skipped = Tokens(*(jnp.delete(x, 2, axis=1) for x in target))
    np.testing.assert_allclose(
        run(model, source, target._replace(segments=hole))[0][:, 3:],
        run(model, source, skipped)[0][:, 2:],
        atol=2e-5,
    )


def test_cached_steps_equal_one_teacher_forced_pass(model, fields):
    """Also where hypotheses follow others."""
    attends, width = fields["attention"] != "none", 3
    source, length = make_tokens(2, 9, lengths=[9, 3]), 5
    context, cache = nnx.jit(lambda model, source: model.start(model.encode(source), 3, 8))(
        model, source
    )
    assert all(leaf.shape[0] == 2 * width for leaf in jax.tree.leaves(cache))
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(context))
    step = nnx.jit(lambda model, *arguments: model.step(*arguments, return_attention=attends))
    random, tokens_BWT = np.random.default_rng(1), np.zeros((2, width, 0), np.int32)
    for position in range(length):
        token_BW = random.integers(4, 11, (2, width)).astype(np.int32)
        tokens_BWT = np.concatenate([tokens_BWT, token_BW[..., None]], axis=-1)
        logits_BWV, context, cache, *weights = step(
            model, context, cache, token_BW, np.full(2, position, np.int32)
        )
        for hypothesis in range(width):
            read = np.pad(tokens_BWT[:, hypothesis], ((0, 0), (0, length - position - 1)))
            target = sentence_tokens(jnp.asarray(read), jnp.full(2, length))
            expected_BTV, attention = run(model, source, target)
            np.testing.assert_allclose(
                logits_BWV[:, hypothesis], expected_BTV[:, position], atol=2e-5
            )
            if attends:
                np.testing.assert_allclose(
                    weights[0][..., hypothesis, :], attention["cross"][..., position, :], atol=2e-5
                )
        parents_BW = random.integers(0, width, (2, width))
        rows = (np.arange(2)[:, None] * width + parents_BW).reshape(-1)
        cache = jax.tree.map(functools.partial(jnp.take, indices=rows, axis=0), cache)
        tokens_BWT = np.take_along_axis(tokens_BWT, parents_BW[..., None], axis=1)


@pytest.mark.parametrize(
    ("kind", "attention"), [("rnn", "none"), ("lstm", "none"), ("lstm", "dot"), ("gru", "additive")]
)
def test_gradients_are_finite_at_200_steps(kind, attention):
    """At the papers' initialisation, and with parameters so large that tanh and gates saturate."""
    config = {"kind": kind, "attention": attention, "num_layers": 1, "model_dim": 16}
    graphdef, _ = abstract_model(ModelConfig(**config), VOCAB)
    params = first_params(ModelConfig(**config), VOCAB, seed=0)
    source, target = make_tokens(2, 200), make_tokens(2, 200, seed=1)

    @jax.jit
    def gradients(params):
        def loss(params):
            logits_BTV, _ = run(nnx.merge(graphdef, params), source, target)
            return -jax.nn.log_softmax(logits_BTV)[..., 5].sum()

        return jax.grad(loss)(params)

    for start in (params, nnx.split(make_model(**config))[1]):
        for leaf in jax.tree.leaves(gradients(start)):
            assert np.isfinite(leaf).all()


@pytest.mark.parametrize("name", ["rnn", "gru, general, fed", "lstm, additive"])
def test_dropout_is_on_if_and_only_if_a_key_is_passed(name):
    model = make_model(**MODELS[name], dropout_rate=0.5)
    source, target = make_tokens(*SOURCE), make_tokens(*TARGET, seed=1)
    plain, _ = run(model, source, target)
    undropped, _ = run(make_model(**MODELS[name], dropout_rate=0.0), source, target)
    np.testing.assert_array_equal(undropped, plain)
    first, again, other, decoder_alone = (
        run(model, source, target, [None if k is None else jax.random.key(k) for k in keys])[0]
        for keys in ((1, 1), (1, 1), (2, 2), (None, 1))
    )
    np.testing.assert_array_equal(first, again)
    for one, another in itertools.combinations((plain, first, other, decoder_alone), 2):
        assert not np.allclose(one, another)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru"])
def test_dropout_never_touches_what_goes_through_time(kind):
    """Each entry of the first state reaches the last output, with most dropped on the way up."""
    model = make_model(kind=kind, attention="none", num_layers=1, dropout_rate=0.6)
    memory, target = model.encode(make_tokens(1, 3)), make_tokens(1, 4)

    @nnx.jit
    def gradient(model, states):
        def last_logits(states):
            moved = memory._replace(states=states)
            return model.decode(moved, target, jax.random.key(1))[0, -1].sum()

        return jax.grad(last_logits)(states)

    for leaf in jax.tree.leaves(gradient(model, memory.states)):
        assert np.count_nonzero(leaf) == leaf.size


def test_bfloat16_computes_near_float32_with_float32_parameters():
    source, target = make_tokens(2, 5), make_tokens(2, 6, seed=1)
    sizes = {"kind": "lstm", "attention": "general", "input_feeding": True}
    full, low = make_model(**sizes), make_model(**sizes, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(nnx.state(low))} == {jnp.dtype("float32")}
    logits, _ = run(low, source, target)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, run(full, source, target)[0], atol=0.1)


def test_a_model_without_attention_says_so():
    model = make_model(kind="gru", attention="none")
    assert model.attention_shape == {}
    assert make_model(kind="gru", attention="dot").attention_shape == {"cross": (1, 1)}
    context, cache = model.start(model.encode(make_tokens(1, 3)), 1, 4)
    with pytest.raises(ValueError, match="no attention"):
        model.step(context, cache, jnp.ones((1, 1), int), jnp.zeros(1, int), return_attention=True)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        # Table, then cells: 4 D (2 D + 1) an LSTM and layer.
        ({"kind": "lstm", "attention": "none"}, VOCAB * DIM + 4 * 4 * DIM * (2 * DIM + 1)),
        # Luong's attentional layer of 2 D x D.
        (
            {"kind": "lstm", "attention": "dot"},
            VOCAB * DIM + 4 * 4 * DIM * (2 * DIM + 1) + 2 * DIM**2,
        ),
        # Half the width in each direction; a bridge of D x D and D for each of c and h.
        (
            {"kind": "lstm", "attention": "none", "bidirectional": True},
            VOCAB * DIM
            + 2 * 2 * 4 * (DIM // 2) * (DIM + DIM // 2 + 1)
            + 2 * 2 * (DIM**2 + DIM)
            + 2 * 4 * DIM * (2 * DIM + 1),
        ),
    ],
)
def test_parameters_are_as_many_as_counted_by_hand(more, expected):
    config = ModelConfig(num_layers=LAYERS, model_dim=DIM, **more)
    abstract = nnx.eval_shape(lambda: build(config, VOCAB, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(nnx.split(abstract)[1])) == expected
