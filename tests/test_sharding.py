"""A mesh of devices computes what one device does; each holds its part of the state."""

import math
import shutil

import jax
import numpy as np
import optax
import pytest
from builders import VOCAB_SIZE, model_parts, random_batch, tiny_config, tiny_model_config
from flax import nnx
from jax.sharding import PartitionSpec as P

from transformer_jax.config import Config, ParallelConfig
from transformer_jax.model.layers import TiedEmbedding
from transformer_jax.sharding import DataParallel, Sharded, layout_of
from transformer_jax.training.loss import cross_entropy_of_states
from transformer_jax.training.step import TrainState, make_eval_step, make_train_step
from transformer_jax.training.targets import collectives
from transformer_jax.training.trainer import Trainer


def layout(data: int, fsdp: int, tensor: int) -> Sharded:
    return Sharded(Config(parallel=ParallelConfig(data, fsdp, tensor)))


def trained(layout, accumulate_steps=1, max_logits=math.inf):
    """Losses of a few steps, and the last state."""
    graphdef, params = model_parts()
    optimizer = optax.adam(0.01)
    body = make_train_step(
        graphdef,
        optimizer,
        lambda _: 0.01,
        seed=0,
        smoothing=0.1,
        accumulate_steps=accumulate_steps,
        max_logits=max_logits,
        **layout.hooks,
    )
    step = layout.parallel(body, donate_state=True)
    state = layout.put(TrainState(np.int32(0), params, optimizer.init(params)))
    losses = []
    for number in range(3):
        state, metrics = step(state, layout.place(random_batch(number), accumulate_steps))
        jax.block_until_ready(state)
        losses.append(float(metrics["loss"]) / float(metrics["tokens"]))
    return losses, state


@pytest.fixture(scope="module")
def expected():
    return trained(DataParallel())


