"""Pieces as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transformer_jax.data.vocabulary import Vocabulary
from transformer_jax.figures.labels import begins_word, label, right_to_left, shortened, text_of


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("\u2581two", "two"),
        ("dred", "dred"),
        ("\u2581", "\u2423"),
        ("\u2581\u2581", "\u2423\u2423"),
        ("\u2581a\u2581b", "a\u2423b"),
        ("<0x41>", "A"),
        ("<0x20>", "\u2423"),
        ("<0x0A>", "0A"),
        ("<0xE4>", "E4"),
        ("<eos>", "<eos>"),
        ("\u2581<2de>", "<2de>"),
    ],
)
def test_a_label_is_the_piece_without_its_marks(piece, shown):
    assert label(piece) == shown


def test_a_long_label_keeps_its_ends():
    assert shortened("a" * 24) == "a" * 24
    assert shortened("a" * 20 + "b" * 9) == "a" * 15 + "\u2026" + "b" * 8
    assert shortened("abcdef", 4) == "ab\u2026f"


def test_words_begin_at_blanks_and_symbols():
    pieces = ["<sos>", "\u2581two", "hun", "<0x41>", "\u2581", "<eos>"]
    assert [begins_word(piece) for piece in pieces] == [True, True, False, False, True, True]


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\u2581")))
def test_pieces_spell_the_text_they_were_made_of(text):
    vocabulary = Vocabulary.train([], 0, "bytes")
    assert text_of(vocabulary.pieces(vocabulary.encode([text])[0])) == text.strip()


def test_blanks_stand_where_they_stood():
    assert text_of(["\u2581two", "\u2581hun", "dred", "<0xC3>", "<0xA4>", "<eos>"]) == (
        "two hundred\u00e4"
    )


@pytest.mark.parametrize(
    ("pieces", "answer"),
    [
        (["\u2581הספר", "\u2581is", "<eos>"], True),
        (["\u2581<2he>", "\u2581\u0627\u0644", "<eos>"], True),
        (["\u25817", "\u2581הספר", "<eos>"], True),
        (["\u2581the", "\u2581הספר", "<eos>"], False),
        (["\u2581<2he>", "<eos>"], False),
        (["<0xD7>", "<0xA9>", "<eos>"], True),
    ],
)
def test_the_first_letter_decides_the_direction(pieces, answer):
    assert right_to_left(pieces) is answer
