"""Subword regularisation: other segmentations of the same text, as often as they should be."""

import collections
import io
import itertools
import json
import math

import numpy as np
import pytest
import sentencepiece
from builders import printed_by_two
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import sentencepiece_model_pb2 as protocol

from transformer_jax.data import subword_sampling
from transformer_jax.data.corpora import Pair, parse_corpora
from transformer_jax.data.subword_sampling import Resampler, Segmenter
from transformer_jax.data.vocabulary import EOS, UNK, Vocabulary

property_test = settings(max_examples=60, deadline=None)
PAIRS = list(parse_corpora("numbers:valid", "en", "fr", max_pairs=150)[0])
TEXTS = [side for pair in PAIRS for side in pair]
# In whose letters the unknown symbol and bytes could be spelt.
SPELLING = [Pair("<unk> <0xED 95 9C>", "nuk EDC 0x95")] * 20
ALPHAS = {"bpe": 0.3, "unigram": 0.02}  # that change most of what is drawn
ODD = st.sampled_from(["<2de>", " ", " <2de> ", "한", "🙂", "<0x41>", "\u2581", "ﬁ", "<sos>", "-"])
TEXT = st.lists(ODD | st.sampled_from(TEXTS) | st.text("abest", max_size=9)).map("".join)


@pytest.fixture(scope="module", params=list(ALPHAS))
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def alpha(kind):
    return ALPHAS[kind]


@pytest.fixture(scope="module")
def vocabulary(kind):
    return Vocabulary.train([PAIRS, SPELLING], 110, kind)


@pytest.fixture(scope="module")
def tagged(kind):
    """One that has tags, and spells in bytes what it does not know."""
    corpus = [Pair(f"<2de> {source}", target) for source, target in PAIRS]
    corpora = [corpus, SPELLING]
    return Vocabulary.train(corpora, 360, kind, tags=["<2de>", "<2en>"], byte_fallback=True)


def encode(vocabulary, text: str) -> np.ndarray:
    return np.array(vocabulary.encode([text])[0], np.uint16)


