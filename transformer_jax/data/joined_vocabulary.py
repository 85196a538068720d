"""OPUS-MT's vocabularies: a SentencePiece model for each side, and one list that numbers pieces.

They are kept as one SentencePiece model of all the pieces, which decodes; the two that encode, and
the list, are extensions of it, for which its format leaves field numbers free.
"""

import re

import sentencepiece
from google.protobuf import unknown_fields
from sentencepiece import sentencepiece_model_pb2 as protocol

from transformer_jax.storage import from_json

_SOURCE, _TARGET, _NUMBERS = 200, 201, 202  # numbers of the fields
_BYTES = 2  # wire type
_PADDING = "<padding>"  # OPUS-MT's own is what its decoder starts with
_START, _EOS, _UNKNOWN = "<pad>", "</s>", "<unk>"


def joined_model(source: bytes, target: bytes, numbers: bytes) -> bytes:
    """One model of those of both sides, and of a vocab.json; ValueError where that is none.

    Its ids: padding, what the decoder starts with, EOS, unknown, and the others in their order.
    """
    try:
        ids = from_json(numbers)
    except ValueError as error:
        raise ValueError(f"vocab.json is not JSON: {error}") from None
    # By how they are written: 1.0 and true are equal to 1.
    if not isinstance(ids, dict) or {*map(repr, ids.values())} != {*map(repr, range(len(ids)))}:
        raise ValueError("vocab.json does not number pieces, each with its own of 0, 1, 2, ...")
    if _PADDING in ids:
        raise ValueError(f"vocab.json has {_PADDING}, the name of padding here")
    if missing := {_START, _EOS, _UNKNOWN} - ids.keys():
        raise ValueError(f"vocab.json has no {', '.join(sorted(missing))}")
    model, types = protocol.ModelProto(), protocol.ModelProto.SentencePiece
    for piece in (_PADDING, _START, _EOS):
        model.pieces.add(piece=piece, type=types.CONTROL)
    model.pieces.add(piece=_UNKNOWN, type=types.UNKNOWN)
    for piece in sorted(ids.keys() - {_START, _EOS, _UNKNOWN}, key=ids.get):
        model.pieces.add(piece=piece)
    trainer = model.trainer_spec
    trainer.model_type = trainer.WORD
    trainer.pad_piece, trainer.bos_piece = _PADDING, _START
    trainer.eos_piece, trainer.unk_piece = _EOS, _UNKNOWN
    model.normalizer_spec.name = "identity"
    extensions = ((_SOURCE, source), (_TARGET, target), (_NUMBERS, numbers))
    return model.SerializeToString() + b"".join(
        _varint(number << 3 | _BYTES) + _varint(len(data)) + data for number, data in extensions
    )


def _varint(number: int) -> bytes:
    digits = []
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number])


def joined_files(model: bytes) -> dict[str, bytes]:
    """What `joined_model` was made from, by the names of OPUS-MT's files; {} of other models."""
    fields = unknown_fields.UnknownFieldSet(protocol.ModelProto.FromString(model))
    data = {field.field_number: field.data for field in fields}
    names = {"source.spm": _SOURCE, "target.spm": _TARGET, "vocab.json": _NUMBERS}
    return {name: data[number] for name, number in names.items() if number in data}


class Segmenter:
    """The pieces of texts by a SentencePiece model; a language's code in front is one: >>fra<<."""

    def __init__(self, model: bytes):
        self._processor = sentencepiece.SentencePieceProcessor()
        self._processor.LoadFromSerializedProto(model)

    def __call__(self, text: str) -> list[str]:
        """The pieces of one text."""
        code, rest = re.match(r"(>>.*?<<)?(.*)", text, re.DOTALL).groups()
        return [code] * bool(code) + self._processor.encode(rest, out_type=str)
