import json

import pytest
from builders import OPUS_SOURCES as SOURCE
from builders import OPUS_TARGETS as TARGET
from builders import opus_files

from transformer_jax.data.joined_vocabulary import joined_files, joined_model
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary


@pytest.fixture(scope="module")
def files():
    return opus_files()


def test_each_side_is_cut_by_its_own_model_and_numbered_by_the_list(files):
    vocabulary, (source, target) = Vocabulary(joined_model(*files)), map(Vocabulary, files[:2])
    for texts, encode, alone in (
        (SOURCE, vocabulary.encode_sources, source),
        (TARGET, vocabulary.encode, target),
    ):
        ids, expected = encode(texts), alone.encode(texts)
        assert [vocabulary.pieces(x[:-1]) for x in ids] == [alone.pieces(x[:-1]) for x in expected]
        assert all(x[-1] == EOS for x in ids)
    assert vocabulary.decode_all(vocabulary.encode(TARGET)) == TARGET
    assert vocabulary.pieces([PAD, BOS, EOS, UNK]) == ["<padding>", "<pad>", "</s>", "<unk>"]
    assert len(vocabulary) == 1 + len(json.loads(files[2]))


def test_a_language_in_front_is_one_piece(files):
    vocabulary = Vocabulary(joined_model(*files))
    (tagged, plain, unclosed) = vocabulary.encode_sources([">>deu<<seven", "seven", ">>seven"])
    assert vocabulary.pieces(tagged[:1]) == [">>deu<<"] and tagged[1:] == plain
    assert UNK in unclosed


def test_the_files_are_kept_to_the_byte(files, tmp_path):
    vocabulary = Vocabulary(joined_model(*files))
    vocabulary.save(tmp_path / "vocabulary.model")
    loaded = Vocabulary.load(tmp_path / "vocabulary.model")
    assert tuple(joined_files(loaded.model).values()) == files
    assert loaded.encode(TARGET) == vocabulary.encode(TARGET)
    assert Vocabulary(files[0]).files == {}


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        (b'{"<unk>": 0}', "vocab.json has no </s>, <pad>"),
        (b'{"</s>": 0, "<unk>": 1, "<pad>": 1}', "does not number pieces"),
        (b'{"</s>": 0, "<unk>": 1, "<pad>": 2.0}', "does not number pieces"),
        (b'["</s>", "<unk>", "<pad>"]', "does not number pieces"),
        (b'{"</s>": 0, "<unk>": 1, "<pad>": 2, "<padding>": 3}', "vocab.json has <padding>"),
        (b"{", "vocab.json is not JSON: "),
        (b"[" * 200_000, "vocab.json is not JSON: "),
    ],
)
def test_a_list_that_is_none_is_refused(files, numbers, told):
    with pytest.raises(ValueError, match=told):
        joined_model(*files[:2], numbers)


def test_a_side_that_is_no_model_is_refused(files):
    with pytest.raises(ValueError, match="x is not a SentencePiece model"):
        Vocabulary(joined_model(files[0], b"none", files[2]), "x")
