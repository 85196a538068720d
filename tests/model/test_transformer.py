"""The Transformer's contracts: causality, independence of rows, cached == teacher forced, size."""

import functools

import builders
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from transformer_jax.config import ModelConfig
from transformer_jax.model.masks import Tokens, sentence_tokens
from transformer_jax.model.transformer import Transformer

VOCAB = 17
PAPER_VOCAB = 37_000


def make_model(**fields) -> Transformer:
    sizes = {"num_layers": 2, "model_dim": 16, "num_heads": 4, "feed_forward_dim": 32}
    return builders.make_model(VOCAB, **sizes | fields)


def make_tokens(batch: int, length: int, seed: int = 0, lengths=None) -> Tokens:
    ids = jax.random.randint(jax.random.key(seed), (batch, length), 4, VOCAB)
    return sentence_tokens(ids, jnp.array(lengths if lengths else [length] * batch))


@pytest.fixture(params=["post", "pre"], scope="module")
def model(request):
    return make_model(norm=request.param)


@functools.partial(nnx.jit, static_argnames="return_attention")
def encode(model, source, key=None, return_attention=False):
    return model.encode(source, key, return_attention)


@functools.partial(nnx.jit, static_argnames="return_attention")
def decode(model, memory, target, key=None, return_attention=False):
    return model.decode(memory, target, key, return_attention)


@nnx.jit
def run(model, source, target, key=None):
    """Logits of a whole pass, as one compiled program."""
    return model.decode(model.encode(source, key), target, key)


@nnx.jit
def first_step(model, source, token_BW):
    """Logits of the first step of decoding."""
    context, cache = model.start(model.encode(source), token_BW.shape[1], 8)
    return model.step(context, cache, token_BW, jnp.zeros(len(token_BW), jnp.int32))[0]


def test_later_positions_have_exactly_no_gradient(model):
    """The logit of a word that stands nowhere, by the table's rows of distinct target words."""
    source = sentence_tokens(jnp.array([[11, 12, 13]]), jnp.array([3]))
    target = sentence_tokens(jnp.array([[4, 5, 6, 7, 8, 9]]), jnp.array([6]))
    graphdef, params = nnx.split(model)

    @jax.jit
    def gradients_TVD(params):
        def logits_T(params):
            model = nnx.merge(graphdef, params)
            return model.decode(model.encode(source), target)[0, :, 16]

        return jax.jacrev(logits_T)(params)["embedding"]["table"][...]

    for position, table_VD in enumerate(np.asarray(gradients_TVD(params))):
        by_target_T = np.abs(table_VD[target.ids[0]]).sum(axis=-1)
        assert np.all(by_target_T[position + 1 :] == 0.0)
        assert np.all(by_target_T[: position + 1] > 0)


def test_padding_changes_nothing(model):
    source, target = make_tokens(1, 5), make_tokens(1, 6, seed=1)
    longer_source, longer_target = (
        Tokens(
            *(jnp.pad(x, ((0, 0), (0, 4)), constant_values=3) for x in tokens[:2]),
            jnp.pad(tokens.segments, ((0, 0), (0, 4))),
        )
        for tokens in (source, target)
    )
    expected = run(model, source, target)
    padded = run(model, longer_source, longer_target)
    np.testing.assert_allclose(padded[:, :6], expected, atol=2e-5)


def test_companions_change_nothing(model):
    source, target = make_tokens(8, 5), make_tokens(8, 6, seed=1)
    other_source, other_target = make_tokens(8, 5, seed=2), make_tokens(8, 6, seed=3)
    mixed_source, mixed_target = (
        jax.tree.map(lambda x, y: jnp.concatenate([x[:1], y[1:]]), *pair)
        for pair in ((source, other_source), (target, other_target))
    )
    alone = run(model, source, target)[0]
    np.testing.assert_array_equal(run(model, mixed_source, mixed_target)[0], alone)


def test_packed_pairs_are_as_separate_ones(model):
    def pack(first, second):
        ids = jnp.concatenate([first.ids, second.ids], axis=1)
        positions = jnp.concatenate([first.positions, second.positions], axis=1)
        segments = jnp.concatenate([first.segments, 2 * second.segments], axis=1)
        return Tokens(ids, positions, segments)

    # The sizes of the padded and the plain pairs above, so of the same programs.
    sources = make_tokens(1, 5), make_tokens(1, 4, seed=1)
    targets = make_tokens(1, 6, seed=2), make_tokens(1, 4, seed=3)
    packed = run(model, pack(*sources), pack(*targets))
    apart = [run(model, s, t) for s, t in zip(sources, targets, strict=True)]
    np.testing.assert_allclose(packed, jnp.concatenate(apart, axis=1), atol=2e-5)