def special(vocabulary) -> set[int]:
    """What is no piece of text: control symbols, bytes, tags and the unknown one."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    tests = processor.is_control, processor.is_byte, processor.is_unknown
    ids = range(len(vocabulary))
    tags = {i for i in ids if vocabulary.pieces([i])[0].startswith("▁<2")}
    return tags | {i for i in ids for test in tests if test(i)}


@pytest.mark.parametrize("name", ["vocabulary", "tagged"])
def test_the_text_stays_and_so_does_what_is_no_piece_of_it(request, alpha, name):
    """Tags, bytes, and the unknown symbol, whose text is lost; and none is made."""
    vocabulary = request.getfixturevalue(name)
    segmenter, others = Segmenter(vocabulary, alpha), special(vocabulary)

    @property_test
    @given(TEXT, st.integers(0, 2**63))
    def check(text, key):
        ids = encode(vocabulary, text)
        drawn = segmenter.draw(ids, key)
        assert vocabulary.decode(drawn) == vocabulary.decode(ids)
        assert [i for i in drawn if i in others] == [i for i in ids if i in others]
        assert drawn[-1] == EOS and drawn.count(EOS) == 1

    check()


def unused(model: protocol.ModelProto) -> None:
    """As where a vocabulary was restricted: letters that no longer stand for themselves."""
    for piece in model.pieces:
        if piece.piece in ("h", "e", "v"):
            piece.type = piece.UNUSED


def no_blank_before(model: protocol.ModelProto) -> None:
    """The first word of a text begins without one."""
    model.normalizer_spec.add_dummy_prefix = False


@pytest.mark.parametrize("change", [unused, no_blank_before])
def test_the_text_stays_where_a_vocabulary_was_made_elsewhere(vocabulary, alpha, change):
    model = protocol.ModelProto.FromString(vocabulary.model)
    change(model)
    changed = Vocabulary(model.SerializeToString())
    segmenter, differ = Segmenter(changed, alpha), 0
    for number, text in enumerate(TEXTS):
        ids = encode(changed, text)
        drawn = segmenter.draw(ids, number)
        assert "".join(changed.pieces(drawn)) == "".join(changed.pieces(ids))
        if change is unused:
            assert not {"h", "e", "v"} & set(changed.pieces(drawn)) - set(changed.pieces(ids))
        differ += drawn != ids.tolist()
    assert differ > 0


def test_most_of_what_is_drawn_is_segmented_otherwise(vocabulary, tagged, alpha):
    for one in (vocabulary, tagged):
        segmenter = Segmenter(one, alpha)
        stored = [encode(one, text) for text in TEXTS]
        drawn = [segmenter.draw(ids, number) for number, ids in enumerate(stored)]
        differ = [new != ids.tolist() for new, ids in zip(drawn, stored)]
        assert np.mean(differ) > 0.7


def test_a_word_that_has_unknown_symbols_or_bytes_stays_and_its_neighbours_do_not(
    vocabulary, tagged, alpha
):
    for one in (vocabulary, tagged):
        segmenter = Segmenter(one, alpha)
        ids = encode(one, "seventy-eight thousand ei한ght <2de> thousand")
        pieces = one.pieces(ids)
        begins = [i for i, piece in enumerate(pieces) if piece.startswith("▁")] + [len(ids) - 1]
        words = ["".join(pieces[a:b]) for a, b in itertools.pairwise(begins)]
        (place,) = (i for i, word in enumerate(words) if word.startswith("▁ei"))
        kept = pieces[begins[place] : begins[place + 1]]
        drawn = [one.pieces(segmenter.draw(ids, key)) for key in range(30)]
        assert len(set(map(tuple, drawn))) > 10
        assert all(f" {' '.join(kept)} ▁" in " ".join(x) for x in drawn)


def test_a_sentence_of_no_token_is_its_end(vocabulary, alpha):
    assert Segmenter(vocabulary, alpha).draw(np.array([EOS]), 1) == [EOS]


def test_the_same_key_draws_the_same_and_every_part_of_it_matters(vocabulary, alpha):
    segmenter, ids = Segmenter(vocabulary, alpha), encode(vocabulary, " ".join(TEXTS[:4]))
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**40, 1), (2**40 + 2**32, 1)]
    drawn = [tuple(segmenter.draw(ids, *key)) for key in keys]
    assert len(set(drawn)) == len(keys)
    assert [tuple(segmenter.draw(ids, *key)) for key in keys] == drawn


def test_words_of_a_sentence_are_drawn_apart(vocabulary, alpha):
    """One word five times over: a sentence that chose once would repeat its choice."""
    segmenter, ids = (
        Segmenter(vocabulary, alpha),
        encode(vocabulary, "seventy-three" + " seventy-three" * 4),
    )
    differ = 0
    for key in range(20):
        *pieces, _ = vocabulary.pieces(segmenter.draw(ids, key))
        words = f" {' '.join(pieces)}".split(" ▁")[1:]
        assert len(words) == 5
        differ += len(set(words)) > 1
    assert differ > 10


def test_alpha_tells_how_much_is_drawn_otherwise(vocabulary, kind):
    """The smoothness of unigram, and the share of merges that BPE leaves out."""
    stored = [encode(vocabulary, text) for text in TEXTS]
    lengths = []
    for alpha in (1e-9, 0.1, 0.3, 1.0):
        segmenter = Segmenter(vocabulary, alpha)
        drawn = [segmenter.draw(ids, number) for number, ids in enumerate(stored)]
        lengths.append(sum(map(len, drawn)) / sum(map(len, stored)))
    assert lengths == sorted(lengths, reverse=kind == "unigram")
    assert abs(min(lengths) - 1) < 0.1 and max(lengths) > 1.3
    if kind == "bpe":
        assert lengths[0] == 1  # nothing left out: as the vocabulary has it
        letters = len("".join(TEXTS)) + len(TEXTS) * 2  # every merge left out
        assert math.isclose(lengths[-1], letters / sum(map(len, stored)))


def segmentations(text: str, scores: dict[str, float]) -> dict[tuple[str, ...], float]:
    """All of a text that pieces allow, and their scores."""
    if not text:
        return {(): 0.0}
    return {
        (text[:end], *rest): scores[text[:end]] + score
        for end in range(1, len(text) + 1)
        if text[:end] in scores
        for rest, score in segmentations(text[end:], scores).items()
    }


@pytest.fixture(scope="module")
def unigram():
    """A vocabulary, and the scores of its pieces of text."""
    vocabulary = Vocabulary.train([PAIRS], 100, "unigram")
    processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.model)
    ids = set(range(len(vocabulary))) - special(vocabulary)
    return vocabulary, {processor.id_to_piece(i): processor.get_score(i) for i in ids}


@pytest.mark.parametrize("alpha", [1.0, 0.2, 1e-9])
def test_segmentations_are_as_frequent_as_the_model_and_alpha_say(unigram, alpha):
    """exp(alpha score), normalised: 4,000 draws are within four standard deviations of it."""
    vocabulary, scores = unigram
    segmenter, draws, seen = Segmenter(vocabulary, alpha), 4000, 0
    for word in ("sixty", "hundred", "seventy-three"):
        possible = segmentations(f"▁{word}", scores)
        assert 5 < len(possible) <= 64
        weights = {pieces: math.exp(alpha * score) for pieces, score in possible.items()}
        ids = encode(vocabulary, word)
        counts = collections.Counter(
            tuple(vocabulary.pieces(segmenter.draw(ids, 7, key))[:-1]) for key in range(draws)
        )
        assert set(counts) <= set(possible)
        for pieces, weight in weights.items():
            share = weight / sum(weights.values())
            bound = 4 * math.sqrt(share * (1 - share) * draws) + 2
            assert abs(counts[pieces] - share * draws) < bound
        seen += len(counts)
    assert seen > 5


def test_of_a_long_word_the_sixty_four_best_are_drawn(unigram):
    vocabulary, scores = unigram
    word = "seventy-three-quatre-vingt-dix-sept"
    possible = segmentations(f"▁{word}", scores)
    least = sorted(possible.values(), reverse=True)[63]
    assert len(possible) > 200
    segmenter, ids = Segmenter(vocabulary, 1e-9), encode(vocabulary, word)
    drawn = {tuple(vocabulary.pieces(segmenter.draw(ids, key))[:-1]) for key in range(1500)}
    assert len(drawn) == 64
    assert all(possible[pieces] > least - 1e-3 for pieces in drawn)


def test_merges_are_left_out_as_often_as_alpha_says():
    """A vocabulary of one merge, whose word is drawn 32 times beforehand."""
    vocabulary = Vocabulary.train([[Pair("ab ab ab", "ba")]], 8, "bpe")
    (pair,) = (x for x in vocabulary.pieces(range(4, 8)) if len(x) == 2)
    words = [f"{a}{pair.removeprefix('▁')}{b}" for a in "ab" for b in ("", "a", "b", "aa", "bb")]
    shares = {}
    for alpha in (0.1, 0.5, 0.9):
        segmenter, whole, number = Segmenter(vocabulary, alpha), 0, 0
        for word, key in itertools.product(words, range(100)):
            ids = encode(vocabulary, word)
            whole += vocabulary.pieces(segmenter.draw(ids, key)).count(pair)
            number += vocabulary.pieces(ids).count(pair)
        shares[alpha] = whole / number
    np.testing.assert_allclose(list(shares.values()), [0.9, 0.5, 0.1], atol=0.1)


def test_bpe_draws_no_more_than_were_made_beforehand(monkeypatch):
    monkeypatch.setattr(subword_sampling, "DRAWS", 5)
    vocabulary = Vocabulary.train([PAIRS], 100, "bpe")
    segmenter, ids = Segmenter(vocabulary, 0.5), encode(vocabulary, "seventy-three")
    drawn = {tuple(segmenter.draw(ids, key)) for key in range(300)}
    assert len(drawn) == 5


def test_what_was_forgotten_is_drawn_again_the_same(vocabulary, alpha, monkeypatch):
    stored = [encode(vocabulary, text) for text in TEXTS[:60]]
    remembers = Segmenter(vocabulary, alpha)
    monkeypatch.setattr(subword_sampling, "CACHED_WORDS", 1)
    forgets = Segmenter(vocabulary, alpha)
    wanted = [remembers.draw(ids, number) for number, ids in enumerate(stored)]
    assert [forgets.draw(ids, number) for number, ids in enumerate(stored)] == wanted


def test_drawing_leaves_encoding_as_it_is(vocabulary, alpha):
    before = vocabulary.encode(TEXTS[:20])
    Segmenter(vocabulary, alpha).draw(np.array(before[0]), 3)
    assert vocabulary.encode(TEXTS[:20]) == before


def char_vocabulary() -> Vocabulary:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="char",
        vocab_size=40,
        hard_vocab_limit=False,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    return Vocabulary(model.getvalue())


@pytest.mark.parametrize("kind", ["bytes", "symbols", "char"])
def test_a_vocabulary_with_one_way_to_segment_is_told(kind):
    vocabulary = char_vocabulary() if kind == "char" else Vocabulary.train([PAIRS], 99, kind)
    for make in (lambda: Segmenter(vocabulary, 0.1), lambda: Resampler(vocabulary, 0.1, 0)):
        with pytest.raises(ValueError) as error:
            make()
        assert str(error.value) == (
            "the vocabulary cannot segment a word in more than one way, as "
            "config.data.sampling_alpha asks for; expected a unigram or bpe one"
        )


SCRIPT = """
import json, sys
import numpy as np
from transformer_jax.data.subword_sampling import Segmenter
from transformer_jax.data.vocabulary import Vocabulary

model, alpha, order, *texts = sys.argv[1:]
vocabulary = Vocabulary.load(model)
segmenter = Segmenter(vocabulary, float(alpha))
drawn = {}
for number in range(len(texts))[:: int(order)]:
    drawn[number] = segmenter.draw(np.array(vocabulary.encode([texts[number]])[0]), number)
print(json.dumps([drawn[number] for number in range(len(texts))]))
"""


def test_what_is_drawn_is_the_same_in_all_processes_in_any_order(vocabulary, alpha, tmp_path):
    """A run that resumes is another process, and so is each host of a cluster."""
    vocabulary.save(tmp_path / "v.model")
    texts = [*TEXTS[:40], "ein 한 eight"]
    model = str(tmp_path / "v.model")
    arguments = ((model, str(alpha), order, *texts) for order in ("1", "-1"))
    one, other = map(json.loads, printed_by_two(SCRIPT, *arguments))
    segmenter = Segmenter(vocabulary, alpha)
    here = [segmenter.draw(encode(vocabulary, text), i) for i, text in enumerate(texts)]
    assert one == other == here and UNK in here[-1]
