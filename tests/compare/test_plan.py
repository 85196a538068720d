"""What a comparison is made of, and what it refuses to compare."""

import functools
import pathlib

import jax
import pytest
from flax import nnx

from transformer_jax.compare.plan import load_config, plan, settled
from transformer_jax.config import Config
from transformer_jax.model.build import build

FILE = """
from transformer_jax.config import Config

def get_config(kind="lstm"):
    config = Config()
    config.model.kind, config.data.batching = kind, "bucketed"
    config.data.train, config.data.valid, config.data.test = "numbers:train", "", "numbers:test"
    config.data.vocab_size = 200
    {more}
    return config
"""


@pytest.fixture
def write(tmp_path):
    def write(name: str, more: str = "pass") -> str:
        path = tmp_path / f"{name}.py"
        path.write_text(FILE.format(more=more))
        return str(path)

    return write


def test_runs_on_all_pairs_come_first_and_fewer_share_their_vocabulary(write, tmp_path):
    file = write("a")
    runs = plan([f"{file}:lstm", f"{file}:gru"], tmp_path / "work", pairs=[50, 20])
    assert [run.workdir.name for run in runs] == [
        "lstm", "gru", "lstm-50", "gru-50", "lstm-20", "gru-20",
    ]  # fmt: skip
    assert [run.config.data.max_pairs for run in runs] == [0, 0, 50, 50, 20, 20]
    assert [run.config.model.kind for run in runs] == ["lstm", "gru"] * 3
    assert runs[0].vocabulary_of is None
    config = settled(runs[3], 77)
    assert config.data.vocabulary == str(tmp_path / "work/gru/vocabulary.model")
    assert config.training.num_steps == 77 and config.data.test == ""
    assert runs[3].config.data.test == "numbers:test"


def test_two_runs_never_share_a_folder(write, tmp_path):
    with pytest.raises(ValueError, match="two runs would be in .*work/a-7: rename a config"):
        plan([write("a"), write("a-7")], tmp_path / "work", pairs=[7])
    dots = tmp_path / "dots.py"
    dots.write_text(FILE.format(more="config.model.kind = 'gru'"))
    (run,) = plan([f"{dots}:.."], tmp_path / "work")
    assert run.workdir == tmp_path / "work" / "-"


def test_overrides_reach_every_config(write, tmp_path):
    runs = plan(
        [write("a"), write("b")],
        tmp_path,
        overrides=["data.test=text:x=y", "config.model.num_layers=2"],
    )
    assert [run.name for run in runs] == ["a", "b"]
    for run in runs:
        assert run.config.data.test == "text:x=y" and run.config.model.num_layers == 2


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("config.data.vocab_size = 300", "not compare: config.data.vocab_size is 200 and 300"),
        ("config.data.vocabulary_kind = 'bpe'", "vocabulary_kind is .unigram. and .bpe."),
        ("config.data.train = 'numbers:valid'", "config.data.train is "),
        ("config.data.max_length = 50", "config.data.max_length is "),
        ("config.training.init_from = 'runs/other'", "config.training.init_from is '' and "),
        ("config.data.vocabulary = '{one}'", "config.data.vocabulary is .*, which differ"),
        ("config.data.vocabulary = 'nowhere.model'", "No such file.*nowhere.model"),
    ],
)
def test_what_is_not_alike_is_not_compared(write, tmp_path, more, told):
    (tmp_path / "one.model").write_text("one")
    (tmp_path / "two.model").write_text("two")
    first = write(
        "first", f"config.data.vocabulary = '{tmp_path / 'two.model'}'" if "{" in more else "pass"
    )
    second = write("second", more.format(one=tmp_path / "one.model"))
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        plan([first, second], tmp_path / "work")


def test_one_vocabulary_in_two_places_is_one(write, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.model").write_text("the same")
    configs = [
        write(name, f"config.data.vocabulary = '{tmp_path / name}.model'")
        for name in ("one", "two")
    ]
    assert len(plan(configs, tmp_path / "work")) == 2


def test_other_batches_models_and_schedules_are_compared(write, tmp_path):
    other = "config.data.tokens_per_batch = 999; config.optimizer.warmup_steps = 3"
    assert len(plan([write("a"), write("b", other)], tmp_path / "work")) == 2


@pytest.mark.parametrize(
    ("configs", "options", "told"),
    [
        ([], {}, "nothing to compare"),
        (["nowhere.py"], {}, "no config file nowhere.py"),
        (["{a}", "{a}"], {}, "two runs would be in .*work/a:"),
        (["{a}"], {"overrides": ["model.layers=2"]}, "no field config.model.layers"),
        (["{a}"], {"overrides": ["data.batching=packed"]}, "a.py: .*cannot read several pairs"),
        (["{a}"], {"overrides": ["data.test="]}, "data.test names no corpus"),
        (["{a}"], {"pairs": [0]}, "0 training pairs"),
        (["{a}"], {"pairs": [7, 7]}, "two runs would be in .*work/a-7:"),
        (["{a}"], {"overrides": ["data.valid"]}, "--override=data.valid is not FIELD=VALUE"),
        (["{a}:x:y"], {}, "a.py:x:y.*model.kind='x:y'"),
    ],
)
def test_what_cannot_be_planned_is_told(write, tmp_path, configs, options, told):
    file = write("a")
    with pytest.raises(ValueError, match=told):
        plan([name.format(a=file) for name in configs], tmp_path / "work", **options)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def get_config():\n    return 3\n", "gives 3; expected a transformer_jax.Config"),
        ("def get_config(\n", "SyntaxError"),
        ("x = 1\n", "AttributeError"),
        ("def get_config():\n    raise ValueError('no such thing')\n", "no such thing"),
    ],
)
def test_a_file_that_is_no_config_is_told(tmp_path, text, told):
    path = tmp_path / "config.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=told):
        load_config(str(path))


def test_a_folder_of_another_run_is_refused_and_another_length_is_not(write, tmp_path):
    file = write("a")
    (run,) = plan([file], tmp_path)
    run.workdir.mkdir()
    (run.workdir / "config.json").write_text(settled(run, 123).to_json())
    assert len(plan([file], tmp_path)) == 1
    with pytest.raises(ValueError, match="a run of another config: config.seed: 0 -> 1"):
        plan([file], tmp_path, overrides=["seed=1"])


def test_shipped_models_of_the_story_are_of_about_equal_size():
    path = pathlib.Path(__file__).parents[2] / "configs" / "story.py"
    sizes = []
    for name in "lstm lstm_dot lstm_additive gru_dot bilstm2_dot transformer".split():
        config = load_config(f"{path}:{name}")
        assert isinstance(config, Config)
        model = functools.partial(build, config.validate().model, 6000)
        abstract = nnx.eval_shape(lambda model=model: model(rngs=nnx.Rngs(0)))
        sizes.append(sum(x.size for x in jax.tree.leaves(nnx.split(abstract)[1])))
    assert max(sizes) < 1.02 * min(sizes)
    with pytest.raises(ValueError, match="no model 'x' in the story, only lstm"):
        load_config(f"{path}:x")