def histories(width: int, length: int):
    """Which hypothesis each follows at each position, by sentence: [T, 2, W]."""
    return np.random.default_rng(0).integers(0, width, (length, 2, width))


@pytest.mark.parametrize("width", [1, 3])
def test_cached_steps_equal_one_teacher_forced_pass(model, width):
    """Also where hypotheses follow others, and where sentences stand at other positions."""
    source = make_tokens(2, 5, lengths=[5, 3])
    memory = encode(model, source)
    context, cache = model.start(memory, width, 8)
    step = nnx.jit(lambda model, *arguments: model.step(*arguments, return_attention=True))
    assert all(leaf.shape[0] == 2 * width for leaf in jax.tree.leaves(cache))
    memories = jax.tree.map(lambda x: jnp.repeat(x, width, axis=0), memory)
    tokens_RT, rows = np.zeros((2 * width, 6), np.int32), np.arange(2 * width)
    random = np.random.default_rng(1)
    # The second sentence begins anew after two positions, as one that takes a row over.
    for position, parents_BW in enumerate(histories(width, 6)):
        position_B = np.array([position, position - 2 * (position >= 2)], np.int32)
        if position == 2:
            tokens_RT[width:] = 0
        position_R = np.repeat(position_B, width)
        token_BW = random.integers(4, 11, (2, width)).astype(np.int32)
        tokens_RT[rows, position_R] = token_BW.reshape(-1)
        logits_BWV, context, cache, weights_LBHWS = step(
            model, context, cache, token_BW, position_B
        )
        target = sentence_tokens(jnp.asarray(tokens_RT), jnp.asarray(position_R + 1))
        expected_RTV, attention = decode(model, memories, target, return_attention=True)
        np.testing.assert_allclose(
            logits_BWV.reshape(2 * width, -1), expected_RTV[rows, position_R], atol=2e-5
        )
        expected_RLHS = attention["cross"][:, rows, :, position_R]
        weights_RLHS = weights_LBHWS.transpose(1, 3, 0, 2, 4).reshape(expected_RLHS.shape)
        np.testing.assert_allclose(weights_RLHS, expected_RLHS, atol=2e-5)
        parents_R = (np.arange(2)[:, None] * width + parents_BW).reshape(-1)
        cache = jax.tree.map(functools.partial(jnp.take, indices=parents_R, axis=0), cache)
        tokens_RT = tokens_RT[parents_R]


def test_attention_is_returned_by_layer_and_head(model):
    source, target = make_tokens(2, 5, lengths=[5, 3]), make_tokens(2, 6, seed=1)
    memory, encoder = encode(model, source, return_attention=True)
    logits, decoder = decode(model, memory, target, return_attention=True)
    assert encoder["encoder"].shape == (2, 2, 4, 5, 5)
    assert decoder["decoder"].shape == (2, 2, 4, 6, 6)
    assert decoder["cross"].shape == (2, 2, 4, 6, 5)
    assert np.all(np.asarray(decoder["cross"][:, 1, :, :, 3:]) == 0)
    np.testing.assert_array_equal(logits, decode(model, memory, target))


def test_dropout_is_on_if_and_only_if_a_key_is_passed():
    model = make_model(dropout_rate=0.5)
    source, target = make_tokens(1, 5), make_tokens(1, 6, seed=1)
    plain = run(model, source, target)
    np.testing.assert_array_equal(plain, run(make_model(dropout_rate=0.0), source, target))
    first, again, other = (run(model, source, target, jax.random.key(k)) for k in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, plain) and not np.allclose(first, other)


def test_post_norm_closes_each_sub_layer_and_pre_norm_each_stack():
    source = make_tokens(1, 5)
    for norm in ("post", "pre"):
        hidden = np.asarray(encode(make_model(norm=norm), source).hidden)
        np.testing.assert_allclose(hidden.mean(axis=-1), 0, atol=1e-5)
        np.testing.assert_allclose(hidden.std(axis=-1), 1, atol=1e-2)
    assert make_model(norm="post").encoder_norm is None


