"""Whose a workdir is, and what its config says of its vocabulary."""

import types

import jax
import numpy as np
import pytest
from builders import tiny_config

from transformer_jax.checkpoint import Checkpoints
from transformer_jax.config import Config, DataConfig, TrainingConfig
from transformer_jax.data.corpora import Pair
from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.devices import replicated
from transformer_jax.model.build import first_params
from transformer_jax.sharding import DataParallel
from transformer_jax.training.optimizer import make_optimizer
from transformer_jax.training.run import (
    Progress,
    check_owner,
    load_data,
    save_run_metadata,
    start_state,
)
from transformer_jax.training.step import TrainState

PAIRS = [Pair(f"{a} {b}", f"{b} {c}") for a in "abcd" for b in "efgh" for c in "ijkl"]
KINDS = {
    "unigram": {"vocab_size": 20, "byte_fallback": False, "normalization": "nfkc"},
    "bpe": {"vocab_size": 280, "byte_fallback": True},
    "bytes": {},
    "symbols": {"vocab_size": 16},
}
# Fields that say something else, and what the vocabulary is.
WRONG = {
    "unigram": [("vocabulary_kind", "bpe", "unigram"), ("normalization", "identity", "nfkc")],
    "bpe": [("vocabulary_kind", "symbols", "bpe"), ("byte_fallback", False, True)],
    "bytes": [("vocabulary_kind", "bpe", "bytes")],
    "symbols": [("vocabulary_kind", "bpe", "symbols")],
}


@pytest.fixture(scope="module", params=KINDS)
def named(request, tmp_path_factory):
    """A vocabulary's kind and file, in a folder that a run might have left."""
    path = tmp_path_factory.mktemp(request.param) / "vocabulary.model"
    options = {"vocab_size": 100} | KINDS[request.param]
    Vocabulary.train([PAIRS], kind=request.param, **options).save(path)
    return request.param, path


def config_of(by: str, path, **data) -> Config:
    """A config that names a vocabulary by itself, or by the run that has it."""
    if by == "vocabulary":
        return Config(data=DataConfig(vocabulary=str(path), **data))
    return Config(data=DataConfig(**data), training=TrainingConfig(init_from=str(path.parent)))


def save(workdir, config: Config, vocabulary) -> None:
    """What a run of the config would leave."""
    save_run_metadata(workdir, check_owner(workdir, config), Vocabulary.load(vocabulary))


@pytest.mark.parametrize("by", ["vocabulary", "init_from"])
def test_the_kept_config_says_what_the_named_vocabulary_is(named, tmp_path, by):
    kind, path = named
    kept = check_owner(tmp_path, config_of(by, path))
    expected = {"vocabulary_kind": kind} | KINDS[kind]
    if kind == "symbols":  # at most so many, as where it was trained
        expected["vocab_size"] = DataConfig().vocab_size
    assert kept.data == DataConfig(vocabulary=kept.data.vocabulary, **expected)
    save_run_metadata(tmp_path, kept, Vocabulary.load(path))
    # The same command goes on, and one that says what is so.
    assert check_owner(tmp_path, config_of(by, path)) == kept
    assert check_owner(tmp_path, config_of(by, path, **expected)) == kept
    # The vocabulary is the workdir's own by now.
    assert check_owner(tmp_path, Config()).data.vocabulary_kind == kind
    with pytest.raises(ValueError, match="belongs to a run of another config: config.seed: 0 -> 1"):
        check_owner(tmp_path, Config(seed=1))


@pytest.mark.parametrize("by", ["vocabulary", "init_from"])
@pytest.mark.parametrize("resumed", [False, True])
def test_another_vocabulary_than_the_named_is_refused(named, tmp_path, by, resumed):
    kind, path = named
    if resumed:
        save_run_metadata(
            tmp_path, check_owner(tmp_path, config_of(by, path)), Vocabulary.load(path)
        )
    for name, value, own in WRONG[kind]:
        with pytest.raises(
            ValueError, match=rf"data\.{name}={value} .*, whose {name} is {own}: leave"
        ):
            check_owner(tmp_path, config_of(by, path, **{name: value}))
    if kind != "bytes":
        size = len(Vocabulary.load(path))
        with pytest.raises(ValueError, match=rf"vocab_size=10 .*vocab_size is {size}: leave"):
            check_owner(tmp_path, config_of(by, path, vocab_size=10))


def test_what_a_named_vocabulary_cannot_do_is_refused(tmp_path):
    path = tmp_path / "vocabulary.model"
    Vocabulary.train([PAIRS], 300, "bytes").save(path)
    with pytest.raises(ValueError, match=r"sampling_alpha=0\.1 needs .*not bytes"):
        check_owner(tmp_path / "run", config_of("vocabulary", path, sampling_alpha=0.1))


def test_a_run_goes_on_with_its_own_vocabulary_and_parameters(named, tmp_path):
    kind, path = named
    other = tmp_path / "other.model"
    Vocabulary.train([], 0, "bytes", tags=["<2de>"]).save(other)
    workdir = tmp_path / "run"
    workdir.mkdir()
    save_run_metadata(
        workdir, check_owner(workdir, config_of("vocabulary", path)), Vocabulary.load(path)
    )
    path.with_name("moved.model").write_bytes(path.read_bytes())
    check_owner(workdir, config_of("vocabulary", path.with_name("moved.model")))
    with pytest.raises(ValueError, match=r"config\.data\.vocabulary has no effect on the run"):
        check_owner(workdir, config_of("vocabulary", other))
    with pytest.raises(ValueError, match=r"config\.training\.init_from has no effect on the run"):
        check_owner(workdir, config_of("init_from", path))


@pytest.mark.parametrize("train", ["numbers:test", "numbers:test@2,numbers:valid@1"])
def test_a_temperature_without_a_mixture_to_temper_is_refused(tmp_path, train):
    config = Config(data=DataConfig(train=train, temperature=5.0))
    with pytest.raises(ValueError, match=r"temperature=5\.0 needs a mixture without weights"):
        load_data(tmp_path, config)


def test_the_first_state_is_that_of_one_device_on_all(tmp_path):
    config = tiny_config()
    data = types.SimpleNamespace(vocabulary=range(90), fingerprint=1)
    optimizer = make_optimizer(config.optimizer, lambda step: 1.0)
    state, progress = start_state(
        tmp_path, config, data, Checkpoints(tmp_path), optimizer, DataParallel()
    )
    params = first_params(config.model, 90, config.seed)
    expected = TrainState(0, params, optimizer.init(params))
    assert all(x.sharding == replicated() for x in jax.tree.leaves(state))
    for got, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert progress == Progress(1)
    donated = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)(state)
    assert donated.step == 1
