"""Figures for papers and notebooks (matplotlib), and the interactive page of attention."""

from transformer_jax.figures.architecture import architecture_figure
from transformer_jax.figures.figures import (
    alignment_figure,
    attention_figure,
    attention_grid,
    position_curves_figure,
    positions_figure,
    save,
    schedule_figure,
)

__all__ = [
    "alignment_figure",
    "architecture_figure",
    "attention_figure",
    "attention_grid",
    "position_curves_figure",
    "positions_figure",
    "save",
    "schedule_figure",
]
