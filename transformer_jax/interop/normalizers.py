"""This package's own normalisation of text as rules of SentencePiece, for programs without it."""

import functools
import io
import pathlib
import sys
import tempfile
import unicodedata

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as protocol

from transformer_jax.data.vocabulary import NFC, SINGLE_SPACES, Vocabulary


def as_sentencepiece(vocabulary: Vocabulary, side: str) -> bytes:
    """The model for "source" or "target" whose SentencePiece ids are the vocabulary's."""
    if vocabulary.files:
        return vocabulary.files[f"{side}.spm"]
    model = protocol.ModelProto.FromString(vocabulary.model)
    if vocabulary.normalization not in (NFC, SINGLE_SPACES):
        return vocabulary.model
    single = side == "source" and vocabulary.normalization == SINGLE_SPACES
    model.normalizer_spec.precompiled_charsmap = _charsmap(single)
    model.normalizer_spec.remove_extra_whitespaces |= single
    return model.SerializeToString()


def _rules(spaces: bool) -> dict[str, str]:
    """Characters, and sequences of them, that NFC composes; white space, as a space if asked."""
    rules, characters = {}, [chr(number) for number in range(sys.maxunicode + 1)]
    for character in characters:
        if unicodedata.is_normalized("NFD", character):
            continue
        apart, whole = (unicodedata.normalize(form, character) for form in ("NFD", "NFC"))
        for end in range(1, len(apart) + 1):  # in parts: of three, two may be one already
            rules[unicodedata.normalize("NFC", apart[:end]) + apart[end:]] = whole
    rules |= {x: " " for x in characters if spaces and x.isspace()}
    return {before: after for before, after in rules.items() if before != after}


@functools.cache
def _charsmap(spaces: bool) -> bytes:
    """SentencePiece's form of the rules, which only its trainer makes."""
    rules = _rules(spaces).items()
    lines = ("\t".join(" ".join(f"{ord(c):X}" for c in x) for x in rule) for rule in rules)
    with tempfile.TemporaryDirectory() as folder:
        (path := pathlib.Path(folder, "rules.tsv")).write_text("\n".join(lines), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c"]),
            model_writer=(model := io.BytesIO()),
            vocab_size=8,
            hard_vocab_limit=False,
            normalization_rule_tsv=str(path),
            minloglevel=2,
        )
    return protocol.ModelProto.FromString(model.getvalue()).normalizer_spec.precompiled_charsmap
