"""Prints docs/configuration.md, made from what the config's dataclasses say of their fields.

python docs/make_configuration.py > docs/configuration.md
"""

import itertools

from transformer_jax.config import Config, Row, reference

_INTRODUCTION = """# Configuration

Printed by `docs/make_configuration.py` from what [`config.py`](../transformer_jax/config.py) says
of each field; do not edit. Every field can be set on the command line, as
`--config.SECTION.FIELD=VALUE`, and stands in the workdir's `config.json`. A field whose *needs* are
not met has no effect, and is refused unless it has its default.
"""
_HEAD = "| field | default | takes | what | needs |\n|---|---|---|---|---|"


def _line(row: Row) -> str:
    default = f"`{row.default}`" if row.default != "" else "empty"
    takes = row.takes.removeprefix("one of ") or "text"
    takes = takes if row.type == "str" else f"{row.type} {row.takes}".strip()
    needs = f"`{row.needs}`" if row.needs else ""
    return f"| `{row.name.rpartition('.')[2]}` | {default} | {takes} | {row.help} | {needs} |"


def page() -> str:
    """The page, as Markdown."""
    parts = [_INTRODUCTION]
    for section, rows in itertools.groupby(reference(), lambda row: row.section):
        group = getattr(Config(), section, Config())
        parts.append(
            "\n".join(
                (f"## {section or 'config'}\n\n{group.__doc__}\n", _HEAD, *map(_line, rows), "")
            )
        )
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