@pytest.mark.parametrize(
    ("axes", "options"),
    [
        ((4, 1, 1), {}),
        ((1, 4, 1), {}),
        ((2, 2, 1), {"accumulate_steps": 2}),
        ((1, 2, 2), {}),
        ((1, 2, 2), {"max_logits": 2 * 4 * VOCAB_SIZE * 4}),
    ],
    ids=["data", "fsdp", "both, in micro-batches", "fsdp and tensor", "logits in chunks"],
)
def test_every_mesh_computes_what_copies_of_the_state_do(expected, axes, options):
    losses, state = trained(layout(*axes), **options)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-5)
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected[1]), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_a_device_holds_its_part_of_parameters_and_moments():
    _, state = trained(layout(1, 2, 2))
    adam = state.opt_state[0]
    for tree in (state.params, adam.mu, adam.nu):
        parts = {
            jax.tree_util.keystr(path, simple=True, separator="."): [
                whole // part
                for whole, part in zip(x.shape, x.addressable_shards[0].data.shape, strict=True)
            ]
            for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        block = "encoder.self_attention.projections.0.kernel.value"
        assert parts[block] == [1, 2, 1, 2, 1]  # [L, D, C, H, K]
        assert parts["decoder.feed_forward.contract.kernel.value"] == [1, 2, 2]
        assert parts["embedding.table.value"] == [1, 1]  # 4 do not divide the vocabulary
        assert parts["encoder.residuals.0.layer_norm.scale.value"] == [1, 1]


def test_what_an_axis_does_not_divide_stays_whole():
    shardings = layout(1, 4, 1).shardings(
        {"expand": {"kernel": np.zeros((6, 8))}, "embedding": {"table": np.zeros((12, 8))}}
    )
    assert shardings["embedding"]["table"].spec == P(("fsdp", "tensor"), None)
    assert shardings["expand"]["kernel"].spec == P(None, "tensor")


@pytest.mark.parametrize("axes", [(4, 1, 1), (1, 4, 1)], ids=["data", "fsdp"])
def test_chunks_of_the_loss_communicate_once_and_no_rows(axes):
    of = layout(*axes)
    graphdef, params = nnx.split(TiedEmbedding(16, 4, rngs=nnx.Rngs(0)))
    shardings = of.shardings({"embedding": params})["embedding"]

    def loss(params, rows):
        embedding = nnx.merge(graphdef, params)
        return cross_entropy_of_states(embedding, rows, 0.1, 1, of.hooks["over_rows"])[0]

    rows = of.place((np.ones((8, 6, 4), np.float32), np.ones((8, 6), int), np.ones((8, 6))))
    gradient = jax.jit(jax.grad(loss), in_shardings=(shardings, None), out_shardings=shardings)
    text = gradient.lower(params, rows).compile().as_text()
    loops, entry = (collectives(part) for part in text.split("ENTRY"))
    table = 16 * 4 * 4
    assert not loops and entry["all-reduce"][1] - table in (0, 4)  # with the loss, or without
    assert entry.get("all-gather", (1, table)) == (1, table)


def test_an_evaluation_sums_over_the_mesh():
    graphdef, params = model_parts()
    sums = []
    for of in (DataParallel(), layout(2, 2, 1), layout(1, 2, 2)):
        step = of.parallel(make_eval_step(graphdef, smoothing=0.1, **of.hooks))
        six = jax.tree.map(lambda x: x[:6], random_batch(0))
        sums.append([float(x) for x in step(of.put(params), of.place(six))._replace(places=0)])
    np.testing.assert_allclose(sums[1:], [sums[0]] * 2, rtol=1e-5)


def test_a_sharded_state_is_whole_again_to_decode_with():
    _, params = model_parts()
    of = layout(1, 2, 2)
    for whole, x in zip(
        jax.tree.leaves(params), jax.tree.leaves(of.local_copies(of.put(params))), strict=True
    ):
        assert x.is_fully_replicated
        np.testing.assert_array_equal(x, whole)


@pytest.mark.parametrize(("axes", "why"), [((0, 3, 1), "do not divide the 4"), ((3, 1, 1), "4")])
def test_devices_that_cannot_be_divided_so_are_refused(axes, why):
    with pytest.raises(ValueError, match=f"config.parallel.data=.*{why}"):
        layout(*axes)


def test_heads_that_cannot_be_divided_are_refused():
    config = Config(model=tiny_model_config(), parallel=ParallelConfig(tensor=4))
    with pytest.raises(ValueError, match="config.parallel.tensor=4 does not divide .*num_heads=2"):
        config.validate()
    assert isinstance(layout_of(Config()), DataParallel)


MESHES = {"copies": (0, 1, 1), "fsdp": (1, 4, 1), "fsdp and tensor": (1, 2, 2)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Four updates of each layout without dropout, saved after two as well: workdir and state."""
    made = {}
    for name, axes in MESHES.items():
        workdir = tmp_path_factory.mktemp("run")
        config = tiny_config(model={"dropout_rate": 0.0})
        config.parallel = ParallelConfig(*axes)
        trainer = Trainer(config, workdir)
        for _ in range(2):
            trainer.advance()
        trainer.save()
        trainer.checkpoints.wait()
        half = shutil.copytree(workdir, tmp_path_factory.mktemp("half") / "run")
        for _ in range(2):
            trainer.advance()
        trainer.settle()
        made[name] = half, config, jax.device_get(trainer.state)
        trainer.close()
    return made


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        ("copies", "fsdp and tensor"),
        ("fsdp", "copies"),
        ("fsdp and tensor", "fsdp"),
        ("fsdp", "fsdp and tensor"),
    ],
)
def test_what_one_layout_saved_another_goes_on_with(runs, tmp_path, saved, resumed):
    workdir, _, _ = runs[saved]
    _, config, expected = runs[resumed]
    trainer = Trainer(config, shutil.copytree(workdir, tmp_path / "run"))
    assert trainer.step == 2
    for _ in range(2):
        trainer.advance()
    trainer.settle()
    state = jax.device_get(trainer.state)
    trainer.close()
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-3)
