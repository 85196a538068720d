"""The joint SentencePiece vocabulary: train, load, encode, decode.

The only home of the special symbols: padding, start (<sos>), end (<eos>) and unknown.
"""

import io
import os
import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from transformer_jax.data.corpus import Pair

PAD, BOS, EOS, UNK = 0, 1, 2, 3

# SentencePiece reads no more sentences than this, drawn at random from all of them.
_SAMPLE_SENTENCES = 2_000_000


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
    def train(cls, pairs: Iterable[Pair], vocab_size: int, kind: str = "unigram") -> "Vocabulary":
        """Trains one vocabulary on both sides of the pairs (section 5.1 of the paper).

        Args:
          pairs: the training corpus.
          vocab_size: pieces, special symbols included.
          kind: "unigram" (Kudo 2018) or "bpe" (Sennrich et al. 2016).

        Raises:
          ValueError: the text is too small for so many pieces, or for any.
        """
        model = io.BytesIO()
        failure: list[Exception] = []

        def sentences() -> Iterator[str]:
            try:
                for pair in pairs:
                    yield from pair
            except Exception as error:  # SentencePiece would tell it with a stack trace
                failure.append(error)
                raise

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences(),
                model_writer=model,
                vocab_size=vocab_size,
                model_type=kind,
                character_coverage=0.9999,
                input_sentence_size=_SAMPLE_SENTENCES,
                shuffle_input_sentence=True,
                train_extremely_large_corpus=False,
                num_threads=16,  # the pieces depend on their number: the same everywhere
                pad_id=PAD,
                bos_id=BOS,
                eos_id=EOS,
                unk_id=UNK,
                bos_piece="<sos>",
                eos_piece="<eos>",
                minloglevel=2,
            )
        except (RuntimeError, OSError) as error:
            if failure:
                raise failure[0] from None
            raise ValueError(_explain(error, vocab_size)) from None
        return cls(model.getvalue())

    def save(self, path: str | os.PathLike) -> None:
        """Writes the SentencePiece model file, whole or not at all."""
        aside = pathlib.Path(f"{path}.tmp")
        aside.write_bytes(self.model)
        aside.rename(path)

    def __len__(self) -> int:
        return len(self._processor)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, closed by the end symbol."""
        return [ids + [EOS] for ids in self._processor.encode(list(texts))]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special symbols give nothing, unknown ones U+2047."""
        return self._processor.decode([int(i) for i in ids])

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, as SentencePiece writes it."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def _explain(error: Exception, vocab_size: int) -> str:
    """SentencePiece's reasons for not training, as one sentence in this project's words."""
    text = str(error)
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
