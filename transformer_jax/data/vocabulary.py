"""The joint SentencePiece vocabulary: train, load, encode, decode.

The only home of the special symbols: padding, BOS (<sos>), EOS (<eos>) and unknown. How text is
normalised is kept in the model itself, as the name of its normaliser.
"""

import collections
import functools
import hashlib
import io
import itertools
import math
import os
import random
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import sentencepiece
from google.protobuf.message import DecodeError
from sentencepiece import sentencepiece_model_pb2 as protocol

from transformer_jax.data.corpora import Pair
from transformer_jax.data.joined_vocabulary import Segmenter, joined_files
from transformer_jax.storage import atomic_write, regular

PAD, BOS, EOS, UNK = 0, 1, 2, 3

# A vocabulary is learned from no more sentences than this, drawn at random from all of them: at
# first, since a corpus of few words may need more for many pieces.
SAMPLE_SENTENCES = 200_000
SENTENCES_A_PIECE = 7
MAX_CHARACTERS = 1 << 27  # of a sample
# SentencePiece leaves out lines of more than 4,192 bytes, and a character has at most 4.
_CHUNK = re.compile(r".{1,1000}(?!\S)|.{1,1000}", re.DOTALL)
_RESERVED = "\u2585"  # SentencePiece leaves out the lines that have it
SPACE = "\u2581"  # what SentencePiece writes for a space

# All text is composed (Unicode NFC); of sources spaces are single, too.
NFC, SINGLE_SPACES = "nfc", "nfc_source"
NORMALIZATIONS = (SINGLE_SPACES, "identity", "nfkc", "nmt_nfkc", "nfkc_cf", "nmt_nfkc_cf")


def composed(text: str) -> str:
    """Composed characters (Unicode NFC), such as 한 for ᄒ, ᅡ and ᆫ, which look the same."""
    return unicodedata.normalize("NFC", text)


def normalized_source(text: str) -> str:
    """Composed characters and single spaces: what differs looks the same."""
    return " ".join(composed(text).split())


