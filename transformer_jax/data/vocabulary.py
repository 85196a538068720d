"""The joint SentencePiece vocabulary: train, load, encode, decode.

The only home of the special symbols: padding, start (<sos>), end (<eos>) and unknown.
"""

import hashlib
import io
import itertools
import os
import pathlib
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

import sentencepiece

from transformer_jax.data.corpus import Pair

PAD, BOS, EOS, UNK = 0, 1, 2, 3

# A vocabulary is learnt from no more sentences than this, drawn at random from all of them: at
# first, since a corpus of few words may need more for many pieces.
_SAMPLE_SENTENCES = 200_000
_SENTENCES_A_PIECE = 7


class Vocabulary:
    """Subword pieces shared by source and target."""

    def __init__(self, model: bytes, name: str = "vocabulary"):
        """From the bytes of a SentencePiece model; ValueError if they are none."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor()
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError:
            raise ValueError(f"{name} is not a SentencePiece model") from None
        self.model = model
        ids = (self._processor.pad_id(), self._processor.bos_id(), self._processor.eos_id())
        if ids != (PAD, BOS, EOS):
            raise ValueError(
                f"{name} has padding, start and end symbols {ids}; {(PAD, BOS, EOS)} was wanted "
                "(spm_train --pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3)"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads a SentencePiece model file."""
        return cls(pathlib.Path(path).read_bytes(), str(path))

    @classmethod
    def train(
        cls,
        corpora: Sequence[Iterable[Pair]],
        vocab_size: int,
        kind: str = "unigram",
        *,
        byte_fallback: bool = False,
        tags: Sequence[str] = (),
    ) -> "Vocabulary":
        """Makes one vocabulary for both sides of the pairs (section 5.1 of the paper).

        Args:
          corpora: to be read once or more; subword pieces are learnt from a sample of them.
          vocab_size: pieces, special symbols included; at most as many for "symbols".
          kind: "unigram" (Kudo 2018), "bpe" (Sennrich et al. 2016), "bytes" (raw UTF-8, for
            which corpora and vocab_size do not matter) or "symbols" (whatever stands between
            blanks, the most frequent first).
          byte_fallback: spell unknown characters in bytes ("unigram" and "bpe").
          tags: symbols that are one piece each, at the beginning of a text.

        Raises:
          ValueError: the text is too small for so many pieces, or for any.
        """
        if kind == "bytes":
            return cls(_byte_model(tags))
        options = {
            "vocab_size": vocab_size,
            "model_type": kind,
            "character_coverage": 0.9999,
            "byte_fallback": byte_fallback,
        }
        if kind == "symbols":
            options |= {"model_type": "word", "normalization_rule_name": "identity"}
            options |= {"hard_vocab_limit": False, "character_coverage": 1.0}
        # More pieces need more text to be drawn from.
        size = max(_SAMPLE_SENTENCES, _SENTENCES_A_PIECE * vocab_size)
        while True:
            texts, number = _sample(corpora, size)
            try:
                return cls(_train(texts, tags, options))
            except (RuntimeError, OSError) as error:
                if "Vocabulary size too high" not in str(error) or size >= number:
                    raise ValueError(_explain(error, vocab_size)) from None
                size *= 2

    def save(self, path: str | os.PathLike) -> None:
        """Writes the SentencePiece model file, whole or not at all."""
        aside = pathlib.Path(f"{path}.tmp")
        aside.write_bytes(self.model)
        aside.rename(path)

    def fingerprint(self) -> str:
        """A hash, equal for equal vocabularies."""
        return hashlib.sha256(self.model).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What it is, by the fields of `DataConfig` that a vocabulary is trained by."""
        from sentencepiece import sentencepiece_model_pb2 as protocol

        model = protocol.ModelProto.FromString(self.model)
        if all(piece.type != piece.NORMAL for piece in model.pieces):
            return {"vocabulary_kind": "bytes"}
        spec = model.trainer_spec
        kinds = {spec.UNIGRAM: "unigram", spec.BPE: "bpe", spec.WORD: "symbols"}
        if spec.model_type not in kinds:  # of single characters
            return {"vocab_size": len(self)}
        result = {"vocabulary_kind": kinds[spec.model_type], "vocab_size": len(self)}
        return (
            result
            if spec.model_type == spec.WORD
            else result | {"byte_fallback": spec.byte_fallback}
        )

    def __len__(self) -> int:
        return len(self._processor)

    def has_piece(self, text: str) -> bool:
        """Whether a text is one known symbol."""
        return len(ids := self.encode([text])[0]) == 2 and ids[0] != UNK

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, closed by the end symbol."""
        return self._processor.encode(list(texts), add_eos=True)

    def nbest(self, text: str, size: int) -> list[list[int]]:
        """The most probable segmentations of a text by a unigram vocabulary, no end symbol."""
        return self._processor.nbest_encode(text, nbest_size=size)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special symbols give nothing, unknown ones U+2047."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, as SentencePiece writes it."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def _sample(corpora: Sequence[Iterable[Pair]], size: int) -> tuple[list[str], int]:
    """At most `size` texts of all sides, drawn at random, and how many there are.

    Reservoir sampling (Vitter 1985, algorithm R). SentencePiece's own draws others in each
    process.
    """
    chance, kept, number = random.Random(0), [], 0
    for number, text in enumerate(itertools.chain.from_iterable(itertools.chain(*corpora)), 1):
        if number <= size:
            kept.append(text)
        elif (place := int(chance.random() * number)) < size:
            kept[place] = text
    return kept, number


