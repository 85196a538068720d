"""The SentencePiece vocabulary: its kinds, what it learns from, what it says it cannot do."""

import collections
import io
import unicodedata

import numpy as np
import pytest
import sentencepiece
from builders import printed_by_two
from hypothesis import given, settings
from hypothesis import strategies as st

from transformer_jax.data import vocabulary as vocabulary_module
from transformer_jax.data.corpora import Pair, parse_corpora
from transformer_jax.data.vocabulary import BOS, EOS, PAD, UNK, Vocabulary, draw_sample

property_test = settings(max_examples=200, deadline=None)
PAIRS = list(parse_corpora("numbers:valid", "en", "de", max_pairs=300)[0])
TEXTS = [side for pair in PAIRS for side in pair]
TAGS = ("<2de>", "<2en>")
# What spells symbols, blanks and bytes of SentencePiece's own.
TEXT = st.text() | st.lists(
    st.sampled_from(["<sos>", "<0x41>", "<2de>", "\u2581", "\0", " ", "\n", "🙂", "e\u0301", "a"])
).map("".join)


class Readings(list):
    """Counts how often it is read."""

    number = 0

    def __iter__(self):
        self.number += 1
        return super().__iter__()


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def vocabulary(kind):
    return Vocabulary.train([PAIRS], 100, kind)


def test_size_and_special_symbols(vocabulary):
    assert len(vocabulary) == 100
    assert vocabulary.pieces([PAD, BOS, EOS, UNK]) == ["<pad>", "<sos>", "<eos>", "<unk>"]


def test_text_of_both_sides_comes_back(vocabulary):
    ids = vocabulary.encode(TEXTS)
    assert [vocabulary.decode(sentence) for sentence in ids] == TEXTS
    for sentence in ids:
        assert sentence[-1] == EOS
        assert not {PAD, BOS, EOS, UNK} & set(sentence[:-1])


def test_text_cannot_spell_special_symbols(vocabulary):
    ids = vocabulary.encode(["<eos> <sos> <pad>"])[0]
    assert not {PAD, BOS, EOS} & set(ids[:-1])


def test_what_the_vocabulary_has_not_is_unknown(vocabulary):
    ids = vocabulary.encode(["한"])[0]
    assert UNK in ids and "⁇" in vocabulary.decode(ids)


def test_a_source_of_spaces_is_only_the_end(vocabulary):
    assert vocabulary.encode_sources(["", "  \t \u3000"]) == [[EOS], [EOS]]


ODD = ["，！ ½ m² № ™ … ﬁ １２", "می\u200cخواهم", "a  b ", " e\u0301 \u00a0\tc", "옛 잎 젊", "▅ 🙂"]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "bytes"])
def test_targets_survive_and_sources_are_normalised(kind):
    """Compatibility characters, joiners, doubled and odd spaces, what was never seen."""
    vocabulary = Vocabulary.train([PAIRS], 400, kind, byte_fallback=True)
    expected = [unicodedata.normalize("NFC", text) for text in ODD]
    assert vocabulary.decode_all(vocabulary.encode(ODD)) == expected
    if kind != "bytes":
        sources = vocabulary.encode_sources(["  e\u0301\u00a0\tc "]), vocabulary.encode(["é c"])
        assert sources[0] == sources[1]
        assert vocabulary.decode(vocabulary.encode_sources(["½ …"])[0]) == "½ …"


@pytest.mark.parametrize("kind", ["unigram", "bpe", "bytes", "symbols"])
def test_decomposed_text_is_composed_text(kind):
    """Korean as macOS writes it, in the corpus, in sources, in translations and prefixes."""

    def decomposed(text):
        return unicodedata.normalize("NFD", text)

    pairs = [Pair("세 개의 옛 잎", "젊은 café"), Pair("한 개", "잎 하나")] * 20
    vocabulary = Vocabulary.train([pairs], 22, kind)
    other = Vocabulary.train([[Pair(*map(decomposed, pair)) for pair in pairs]], 22, kind)
    assert other.model == vocabulary.model
    text = "한 개 café"
    (ids,) = vocabulary.encode([text])
    assert vocabulary.encode([decomposed(text)]) == [ids]
    assert vocabulary.encode_sources([decomposed(text)]) == vocabulary.encode_sources([text])
    assert vocabulary.decode(ids) == text


def test_identity_leaves_decomposed_text_alone():
    vocabulary = Vocabulary.train([PAIRS], 400, byte_fallback=True, normalization="identity")
    for encode in (vocabulary.encode, vocabulary.encode_sources):
        assert vocabulary.decode(encode(["e\u0301"])[0]) == "e\u0301"


