"""A table in Markdown of what benchmarks printed: python benchmarks/table.py FILE... > table.md.

A row a line of JSON. Without --columns it has the settings that differ between lines, and the
speeds; --columns=rows,beam,ratio_to_peer has those, in this order. Of a list it shows the mean.
"""

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from absl import app, flags

_COLUMNS = flags.DEFINE_list("columns", [], "Keys of the lines; default: what differs, and speeds.")

SPEEDS = ("target_tokens_per_s", "peer_target_tokens_per_s", "ratio_to_peer")


def table(lines: Sequence[dict[str, Any]], columns: Sequence[str] = ()) -> str:
    """The lines as rows."""
    names = dict.fromkeys(name for line in lines for name in line)
    # What was measured is a fraction; what was set is a word or a whole number, or a byte.
    settings = [
        name
        for name in names
        if len({json.dumps(line.get(name)) for line in lines}) > 1
        and not any(isinstance(line.get(name), float | list) for line in lines)
        and not name.endswith("_bytes")
    ]
    columns = columns or settings + [name for name in SPEEDS if name in names]
    rows = [[shown(line.get(name)) for name in columns] for line in lines]
    rows = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def shown(value: Any) -> str:
    """A cell's text."""
    if isinstance(value, list):
        value = statistics.mean(value)
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return "" if value is None else f"{value:,}" if type(value) is int else str(value)


def main(words: list[str]) -> None:
    texts = [pathlib.Path(name).read_text("utf-8") for name in words[1:]]
    lines = [json.loads(line) for text in texts for line in text.splitlines() if line[:1] == "{"]
    print(table(lines, _COLUMNS.value), end="")


if __name__ == "__main__":
    app.run(main)