def test_bfloat16_computes_near_float32_with_float32_parameters():
    source, target = make_tokens(1, 5), make_tokens(1, 6, seed=1)
    full, low = make_model(), make_model(dtype="bfloat16")
    made = nnx.eval_shape(lambda: Transformer(ModelConfig(dtype="bfloat16"), 9, rngs=nnx.Rngs(0)))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(made))} == {jnp.dtype("float32")}
    assert nnx.eval_shape(lambda x: low.encode(x).hidden, source).dtype == jnp.bfloat16
    np.testing.assert_allclose(run(low, source, target), run(full, source, target), atol=0.2)


def equations(program):
    """All equations of a jaxpr, those of its inner ones too."""
    for equation in program.eqns:
        yield equation
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else [parameter]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def test_all_products_of_a_bfloat16_step_are_of_bfloat16():
    """Backwards too: a float32 gradient of the logits would be multiplied on in float32."""
    model, source, target = make_model(dtype="bfloat16"), make_tokens(2, 5), make_tokens(2, 6)
    graphdef, params = nnx.split(model)

    def loss(params):
        model = nnx.merge(graphdef, params)
        return jax.nn.log_softmax(model.decode(model.encode(source), target))[..., 0].sum()

    program = jax.make_jaxpr(jax.grad(loss))(params).jaxpr
    products = [e for e in equations(program) if e.primitive.name == "dot_general"]
    assert len(products) > 50
    assert {x.aval.dtype for e in products for x in e.invars} == {jnp.dtype("bfloat16")}


def closed_form(layers: int, dim: int, feed_forward: int, vocab: int) -> int:
    """Weights of sections 3.1 to 3.4: projections without bias, feed-forward with."""
    attention, norm = 4 * dim * dim, 2 * dim
    network = 2 * dim * feed_forward + feed_forward + dim
    encoder = attention + network + 2 * norm
    decoder = 2 * attention + network + 3 * norm
    return layers * (encoder + decoder) + vocab * dim


@pytest.mark.parametrize(
    ("fields", "millions"),
    [
        ({}, 63.0),
        ({"model_dim": 1024, "num_heads": 16, "feed_forward_dim": 4096}, 214.2),
    ],
    ids=["base", "big"],
)
def test_size_of_the_papers_models(fields, millions):
    """Table 3 rounds to 65 and 213 million.

    With the shared vocabulary of "about 37000" of section 5.1 the layers of section 3 sum
    to 63.0 and 214.2. No one vocabulary gives both of the paper's figures: 65 would need
    40,800 entries, 213 would need 35,900.
    """
    config = ModelConfig(**fields)
    abstract = nnx.eval_shape(lambda: Transformer(config, PAPER_VOCAB, rngs=nnx.Rngs(0)))
    count = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(nnx.state(abstract)))
    expected = closed_form(
        config.num_layers, config.model_dim, config.feed_forward_dim, PAPER_VOCAB
    )
    assert count == expected
    assert round(count / 1e6, 1) == millions


def test_base_runs_at_full_size_without_memory():
    model = nnx.eval_shape(lambda: Transformer(ModelConfig(), PAPER_VOCAB, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    tokens = Tokens(*(jax.ShapeDtypeStruct((32, 64), jnp.int32),) * 3)

    def logits(params, source, target):
        model = nnx.merge(graphdef, params)
        return model.decode(model.encode(source), target)

    assert jax.eval_shape(logits, params, tokens, tokens).shape == (32, 64, PAPER_VOCAB)


def test_the_history_has_the_models_dtype():
    def histories(model):
        context, cache = model.start(model.encode(make_tokens(2, 5)), 3, 4)
        _, after, _ = model.step(context, cache, jnp.full((2, 3), 5), jnp.zeros(2, jnp.int32))
        return context.history, after.history

    shapes = nnx.eval_shape(histories, make_model(dtype="bfloat16"))
    assert {x.dtype for x in jax.tree.leaves(shapes)} == {jnp.dtype("bfloat16")}


def test_without_positions_a_source_is_a_set():
    """Its order tells nothing, in a whole pass or a step; with positions it does."""
    source, target = make_tokens(1, 5), make_tokens(1, 6, seed=1)
    turned = source._replace(ids=source.ids[:, ::-1])
    for positions, equal in (("none", True), ("sinusoidal", False)):
        model = make_model(positions=positions)
        logits = [run(model, tokens, target) for tokens in (source, turned)]
        assert np.allclose(*logits, atol=1e-5) == equal
        if equal:
            first = first_step(model, source, target.ids[:, :1])
            np.testing.assert_allclose(first[:, 0], logits[0][:, 0], atol=1e-5)