@pytest.mark.parametrize("rule", ["identity", "nfkc", "nmt_nfkc"])
def test_a_rule_of_sentencepiece_is_for_both_sides_and_kept(rule, tmp_path):
    Vocabulary.train([PAIRS], 400, byte_fallback=True, normalization=rule).save(tmp_path / "v")
    vocabulary = Vocabulary.load(tmp_path / "v")
    assert vocabulary.normalization == rule
    assert vocabulary.encode_sources(["½ ﬁ"]) == vocabulary.encode(["½ ﬁ"])
    assert (vocabulary.decode(vocabulary.encode(["½ ﬁ"])[0]) == "½ ﬁ") == (rule == "identity")


def test_all_that_text_has_is_learnt_from():
    """Long lines, without any space too, and lines with what SentencePiece keeps for itself."""
    documents = [Pair("數 " + "漢字" * 3000, "word " * 2000)] * 3 + [Pair("▅ reserved", "long")]
    for kind in ("unigram", "bpe"):
        vocabulary = Vocabulary.train([documents], 23, kind)
        assert not any(UNK in ids for ids in vocabulary.encode(["數 漢字", "word reserved long"]))
    symbols = [" ".join(f"s{i}_{'x' * 30}" for i in range(1000)), "▅a ▅b"]
    vocabulary = Vocabulary.train([[Pair(symbols[0], symbols[1])]], 2000, "symbols")
    assert not any(UNK in ids for ids in vocabulary.encode(symbols)) and len(vocabulary) == 1006


def test_every_sentence_is_spelt_with_bytes_or_with_all_characters():
    rare = [Pair(f"{chr(0xAC00 + i)}", "가") for i in range(60)]
    corpus = [*[Pair("가 나 다", "가 나")] * 100_000, *rare]
    texts = [pair.source for pair in rare]
    for size, bytes_too in ((69, False), (266, True)):
        vocabulary = Vocabulary.train([corpus], size, byte_fallback=bytes_too)
        assert vocabulary.decode_all(vocabulary.encode(texts)) == texts


def test_all_corpora_are_learnt_from():
    other = [Pair("한국어 한국어", "русский")] * 300
    vocabulary = Vocabulary.train([PAIRS, other], 110)
    assert not any(UNK in ids for ids in vocabulary.encode([*TEXTS, "한국어", "русский"]))
    assert UNK in Vocabulary.train([PAIRS], 100).encode(["한국어"])[0]


def test_byte_fallback_spells_what_the_vocabulary_has_not(kind):
    vocabulary = Vocabulary.train([PAIRS], 400, kind, byte_fallback=True)
    text = "seven 한 🙂"
    ids = vocabulary.encode([text])[0]
    assert UNK not in ids and vocabulary.decode(ids) == text
    assert "<0xED>" in vocabulary.pieces(ids) and "▁seven" in vocabulary.pieces(ids)


BYTES = Vocabulary.train([], 0, "bytes", tags=TAGS)


@property_test
@given(TEXT)
def test_bytes_spell_any_text(text):
    (ids,) = BYTES.encode([text])
    text = unicodedata.normalize("NFC", text)
    assert BYTES.decode(ids) == text
    assert ids[-1] == EOS and not {PAD, BOS, EOS, UNK} & set(ids[:-1])
    assert len(ids) == len(text.encode().replace(b"<2de>", b"T").replace(b"<2en>", b"T")) + 1


@property_test
@given(st.binary())
def test_bytes_that_are_no_text_are_replaced(data):
    assert len(BYTES) == 4 + 256 + len(TAGS)
    text = BYTES.decode([4 + byte for byte in data])
    try:
        assert text == data.decode()
    except UnicodeDecodeError:
        assert "\ufffd" in text


def test_symbols_are_what_stands_between_blanks_the_most_frequent_first():
    corpus = [Pair("c_1  b! c_1", "ä c_1"), Pair(" b!", "a.b,c")]
    vocabulary = Vocabulary.train([corpus], 50, "symbols")
    assert vocabulary.pieces(range(4, 6)) == ["▁c_1", "▁b!"]
    assert sorted(vocabulary.pieces(range(6, len(vocabulary)))) == ["▁a.b,c", "▁ä"]
    ids = vocabulary.encode([" b!  ä a.b,c "])[0]
    assert vocabulary.pieces(ids) == ["▁b!", "▁ä", "▁a.b,c", "<eos>"]
    assert vocabulary.decode(ids) == "b! ä a.b,c"
    short = Vocabulary.train([corpus], 6, "symbols")
    assert short.pieces(range(6)) == [*vocabulary.pieces(range(4)), "▁c_1", "▁b!"]
    assert short.encode(["b! ä c_1", "c_", "a"]) == [[5, UNK, 4, EOS], [UNK, EOS], [UNK, EOS]]