class Vocabulary:
    """Subword pieces shared by source and target."""

    def __init__(self, model: bytes, name: str = "vocabulary"):
        """From the bytes of a SentencePiece model; ValueError if they are none."""
        try:
            self._processor = sentencepiece.SentencePieceProcessor()
            self._processor.LoadFromSerializedProto(model)
            parsed = protocol.ModelProto.FromString(model)
            self.normalization = parsed.normalizer_spec.name
            self.files = joined_files(model)  # of each side, where text is cut into pieces by those
            self._segment = {x: Segmenter(y) for x, y in self.files.items() if x.endswith(".spm")}
            # What is not UTF-8 protobuf gives as bytes.
            "".join([self.normalization, *(piece.piece for piece in parsed.pieces)])
        except (RuntimeError, TypeError, DecodeError):
            raise ValueError(f"{name} is not a SentencePiece model") from None
        self.model = model
        ids = (self._processor.pad_id(), self._processor.bos_id(), self._processor.eos_id())
        if ids != (PAD, BOS, EOS):
            raise ValueError(
                f"{name} has padding, BOS and EOS {ids}; expected {(PAD, BOS, EOS)} "
                "(spm_train --pad_id=0 --bos_id=1 --eos_id=2 --unk_id=3)"
            )

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads a SentencePiece model file."""
        return cls(regular(path).read_bytes(), str(path))

    @classmethod
    def train(
        cls,
        corpora: Sequence[Iterable[Pair]],
        vocab_size: int,
        kind: str = "unigram",
        *,
        byte_fallback: bool = False,
        normalization: str = SINGLE_SPACES,
        tags: Sequence[str] = (),
        sample: "Sample | None" = None,
    ) -> "Vocabulary":
        """Makes one vocabulary for both sides of the pairs (section 5.1 of the paper).

        Args:
          corpora: to be read once or more; subword pieces are learned from a sample of them.
          vocab_size: pieces, special symbols included; at most as many for "symbols".
          kind: "unigram" (Kudo 2018), "bpe" (Sennrich et al. 2016), "bytes" (raw UTF-8, for
            which corpora and vocab_size do not matter) or "symbols" (whatever stands between
            spaces, the most frequent first).
          byte_fallback: spell what has no piece in bytes ("unigram" and "bpe"): all characters but
            the rarest have pieces. Without, all characters of the corpora have.
          normalization: one of `NORMALIZATIONS`: NFC, or a rule of SentencePiece ("unigram" and
            "bpe").
          tags: symbols that are one piece each, at the beginning of a text.
          sample: of the corpora and these options, by `draw_sample`; None = it is drawn.

        Raises:
          ValueError: the text is too small for so many pieces, or for any.
        """
        if kind == "bytes":
            return cls(_byte_model(tags))
        draw = functools.partial(draw_sample, corpora, kind, byte_fallback, normalization)
        size = sample_size(vocab_size)
        while True:
            sample, drawn = None, sample or draw(size)
            if kind == "symbols":
                return cls(_symbol_model(drawn.texts, vocab_size, tags))
            try:
                return cls(_train(drawn, tags, vocab_size, kind, normalization))
            except (RuntimeError, OSError) as error:
                if "Vocabulary size too high" not in str(error) or size >= 2 * sum(drawn.sizes):
                    raise ValueError(_explain(error, vocab_size, byte_fallback)) from None
                size *= 2

    def save(self, path: str | os.PathLike) -> None:
        """Writes the SentencePiece model file, whole or not at all."""
        with atomic_write(path, "wb") as file:
            file.write(self.model)

    def fingerprint(self) -> str:
        """A hash, equal for equal vocabularies."""
        return hashlib.sha256(self.model).hexdigest()

    def settings(self) -> dict[str, Any]:
        """What it is, by the fields of `DataConfig` that a vocabulary is trained by."""
        model = protocol.ModelProto.FromString(self.model)
        spec, size = model.trainer_spec, {"vocab_size": len(self)}
        if all(piece.type != piece.NORMAL for piece in model.pieces):
            return {"vocabulary_kind": "bytes"}
        if spec.model_type == spec.WORD:
            return size | {"vocabulary_kind": "symbols"}
        if spec.model_type not in (spec.UNIGRAM, spec.BPE):  # of single characters
            return size
        known = self.normalization in NORMALIZATIONS
        return size | {
            "vocabulary_kind": "unigram" if spec.model_type == spec.UNIGRAM else "bpe",
            "byte_fallback": spec.byte_fallback,
            **({"normalization": self.normalization} if known else {}),
        }

    def __len__(self) -> int:
        return len(self._processor)

    def has_piece(self, text: str) -> bool:
        """Whether a text is one known symbol."""
        return len(ids := self.encode([text])[0]) == 2 and ids[0] != UNK

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of each text, closed by EOS."""
        if self.files:
            return self._joined("target.spm", texts)
        return self._processor.encode(list(map(self.target_text, texts)), add_eos=True)

    def encode_sources(self, texts: Iterable[str]) -> list[list[int]]:
        """As `encode`, of texts to be translated, which may be normalised harder."""
        if self.files:
            return self._joined("source.spm", texts)
        return self.encode(map(self.source_text, texts))

    def _joined(self, side: str, texts: Iterable[str]) -> list[list[int]]:
        return [[*self._processor.piece_to_id(self._segment[side](text)), EOS] for text in texts]

    def source_text(self, text: str) -> str:
        """A text to be translated, as it is read."""
        return normalized_source(text) if self.normalization == SINGLE_SPACES else text

    def target_text(self, text: str) -> str:
        """A translation, as it is read."""
        return composed(text) if self.normalization in (NFC, SINGLE_SPACES) else text

    def nbest(self, text: str, size: int) -> list[list[int]]:
        """The most probable segmentations of a text by a unigram vocabulary, without EOS."""
        return self._processor.nbest_encode(text, nbest_size=size)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; special symbols give nothing, unknown ones U+2047."""
        return self._processor.decode([int(i) for i in ids])

    def decode_all(self, sentences: list[list[int]]) -> list[str]:
        """The text of each list of token ids."""
        return self._processor.decode(sentences)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The piece of each id, as SentencePiece writes it."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


class Sample(NamedTuple):
    """What a vocabulary is learned from."""

    texts: list[str]  # of both sides, drawn at random
    sizes: list[int]  # pairs of each corpus
    # Of all texts, also of those not drawn, each of which gets a piece; None = rare ones are spelt
    # in bytes.
    characters: set[str] | None


def sample_size(vocab_size: int) -> int:
    """Texts of a first sample: more pieces need more text to be drawn from."""
    return max(SAMPLE_SENTENCES, SENTENCES_A_PIECE * vocab_size)


def draw_sample(
    corpora: Sequence[Iterable[Pair]],
    kind: str,
    byte_fallback: bool,
    normalization: str,
    size: int,
) -> Sample:
    """At most `size` texts for `Vocabulary.train` with these options; reads the corpora once.

    Reservoir sampling (Vitter 1985, algorithm R); too long texts are halved in number, at random.
    SentencePiece's own draws others in each process.
    """
    if kind == "bytes":  # needs no text
        return Sample([], [], None)
    of_source, of_target = {SINGLE_SPACES: (normalized_source, composed)}.get(
        normalization, (str, str)
    )
    if kind == "symbols":
        of_source = of_target = composed
    characters = None if byte_fallback or kind == "symbols" else set()
    chance, texts, sizes, number, held = random.Random(0), [], [], 0, 0
    for corpus in corpora:
        first = number
        for source, target in corpus:
            for text in of_source(source), of_target(target):
                number += 1
                if characters is not None:
                    characters.update(text)
                if number <= size:
                    texts.append(text)
                elif (index := int(chance.random() * number)) < size:
                    held -= len(texts[index])
                    texts[index] = text
                else:
                    continue
                if (held := held + len(text)) > MAX_CHARACTERS:
                    size = len(texts) // 2
                    texts = chance.sample(texts, size)
                    held = sum(map(len, texts))
        sizes.append((number - first) // 2)
    if characters and normalization not in (SINGLE_SPACES, "identity"):
        rule = sentencepiece.SentencePieceNormalizer(rule_name=normalization)
        characters = set(rule.normalize("".join(sorted(characters)))) - {SPACE}
    return Sample(texts, sizes, characters)


_SPECIAL = {PAD: "<pad>", BOS: "<sos>", EOS: "<eos>", UNK: "<unk>"}


def _train(
    sample: Sample, tags: Sequence[str], vocab_size: int, kind: str, normalization: str
) -> bytes:
    """A SentencePiece model of a sample; RuntimeError where there can be none."""
    model, required = io.BytesIO(), sample.characters
    chunks = (_CHUNK.findall(text.replace(_RESERVED, " ")) for text in sample.texts if text.strip())
    as_written = normalization in (SINGLE_SPACES, "identity")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=itertools.chain.from_iterable(chunks),
        model_writer=model,
        num_threads=16,  # the pieces depend on their number: the same everywhere
        # With its space, as it stands in a text: without, the space would be a piece before it.
        user_defined_symbols=[f"{SPACE}{tag}" for tag in tags],
        pad_id=PAD,
        bos_id=BOS,
        eos_id=EOS,
        bos_piece=_SPECIAL[BOS],
        eos_piece=_SPECIAL[EOS],
        unk_id=UNK,
        minloglevel=2,
        vocab_size=vocab_size,
        model_type=kind,
        byte_fallback=required is None,
        character_coverage=0.9999,
        required_chars="".join(sorted((required or set()) - {_RESERVED, SPACE, " ", "\t", "\0"})),
        normalization_rule_name="identity" if as_written else normalization,
        remove_extra_whitespaces=not as_written,
    )
    trained = protocol.ModelProto.FromString(model.getvalue())
    trained.normalizer_spec.name = normalization
    return trained.SerializeToString()


def _empty_model() -> protocol.ModelProto:
    """A SentencePiece model of the special symbols."""
    types = protocol.ModelProto.SentencePiece
    model = protocol.ModelProto()
    for number, piece in _SPECIAL.items():
        model.pieces.add(piece=piece, type=types.UNKNOWN if number == UNK else types.CONTROL)
    trainer = model.trainer_spec
    trainer.pad_id, trainer.bos_id, trainer.eos_id, trainer.unk_id = PAD, BOS, EOS, UNK
    trainer.bos_piece, trainer.eos_piece = _SPECIAL[BOS], _SPECIAL[EOS]
    model.normalizer_spec.name = NFC
    return model


def _symbol_model(texts: list[str], vocab_size: int, tags: Sequence[str]) -> bytes:
    """A SentencePiece model of what stands between spaces, the most frequent first.

    Its own trainer leaves out long lines and some characters.
    """
    model, types = _empty_model(), protocol.ModelProto.SentencePiece
    model.trainer_spec.model_type = protocol.TrainerSpec.WORD
    for tag in tags:
        model.pieces.add(piece=f"{SPACE}{tag}", type=types.USER_DEFINED)
    counts = collections.Counter(
        symbol for text in texts for symbol in text.replace(SPACE, " ").split(" ")
    )
    for absent in ("", *tags):
        del counts[absent]
    if not counts:
        raise ValueError(_NO_TEXT)
    if (room := vocab_size - len(model.pieces)) < 1:
        raise ValueError(
            f"config.data.vocab_size={vocab_size} leaves no room for symbols: at least "
            f"{len(model.pieces) + 1}"
        )
    total = counts.total()
    for symbol, count in sorted(counts.items(), key=lambda x: (-x[1], x[0]))[:room]:
        model.pieces.add(piece=SPACE + symbol, score=math.log(count / total))
    return model.SerializeToString()


def _byte_model(tags: Sequence[str]) -> bytes:
    """A SentencePiece model that spells all text in bytes, spaces as they are."""
    model, types = _empty_model(), protocol.ModelProto.SentencePiece
    model.trainer_spec.model_type = protocol.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    for byte in range(256):
        model.pieces.add(piece=f"<0x{byte:02X}>", type=types.BYTE)
    for tag in tags:
        model.pieces.add(piece=tag, type=types.USER_DEFINED)
    normalizer = model.normalizer_spec
    normalizer.add_dummy_prefix = normalizer.escape_whitespaces = False
    normalizer.remove_extra_whitespaces = False
    return model.SerializeToString()


_NO_TEXT = "no vocabulary could be trained: the training corpus has no text"


def _explain(error: Exception, vocab_size: int, byte_fallback: bool) -> str:
    """SentencePiece's reasons for not training, as one sentence in this project's words."""
    text = str(error)
    if "sentences_.empty()" in text or "all_chars_count" in text:
        return _NO_TEXT
    if maximum := re.search(r"<= (\d+)", text):
        return (
            f"config.data.vocab_size={vocab_size} is more than the training corpus allows: "
            f"at most {maximum[1]}"
        )
    if minimum := re.search(r"smaller than required_chars\. \d+ vs (\d+)", text):
        hint = "False saves 256 for bytes" if byte_fallback else "True spells rare ones in bytes"
        return (
            f"config.data.vocab_size={vocab_size} is less than the symbols of the training "
            f"corpus (config.data.byte_fallback={hint}): at least {minimum[1]}"
        )
    return f"no vocabulary could be trained: {' '.join(text.split())}"
