"""Pieces of the report's page as HTML: tables, figures, heat maps, numbers and texts.

Texts are escaped. What was not measured, None, is a dash.
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformer_jax.figures.labels import label

DASH = "–"


def text(value: Any) -> str:
    """Any value, escaped."""
    return DASH if value is None else html.escape(str(value))


def foreign(value: str | None) -> str:
    """Text of a corpus, in the direction of its own script."""
    return f'<bdi dir="auto">{text(value)}</bdi>'


def decimal(value: float | None, digits: int, *, sign: bool = False) -> str:
    """A number with so many digits after the point."""
    if value is None:
        return DASH
    if not math.isfinite(value):
        return "not finite"
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def count(value: float | None) -> str:
    """A number that needs no fraction, unless it is small."""
    small = value is not None and 0 < abs(value) < 10 and value != int(value)
    return decimal(value, 1 if small else 0)


def score(interval: Mapping[str, float] | None, *, best: bool = False) -> str:
    """A score of 0 to 100 above its interval."""
    if not interval:
        return DASH
    low, high = (interval["mean"] + sign * interval["half_width"] for sign in (-1, 1))
    number = f"{interval['score']:.1f}"
    number = f"<b>{number}</b>" if best else number
    return f"{number}<br><small>{low:.1f} to {high:.1f}</small>"


def p_value(p: float | None) -> str:
    """A probability, bold where it is called significant."""
    number = decimal(p, 3)
    return f"<b>{number}</b>" if p is not None and p < 0.05 else number


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, texts: Iterable[int] = (0,)):
    """A table.

    Args:
      head: names of the columns, escaped here.
      rows: cells, which are HTML.
      texts: the columns that are no numbers.
    """
    texts = set(texts)
    classes = ["" if i in texts else ' class="number"' for i in range(len(head))]
    heads = "".join(f'<th scope="col"{c}>{text(name)}</th>' for c, name in zip(classes, head))
    body = "\n".join(
        "<tr>" + "".join(f"<td{c}>{cell}</td>" for c, cell in zip(classes, row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>"
    )


def heat_map(name: str, attention: Mapping[str, Any]) -> str:
    """Weights [T][S] as a table: a row a target token, a column a source token."""
    columns = "".join(
        f"<th><span>{text(label(token))}</span></th>" for token in attention["source_tokens"]
    )
    rows = "".join(
        f"<tr><th>{text(label(token))}</th>"
        + "".join(f'<td style="--w:{weight:.2f}"></td>' for weight in weights)
        + "</tr>"
        for token, weights in zip(attention["target_tokens"], attention["weights"])
    )
    return (
        f'<table class="heat"><caption>{text(name)}</caption>'
        f"<thead><tr><th></th>{columns}</tr></thead><tbody>{rows}</tbody></table>"
    )


def figure(chart: str, caption: str) -> str:
    """A chart, if there is one, with what it shows."""
    if not chart:
        return ""
    return f"<figure>{chart}<figcaption>{text(caption)}</figcaption></figure>"


def details(summary: str, content: str) -> str:
    """HTML that opens on demand."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"
