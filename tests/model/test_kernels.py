"""Every kernel of attention that this machine can run, against the plain one; and the choice."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from builders import tiny_model_config
from flax import nnx
from jax.experimental import pallas as pl
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from transformer_jax.config import ModelConfig
from transformer_jax.data.batches import Batch
from transformer_jax.model import pallas_attention
from transformer_jax.model.attention import attend
from transformer_jax.model.build import abstract_model
from transformer_jax.model.kernels import choose_kernel
from transformer_jax.model.masks import SegmentMask, Tokens, attention_mask
from transformer_jax.model.transformer import Transformer
from transformer_jax.sharding import ROWS
from transformer_jax.training.step import batch_sums

GPU = jax.default_backend() == "gpu"
DTYPE = "bfloat16" if GPU else "float32"


FUSED = ["pallas", pytest.param("cudnn", marks=pytest.mark.skipif(not GPU, reason="needs a GPU"))]


@pytest.fixture(params=["xla", *FUSED])
def kernel(request, monkeypatch):
    if request.param == "pallas" and jax.default_backend() != "tpu":
        interpreted = functools.partial(pl.pallas_call, interpret=True)
        monkeypatch.setattr(pallas_attention.pl, "pallas_call", interpreted)
    return request.param


def segments_of(*lengths: int, padding: int = 0) -> jax.Array:
    """[1, T]: sentences of these lengths in a row, and padding."""
    numbers = [*range(1, len(lengths) + 1), 0]
    return jnp.asarray(np.repeat(numbers, [*lengths, padding])[None], jnp.int32)


def arrays_of(length: int, memory: int, heads: int = 2, head_dim: int = 8) -> list[jax.Array]:
    """Queries, keys and values, and a gradient of the result."""
    random = np.random.default_rng(0)
    return [
        jnp.asarray(random.normal(size=(1, heads, n, head_dim)), DTYPE)
        for n in (length, memory, memory, length)
    ]


@jax.jit
def outcome(arrays, mask):
    """The attended states and the gradients of queries, keys and values."""
    attended, pullback = jax.vjp(lambda *x: attend(*x, mask)[0], *arrays[:3])
    return attended, *pullback(arrays[3])


def assert_close(got, expected):
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(
            np.asarray(x, np.float32), np.asarray(y, np.float32), atol=0.05 if GPU else 2e-5
        )


SELF = segments_of(50, 40, 30, padding=8)
SEGMENTS = {
    "causal": (SELF, SELF, True),
    "cross": (SELF, segments_of(70, 20, 51), False),
    "blocks": (segments_of(300, 84), segments_of(600, 100, padding=1), False),
    "causal_blocks": (segments_of(500, 200, padding=29), segments_of(500, 200, padding=29), True),
}


@pytest.mark.parametrize("rows", SEGMENTS)
def test_equals_the_plain_one_forward_and_backward(kernel, rows):
    query_BT, key_BM, causal = SEGMENTS[rows]
    arrays = arrays_of(query_BT.shape[1], key_BM.shape[1])
    # What padding attends to is nobody's business, and its gradient is zero.
    arrays[3] *= (query_BT != 0)[:, None, :, None]
    mask = attention_mask(query_BT, key_BM, kernel, causal=causal)
    got = outcome(arrays, mask)
    expected = outcome(arrays, attention_mask(query_BT, key_BM, "xla", causal=causal))
    real = (query_BT != 0)[:, None, :, None]
    assert_close((got[0] * real, *got[1:]), (expected[0] * real, *expected[1:]))
    assert all(np.abs(np.asarray(x, np.float32)).max() > 0.1 for x in got)


def test_a_packed_row_equals_rows_of_its_own(kernel):
    """Of 70 and 65 tokens: rows that each kernel takes."""
    segments = segments_of(70, 65)
    arrays = arrays_of(135, 135)
    packed = outcome(arrays, attention_mask(segments, segments, kernel, causal=True))
    for part in (slice(70), slice(70, None)):
        own = segments[:, part] * 0 + 1
        alone = outcome(
            [x[:, :, part] for x in arrays], attention_mask(own, own, kernel, causal=True)
        )
        assert_close([x[:, :, part] for x in packed], alone)


def test_the_future_has_a_gradient_of_exactly_zero(kernel):
    query, key, value, gradient = arrays_of(129, 129)
    mask = attention_mask(*[segments_of(129)] * 2, kernel, causal=True)
    _, _, of_key, of_value = outcome([query, key, value, gradient.at[:, :, 100:].set(0)], mask)
    for x in (of_key, of_value):
        assert not np.asarray(x[:, :, 100:], np.float32).any() and np.asarray(x[:, :, 99]).any()


def test_rows_with_nothing_to_attend_to_stay_finite_with_their_gradients(kernel):
    """A source that is padding alone, and targets whose source is not there."""
    query_BT = segments_of(60, 30, padding=10)
    for key_BM in (segments_of(padding=80), segments_of(70, padding=10)):
        mask = attention_mask(query_BT, key_BM, kernel)
        for x in outcome(arrays_of(100, 80), mask):
            assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize(
    ("heads", "head_dim", "length", "dtype", "taken"),
    [
        (16, 80, 1024, "bfloat16", False),
        (16, 80, 512, "bfloat16", True),
        (8, 96, 1024, "float32", False),
        (8, 96, 1024, "bfloat16", True),
        (8, 64, 1024, "float32", True),
        (8, 120, 512, "bfloat16", True),
        (8, 64, 1025, "bfloat16", False),
        (8, 64, 64, "bfloat16", False),
    ],
)
def test_the_rows_that_a_tpu_s_core_holds_are_those_its_compiler_took(
    heads, head_dim, length, dtype, taken
):
    rows = jax.ShapeDtypeStruct((2, heads, length, head_dim), dtype)
    assert pallas_attention.takes_rows(rows, rows) == taken


def test_rows_that_are_not_for_a_kernel_are_computed_plainly():
    segments, arrays = segments_of(40, padding=4), arrays_of(44, 44)
    fused, plain = (attention_mask(segments, segments, x, causal=True) for x in ("pallas", "xla"))
    assert isinstance(fused, SegmentMask) and isinstance(plain, jax.Array)
    for got, expected in zip(outcome(arrays, fused), outcome(arrays, plain)):
        np.testing.assert_array_equal(got, expected)


def test_weights_come_from_the_plain_kernel_alone(kernel):
    mask = attention_mask(SELF, SELF, kernel)
    _, weights = attend(*arrays_of(128, 128)[:3], mask)
    assert (weights is not None) == (kernel == "xla")


def test_devices_of_a_mesh_share_rows_and_heads(kernel):
    """As for a state that is split: the compiler splits arrays, and no kernel."""
    mesh = jax.make_mesh((2, 1, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    mask = attention_mask(*[segments_of(60, 40, padding=10).repeat(2, 0)] * 2, kernel, causal=True)
    arrays = [x.repeat(2, 0) for x in arrays_of(110, 110)]
    expected = outcome(arrays, mask)
    heads = NamedSharding(mesh, PartitionSpec(ROWS, "tensor"))
    arrays = [jax.device_put(x, heads) for x in arrays]
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        split = jax.jit(outcome)(arrays, jax.device_put(mask, NamedSharding(mesh, PartitionSpec())))
    assert_close(split, expected)
    assert all(x.sharding.is_equivalent_to(heads, 4) for x in split)


CUDNN = {"attention_kernel": "cudnn", "dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("fields", "platform", "chosen"),
    [
        ({}, "cpu", "xla"),
        ({}, "gpu", "xla"),
        ({}, "tpu", "pallas"),
        ({"dtype": "bfloat16"}, "gpu", "cudnn"),
        ({"dtype": "bfloat16"}, "cpu", "xla"),
        ({"num_heads": 128}, "tpu", "xla"),
        ({"attention_kernel": "xla"}, "tpu", "xla"),
        ({"attention_kernel": "pallas"}, "tpu", "pallas"),
        (CUDNN, "cuda", "cudnn"),
    ],
)
def test_the_kernel_is_the_platform_s_unless_asked_for(fields, platform, chosen):
    assert choose_kernel(ModelConfig(**fields), platform) == chosen


def test_cudnn_is_not_for_gpus_before_ampere(monkeypatch):
    for capability, chosen in (("7.5", "xla"), ("8.0", "cudnn")):
        gpu = types.SimpleNamespace(compute_capability=capability)
        monkeypatch.setattr(jax, "local_devices", lambda gpu=gpu: [gpu])
        assert choose_kernel(ModelConfig(dtype="bfloat16"), "gpu") == chosen


@pytest.mark.parametrize(
    ("fields", "platform", "told"),
    [
        (CUDNN, "cpu", "cudnn needs an NVIDIA GPU; this is for a cpu"),
        (CUDNN | {"dtype": "float32"}, "gpu", "cudnn needs config.model.dtype=bfloat16; it is"),
        (CUDNN | {"num_heads": 128}, "gpu", "needs .* a multiple of 8, at most 128; it is 4"),
        (CUDNN | {"num_heads": 2}, "gpu", "needs .* a multiple of 8, at most 128; it is 256"),
        ({"attention_kernel": "pallas"}, "gpu", "pallas needs a TPU; this is for a gpu"),
    ],
)
def test_a_kernel_that_cannot_run_is_refused(fields, platform, told):
    with pytest.raises(ValueError, match=f"config.model.attention_kernel=.*{told}"):
        abstract_model(ModelConfig(**fields), 100, platform)


@pytest.mark.parametrize("kernel", FUSED, indirect=True)
def test_a_model_of_packed_rows_has_the_loss_and_gradients_of_the_plain_one(kernel):
    random = np.random.default_rng(0)

    def side(*lengths: int) -> Tokens:
        segments = segments_of(*lengths, padding=6)
        ids = random.integers(4, 13, segments.shape).astype(np.int32)
        return Tokens(ids, np.arange(segments.size, dtype=np.int32)[None], segments)

    target = side(20, 40)
    batch = Batch(side(40, 30), target, target.ids * (target.segments != 0))

    def sums_and_gradients(**fields):
        config = tiny_model_config(model_dim=16, dtype=DTYPE, **fields)
        model = Transformer(config, 13, rngs=nnx.Rngs(0))
        function = nnx.jit(nnx.value_and_grad(lambda x: batch_sums(x, batch, 0.1)[0]))
        return jax.tree.leaves(function(model))

    got = sums_and_gradients(attention_kernel=kernel, scan_layers="on")
    for x, y in zip(got, sums_and_gradients(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=0.5 if GPU else 1e-3)
