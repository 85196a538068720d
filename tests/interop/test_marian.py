"""A model made at random in the shape of OPUS-MT's, imported, and exported again."""

import importlib
import io
import json

import jax
import numpy as np
import pytest
from builders import OPUS_SOURCES, OPUS_TARGETS, opus_files

from transformer_jax.__main__ import parser_of
from transformer_jax.config import load_config
from transformer_jax.decoding.options import SearchOptions
from transformer_jax.decoding.translator import Translator
from transformer_jax.interop import marian
from transformer_jax.saved_run import load_run
from transformer_jax.training.loop import train

hub = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the library itself


def command(name, flags):
    module = importlib.import_module(f"transformer_jax.commands.{name}")
    module.run(parser_of(name).parse(flags))


@pytest.fixture(scope="module")
def opus(tmp_path_factory):
    """The folder of a random model."""
    folder = tmp_path_factory.mktemp("opus")
    for name, data in zip(("source.spm", "target.spm", "vocab.json"), opus_files()):
        (folder / name).write_bytes(data)
    size = len(json.loads(opus_files()[2]))
    sides = {"layers": 2, "attention_heads": 2, "ffn_dim": 16}
    symbols = {"pad_token_id": size - 1, "decoder_start_token_id": size - 1, "eos_token_id": 0}
    config = hub.MarianConfig(
        vocab_size=size,
        d_model=8,
        activation_function="swish",
        scale_embedding=True,
        max_position_embeddings=512,
        forced_eos_token_id=0,
        **{f"{side}_{name}": x for side in ("encoder", "decoder") for name, x in sides.items()},
        **symbols,
    )
    model, random = hub.MarianMTModel(config), torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if "embed_positions" not in name:
            tensor += 0.3 * torch.randn(tensor.shape, generator=random)
    search = {"num_beams": 3, "length_penalty": 0.5, "max_length": 64}
    search |= {"bad_words_ids": [[size - 1]], "forced_eos_token_id": 0}
    model.generation_config = hub.GenerationConfig(**symbols, **search)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def workdir(opus, tmp_path_factory):
    """The workdir that the command makes of it."""
    workdir = tmp_path_factory.mktemp("imported") / "run"
    flags = ["--format=marian", f"--source={opus}", f"--workdir={workdir}"]
    command("import", flags)
    return workdir


def test_exported_again_it_is_equal_to_the_bit(opus, workdir, tmp_path):
    flags = ["--format=transformers", f"--workdir={workdir}", f"--output={tmp_path}/new"]
    command("export", flags)
    for name in ("source.spm", "target.spm", "vocab.json"):
        assert (tmp_path / "new" / name).read_bytes() == (opus / name).read_bytes()
    before, after = (
        hub.MarianMTModel.from_pretrained(x).state_dict() for x in (opus, tmp_path / "new")
    )
    assert before.keys() == after.keys()
    assert not [name for name in before if not torch.equal(before[name], after[name])]
    configs = [json.loads((x / "config.json").read_text()) for x in (opus, tmp_path / "new")]
    other = {"transformers_version"}
    assert {k: v for k, v in configs[0].items() if k not in other} == {
        k: v for k, v in configs[1].items() if k not in other
    }


def test_it_computes_and_finds_the_same(opus, workdir):
    translator = Translator.from_workdir(workdir)
    model = hub.MarianMTModel.from_pretrained(opus).eval()
    tokenizer = hub.MarianTokenizer.from_pretrained(opus)
    pairs = list(zip(OPUS_SOURCES, OPUS_TARGETS))
    options = SearchOptions(beam_size=1, max_length=20)
    scores, translations = translator.score(pairs), translator.translate(OPUS_SOURCES, options)
    for (source, target), score, translation in zip(pairs, scores, translations):
        inputs = tokenizer(source, text_target=target, return_tensors="pt")
        with torch.no_grad():
            logits_TV = model(**inputs).logits[0]
        labels = inputs["labels"][0]
        log_probs = logits_TV.log_softmax(-1)[range(len(labels)), labels]
        np.testing.assert_allclose(score.log_probs, log_probs, atol=1e-4)
        del inputs["labels"]
        found = model.generate(**inputs, num_beams=1, max_length=21)[0].tolist()
        pieces = translator.vocabulary.pieces(translation.hypotheses[0].ids)
        assert tokenizer.convert_ids_to_tokens(found[1:-1]) == pieces


def test_the_config_is_the_models(workdir):
    config = load_run(workdir).config
    assert (config.model.norm, config.model.activation) == ("post", "silu")
    assert (config.model.attention_bias, config.model.output_bias) == (True, True)
    assert (config.decoding.beam_size, config.decoding.length_penalty) == (3, 0.5)
    assert config.decoding.max_length == 512


def test_fine_tuning_lowers_the_loss(workdir, tmp_path):
    for side, texts in (("en", OPUS_SOURCES), ("de", OPUS_TARGETS)):
        (tmp_path / f"corpus.{side}").write_text("\n".join(texts * 8) + "\n")
    config = load_config(f"{workdir}/config.json")
    config.data.train, config.data.batching = f"text:{tmp_path}/corpus", "bucketed"
    config.data.num_buckets, config.data.tokens_per_batch = 1, 256
    config.training.num_steps, config.training.log_every = 8, 1
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 0.01, 1
    config.model.dropout_rate = 0.0
    with pytest.raises(ValueError, match="another --workdir with .*init_from=.* starts from it"):
        train(config, workdir)
    config.training.init_from = str(workdir)
    train(config, tmp_path / "tuned")
    lines = (tmp_path / "tuned/metrics.jsonl").read_text().splitlines()
    losses = [x["loss"] for x in map(json.loads, lines) if "loss" in x]
    assert losses[-1] < losses[0] - 0.5