_SPECIAL = {PAD: "<pad>", BOS: "<sos>", EOS: "<eos>", UNK: "<unk>"}


def _train(texts: list[str], tags: Sequence[str], options: dict) -> bytes:
    """A SentencePiece model of the texts; RuntimeError where there can be none."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        num_threads=16,  # the pieces depend on their number: the same everywhere
        # With its blank, as it stands in a text: without, the blank would be a piece before it.
        user_defined_symbols=[f"\u2581{tag}" for tag in tags],
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        bos_piece=_SPECIAL[BOS],
        eos_piece=_SPECIAL[EOS],
        unk_id=UNK,
        minloglevel=2,
        **options,
    )
    return model.getvalue()


def _byte_model(tags: Sequence[str]) -> bytes:
    """A SentencePiece model that spells all text in bytes, blanks as they are."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    types = protocol.ModelProto.SentencePiece
    model = protocol.ModelProto()
    for number, piece in _SPECIAL.items():
        model.pieces.add(piece=piece, type=types.UNKNOWN if number == UNK else types.CONTROL)
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=types.BYTE)
    for tag in tags:
        model.pieces.add(piece=tag, type=types.USER_DEFINED)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type, trainer.byte_fallback = protocol.TrainerSpec.BPE, True
    trainer.pad_id, trainer.bos_id, trainer.eos_id, trainer.unk_id = PAD, BOS, EOS, UNK
    trainer.bos_piece, trainer.eos_piece = _SPECIAL[BOS], _SPECIAL[EOS]
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = normalizer.escape_whitespaces = False
    normalizer.remove_extra_whitespaces = False
    return model.SerializeToString()


def _explain(error: Exception, vocab_size: int) -> str:
    """SentencePiece's reasons for not training, as one sentence in this project's words."""
    text = str(error)
    if "sentences_.empty()" in text or "all_chars_count" in text:
        return "no vocabulary could be trained: the training corpus has no text"
    if most := re.search(r"<= (\d+)", text):
        return (
            f"config.data.vocab_size={vocab_size} is more than the training corpus allows: "
            f"at most {most[1]}"
        )
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        return (
            f"config.data.vocab_size={vocab_size} is less than the symbols of the training "
            f"corpus: at least {least[1]}"
        )
    return f"no vocabulary could be trained: {' '.join(text.split())}"
