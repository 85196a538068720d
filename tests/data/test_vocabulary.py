"""The SentencePiece vocabulary."""

import io

import pytest
import sentencepiece

from transformer_jax.data.corpus import Pair, read_corpus
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary


@pytest.fixture(scope="module")
def pairs():
    return list(read_corpus("numbers:valid", "en", "de", 300))


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def vocabulary(pairs, request):
    return Vocabulary.train(pairs, 100, request.param)


def test_size_and_special_symbols(vocabulary):
    assert len(vocabulary) == 100
    assert vocabulary.pieces([PAD, BOS, EOS, UNK]) == ["<pad>", "<sos>", "<eos>", "<unk>"]


def test_text_of_both_sides_comes_back(vocabulary, pairs):
    texts = [side for pair in pairs for side in pair]
    ids = vocabulary.encode(texts)
    assert [vocabulary.decode(sentence) for sentence in ids] == texts
    for sentence in ids:
        assert sentence[-1] == EOS
        assert not {PAD, BOS, EOS, UNK} & set(sentence[:-1])


def test_text_cannot_spell_special_symbols(vocabulary):
    ids = vocabulary.encode(["<eos> <sos> <pad>"])[0]
    assert not {PAD, BOS, EOS} & set(ids[:-1])


def test_what_the_vocabulary_has_not_is_unknown(vocabulary):
    ids = vocabulary.encode(["한"])[0]
    assert UNK in ids and "⁇" in vocabulary.decode(ids)


def test_blank_text_is_only_the_end(vocabulary):
    assert vocabulary.encode(["", "  \t "]) == [[EOS], [EOS]]


def test_saved_is_loaded_the_same(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.model")
    assert Vocabulary.load(tmp_path / "v.model").model == vocabulary.model
    assert [path.name for path in tmp_path.iterdir()] == ["v.model"]


def test_training_is_deterministic(pairs):
    assert Vocabulary.train(pairs, 100).model == Vocabulary.train(iter(pairs), 100).model


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(("size", "told"), [(9000, "at most"), (10, "at least")])
def test_a_size_that_cannot_be_is_told_with_one_that_can(pairs, kind, size, told):
    with pytest.raises(ValueError, match=rf"vocab_size={size} is .* {told} (\d+)$") as error:
        Vocabulary.train(pairs, size, kind)
    possible = int(str(error.value).rsplit(" ", 1)[1])
    assert len(Vocabulary.train(pairs, possible, kind)) == possible


@pytest.mark.parametrize("pairs", [[], [Pair("", " ")]], ids=["none", "blank"])
def test_no_text_gives_no_vocabulary(pairs):
    with pytest.raises(ValueError, match="no vocabulary could be trained"):
        Vocabulary.train(pairs, 50)


def test_a_foreign_model_is_told_what_symbols_are_wanted(pairs, tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(pair.source for pair in pairs),
        model_writer=model,
        vocab_size=60,
        minloglevel=2,
    )
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    with pytest.raises(
        ValueError, match=r"foreign\.model has .*\(-1, 1, 2\); \(0, 1, 2\) was wanted"
    ):
        Vocabulary.load(tmp_path / "foreign.model")


@pytest.mark.parametrize("content", [b"", b"no model at all"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_told(tmp_path, content):
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.model is not a SentencePiece model"):
        Vocabulary.load(tmp_path / "x.model")
