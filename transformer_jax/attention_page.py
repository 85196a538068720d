"""Attention as one HTML page to explore, which needs nothing but a browser."""

import base64
import html
import json
import pathlib
import re
import zlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from transformer_jax.labels import begins_word, label, right_to_left, text_of

if TYPE_CHECKING:
    from transformer_jax.decoding.translator import Attention

_TEMPLATE = pathlib.Path(__file__).with_suffix(".html")
_LEVELS = 1000  # a weight is kept in thousandths


def attention_page(attentions: Iterable["Attention"], *, title: str) -> str:
    """A page that shows the attention of sentence pairs, each kind, layer and head that it has.

    It downloads nothing. A sentence takes about a byte a weight, L H (S^2 + T^2 + T S) of them:
    with the paper's base model (L = 6, H = 8) and 30 tokens a side, some 110 kB.

    Args:
      attentions: of one sentence pair or more, from `Translator.attention`; each is read once
        and let go.
      title: of the page.

    Raises:
      ValueError: there are none.
    """
    sentences = [_sentence(attention) for attention in attentions]
    if not sentences:
        raise ValueError("a page of attention needs one sentence pair or more, and got none")
    data = json.dumps({"levels": _LEVELS, "sentences": sentences}, separators=(",", ":"))
    # JSON writes < nowhere but in strings, where it may be escaped: no tag can begin in it.
    parts = {"title": html.escape(title), "data": data.replace("<", r"\u003c")}
    template = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: parts[mark[1]], template)


def _sentence(attention: "Attention") -> dict[str, Any]:
    """What the page keeps of a sentence pair."""
    kinds = {
        name: weights_LHTM
        for name in ("encoder", "decoder", "cross")
        if (weights_LHTM := getattr(attention, name)) is not None
    }
    return {
        "text": text_of(attention.source_tokens),
        "source": _line(attention.source_tokens),
        "input": _line(attention.input_tokens),
        "target": _line(attention.target_tokens),
        "kinds": [{"name": name, "shape": weights.shape} for name, weights in kinds.items()],
        "weights": _packed([weights.ravel() for weights in kinds.values()]),
    }


def _line(pieces: list[str]) -> dict[str, Any]:
    return {
        "labels": [label(piece) for piece in pieces],
        "begins": [int(begins_word(piece)) for piece in pieces],
        "rtl": right_to_left(pieces),
    }


def _packed(weights: list[np.ndarray]) -> str:
    """Thousandths as 16-bit integers, low bytes first and high bytes after, zlib, base64."""
    levels = np.rint(np.concatenate(weights) * _LEVELS).astype("<u2")
    planes = levels.view(np.uint8).reshape(-1, 2).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode("ascii")