@pytest.mark.parametrize("kind", ["bytes", "symbols", "unigram", "bpe"])
def test_a_tag_is_one_piece_and_comes_back(kind):
    corpus = [Pair(f"<2de> {source}", target) for source, target in PAIRS]
    vocabulary = Vocabulary.train([corpus], 110, kind, tags=TAGS)
    for tag in TAGS:
        text = f"{tag} seven"
        first, bare = (vocabulary.encode([x])[0] for x in (text, "seven"))
        blank = vocabulary.encode([" "])[0][:-1] if kind == "bytes" else []
        assert vocabulary.pieces(first[:1]) == [tag if kind == "bytes" else f"▁{tag}"]
        assert first[1:] == blank + bare
        assert vocabulary.decode(first) == text


SCRIPT = """
from transformer_jax.data import vocabulary
from transformer_jax.data.corpora import parse_corpora

vocabulary.SAMPLE_SENTENCES, vocabulary.SENTENCES_A_PIECE = 200, 0
corpora = parse_corpora("numbers:valid", "en", "de", max_pairs=300)
for kind in ("bpe", "unigram"):
    print(kind, vocabulary.Vocabulary.train(corpora, 70, kind).fingerprint())
"""


def test_what_is_learnt_from_a_sample_is_the_same_in_all_processes():
    """A run that resumes is another process, and so is each host of a cluster."""
    one, other = map(str.splitlines, printed_by_two(SCRIPT))
    assert one == other and [line.split()[0] for line in one] == ["bpe", "unigram"]


@pytest.mark.parametrize("size", [1, 7, 59, 60, 61])
def test_a_sample_is_of_all_texts_and_holds_each_once(size):
    corpora = [[Pair(f"a{i}", f"b{i}") for i in range(20)], [Pair(f"c{i}", "d") for i in range(10)]]
    texts = [text for corpus in corpora for pair in corpus for text in pair]
    sample = draw_sample(corpora, "bpe", False, "identity", size)
    assert sample.sizes == [20, 10] and len(sample.texts) == min(size, 60)
    assert not collections.Counter(sample.texts) - collections.Counter(texts)
    assert sample == draw_sample(corpora, "bpe", False, "identity", size)
    assert sample.characters == set("abcd0123456789")


def test_a_sample_of_long_texts_is_smaller(monkeypatch):
    corpus = [Pair(f"{i:010}", f"{i:010}") for i in range(500)]
    monkeypatch.setattr(vocabulary_module, "MAX_CHARACTERS", 1000)
    texts = draw_sample([corpus], "bpe", False, "identity", 10**6).texts
    assert 50 <= len(texts) <= 100 and max(texts) > "0000000400"
    monkeypatch.setattr(vocabulary_module, "MAX_CHARACTERS", 10_000)
    assert len(draw_sample([corpus], "bpe", False, "identity", 10**6).texts) == 1000


def test_a_sample_favours_no_place():
    """Neither the first corpus nor the last: of tens, each gives a tenth."""
    corpora = [[Pair(f"{corpus}", f"{corpus}")] * 1000 for corpus in range(10)]
    counts = collections.Counter(draw_sample(corpora, "symbols", False, "identity", 5000).texts)
    assert len(counts) == 10 and all(430 < count < 570 for count in counts.values())


def test_the_most_probable_segmentations_begin_with_the_one_that_encodes():
    vocabulary = Vocabulary.train([PAIRS], 100)
    for text in TEXTS[:20]:
        best, *others = vocabulary.nbest(text, 5)
        assert [*best, EOS] == vocabulary.encode([text])[0] and len(others) == 4
        assert all(vocabulary.decode(ids) == text != best for ids in others)
        assert len(set(map(tuple, [best, *others]))) == 5


@pytest.fixture
def small_sample(monkeypatch):
    monkeypatch.setattr(vocabulary_module, "SAMPLE_SENTENCES", 200)
    monkeypatch.setattr(vocabulary_module, "SENTENCES_A_PIECE", 0)