def test_a_workdir_is_not_written_twice_nor_exported_without_its_second_model(
    opus, workdir, failing, tmp_path
):
    flags = ["--format=marian", f"--source={opus}", f"--workdir={workdir}"]
    assert "has a run already; expected a new folder" in failing("import", *flags)
    flags = ["--format=stablehlo", f"--workdir={workdir}", f"--output={tmp_path}/new"]
    assert "knows one SentencePiece model; the run has two" in failing("export", *flags)


def test_a_file_that_is_missing_is_named(failing, tmp_path):
    flags = ["--format=marian", f"--source={tmp_path}", f"--workdir={tmp_path}/run"]
    assert "no folder of an OPUS-MT model: it has no config.json" in failing("import", *flags)


@pytest.fixture
def copied(opus, tmp_path, failing):
    """A function that copies the folder but for some files, and returns why it is refused."""

    def refused(**files: bytes) -> str:
        folder = tmp_path / "copy"
        folder.mkdir()
        for path in opus.iterdir():
            if path.stem not in files:
                (folder / path.name).symlink_to(path)
        for name, data in files.items():
            suffix = {"model": ".safetensors", "pytorch_model": ".bin"}.get(name, ".json")
            if data:
                (folder / f"{name}{suffix}").write_bytes(data)
        flags = ["--format=marian", f"--source={folder}", f"--workdir={tmp_path}/run"]
        sentence = failing("import", *flags)
        assert not (tmp_path / "run").exists()
        return sentence

    return refused


class Opener:
    """What a pickle may hold: it makes a file as soon as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_never_run(copied, tmp_path):
    data = io.BytesIO()
    torch.save({"model.shared.weight": Opener(tmp_path / "opened")}, data)
    sentence = copied(model=b"", pytorch_model=data.getvalue())
    assert "is damaged, or has more than tensors in it (UnpicklingError)" in sentence
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.pop("model.encoder.layers.1.fc1.bias"), "have no model.encoder.layers.1.fc1"),
        (lambda x: x.pop("model.shared.weight"), "have no model.shared.weight"),
        (
            lambda x: x.update({"model.encoder.layers.2.fc1.bias": x["final_logits_bias"][0, :16]}),
            "the weights have model.encoder.layers.2.fc1.bias, which config.json does not",
        ),
        (
            lambda x: x["model.encoder.layers.1.fc1.bias"][:2].fill_(float("nan")),
            "model.encoder.layers.1.fc1.bias has 2 values that are infinite or not a number",
        ),
        (
            lambda x: x.update({"model.encoder.layers.1.fc1.bias": torch.zeros(5)}),
            "model.encoder.layers.1.fc1.bias has the shape (5,); config.json and vocab.json make",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_refused(opus, copied, change, told):
    state = safetensors.load_file(opus / "model.safetensors")
    change(state)
    assert told in copied(model=safetensors.save({k: x.clone() for k, x in state.items()}))


def test_files_that_are_no_files_of_a_model_are_named(copied):
    assert "model.safetensors is damaged" in copied(model=b"none")


def test_a_field_of_another_type_is_named(opus, copied):
    config = json.loads((opus / "config.json").read_text()) | {"encoder_layers": "2"}
    sentence = copied(config=json.dumps(config).encode())
    assert "has no config of a MarianMTModel: Validation error for field 'encoder_la" in sentence


def test_old_files_say_the_same(opus, workdir, tmp_path):
    """Weights pickled, the table by another of its names, the search in config.json, a kernel."""
    for name in ("source.spm", "target.spm", "vocab.json"):
        (tmp_path / name).symlink_to(opus / name)
    more = {"num_beams": 3, "length_penalty": 0.5, "attn_implementation": "some/kernel"}
    config = json.loads((opus / "config.json").read_text()) | more
    (tmp_path / "config.json").write_text(json.dumps(config))
    state = safetensors.load_file(opus / "model.safetensors")
    state["lm_head.weight"] = state.pop("model.shared.weight")
    torch.save(state, tmp_path / "pytorch_model.bin")
    old, new = marian.load(tmp_path), load_run(workdir)
    jax.tree.map(np.testing.assert_array_equal, old.params, new.params)
    assert old.config == new.config


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("model_type", "bart", "model_type is 'bart'; expected 'marian'"),
        ("scale_embedding", False, "scale_embedding is False; expected True"),
        ("share_encoder_decoder_embeddings", False, "share_encoder_decoder_embeddings is False"),
        ("decoder_start_token_id", 0, "decoder_start_token_id is 0; expected "),
        ("decoder_layers", 1, "decoder_layers is 1; expected 2"),
        ("activation_function", "gelu", "activation_function is 'gelu'; expected one of relu, "),
        ("vocab_size", 9, "vocab_size is 9; expected "),
    ],
)
def test_another_model_is_refused(opus, tmp_path, failing, field, value, told):
    for path in opus.iterdir():
        (tmp_path / path.name).symlink_to(path)
    config = json.loads((opus / "config.json").read_text()) | {field: value}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["--format=marian", f"--source={tmp_path}", f"--workdir={tmp_path}/run"]
    assert told in failing("import", *flags)
    assert not (tmp_path / "run").exists()