@pytest.mark.usefixtures("small_sample")
def test_a_vocabulary_that_needs_more_text_than_the_sample_gets_it():
    letters = np.random.default_rng(0).choice(list("abcdefgh"), (2, 1500, 6))
    words = [Pair(*map("".join, pair)) for pair in zip(*letters)]
    few, many = Readings(words), Readings(words)
    assert len(Vocabulary.train([few], 30)) == 30 and few.number == 1
    assert len(Vocabulary.train([many], 1500)) == 1500 and many.number > 1


@pytest.mark.usefixtures("small_sample")
def test_no_more_text_than_the_sample_is_learnt_from(monkeypatch):
    words = [Pair(f"w{i}", f"w{i}") for i in range(3000)]
    assert len(Vocabulary.train([words], 5000, "symbols")) <= 204
    monkeypatch.setattr(vocabulary_module, "SENTENCES_A_PIECE", 2)
    assert len(Vocabulary.train([words], 500, "symbols")) > 500 / 2


@pytest.mark.usefixtures("small_sample")
def test_a_text_too_small_ends_in_an_error_after_all_of_it_was_read():
    with pytest.raises(ValueError, match=r"vocab_size=9000 is more .*: at most \d+$"):
        Vocabulary.train([PAIRS], 9000)


@pytest.mark.parametrize("kind", ["unigram", "bpe", "symbols"])
def test_an_error_in_reading_is_told_as_it_is(kind):
    def corpus():
        yield PAIRS[0]
        raise ValueError("c.en, line 2: not valid UTF-8")

    with pytest.raises(ValueError, match=r"^c\.en, line 2: not valid UTF-8$"):
        Vocabulary.train([PAIRS, corpus()], 100, kind)


def test_saved_is_loaded_the_same(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "v.model")
    assert Vocabulary.load(tmp_path / "v.model").model == vocabulary.model
    assert [path.name for path in tmp_path.iterdir()] == ["v.model"]


@pytest.mark.parametrize("kind", ["unigram", "bpe", "bytes", "symbols"])
def test_training_is_deterministic_and_fingerprints_tell_vocabularies(kind):
    fingerprints = collections.Counter(
        Vocabulary.train([iter(PAIRS)], size, kind).fingerprint() for size in (90, 90, 95)
    )
    assert sorted(fingerprints.values()) == ([3] if kind == "bytes" else [1, 2])


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_sampled_corpus_gives_the_same_vocabulary(kind):
    models = {Vocabulary.train([PAIRS], 70, kind).model for _ in range(2)}
    assert len(models) == 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(("size", "told"), [(9000, "at most"), (10, "at least")])
def test_a_size_that_cannot_be_is_told_with_one_that_can(kind, size, told):
    with pytest.raises(ValueError, match=rf"vocab_size={size} is .* {told} (\d+)$") as error:
        Vocabulary.train([PAIRS], size, kind)
    possible = int(str(error.value).rsplit(" ", 1)[1])
    assert len(Vocabulary.train([PAIRS], possible, kind)) == possible


@pytest.mark.parametrize("kind", ["unigram", "bpe", "symbols"])
@pytest.mark.parametrize("corpora", [[], [[]], [[Pair("", " ")]]], ids=["none", "empty", "blank"])
def test_no_text_gives_no_vocabulary(corpora, kind):
    with pytest.raises(ValueError) as error:
        Vocabulary.train(corpora, 50, kind)
    told = "no vocabulary could be trained: the training corpus has no text"
    assert str(error.value) == told


def test_a_foreign_model_is_told_what_symbols_are_wanted(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(pair.source for pair in PAIRS),
        model_writer=model,
        vocab_size=60,
        minloglevel=2,
    )
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    with pytest.raises(
        ValueError, match=r"foreign\.model has .*\(-1, 1, 2\); expected \(0, 1, 2\)"
    ):
        Vocabulary.load(tmp_path / "foreign.model")


@pytest.mark.parametrize("content", [b"", b"no model at all"], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_told(tmp_path, content):
    (tmp_path / "x.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.model is not a SentencePiece model"):
        Vocabulary.load(tmp_path / "x.model")


def test_symbols_that_have_no_room_are_told():
    with pytest.raises(ValueError, match=r"vocab_size=6 leaves no room for symbols: at least 7"):
        Vocabulary.train([PAIRS], 6, "symbols", tags=TAGS)
    assert len(Vocabulary.train([PAIRS], 7, "symbols", tags=TAGS)) == 7


def test_all_characters_are_spelt_as_a_rule_rewrites_them():
    corpus = [Pair("ａ ｂ ½ ①", "a b")] * 100
    vocabulary = Vocabulary.train([corpus], 12, normalization="nmt_nfkc")
    assert UNK not in vocabulary.encode(["ａ ｂ ½ ①"])[0]
