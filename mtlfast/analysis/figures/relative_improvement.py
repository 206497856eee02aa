"""Bars of RelaImp per task and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlfast.analysis.figures.style import COLORS, clean, new_figure, shorten

__all__ = ["draw_relaimp"]


def draw_relaimp(
    tasks: Sequence[str], gains: Mapping[str, Sequence[float | None]], base: str
) -> Any:
    """A group of bars per task, one per model.

    Args:
        tasks: names of the T tasks.
        gains: per model its RelaImp of each task in percent; None where there is none.
        base: name of the model compared with.
    """
    models = list(gains)
    width = 0.8 / len(models)
    figure, panels = new_figure(max(5.0, 1.8 + len(tasks) * (0.6 + 0.6 * len(models))), 3.6)
    axes = panels[0][0]
    for place, name in enumerate(models):
        shift = (place - (len(models) - 1) / 2) * width
        heights = [0.0 if gain is None else gain for gain in gains[name]]
        bars = axes.bar(
            [task + shift for task in range(len(tasks))],
            heights,
            width * 0.92,
            color=COLORS[place % len(COLORS)],
            label=shorten(name),
        )
        texts = ["n/a" if gain is None else f"{gain:+.2f}" for gain in gains[name]]
        axes.bar_label(bars, texts, padding=2, fontsize=8)
    axes.set_xticks(range(len(tasks)), [shorten(task, 24) for task in tasks])
    axes.axhline(0, color="#404040", linewidth=0.8)
    axes.margins(y=0.15)
    axes.set_xlabel("task", fontsize=9)
    axes.set_ylabel("RelaImp (%)", fontsize=9)
    axes.set_title(f"Gain in AUC above 0.5, relative to {shorten(base)}", fontsize=11)
    clean(axes, "y")
    axes.legend(fontsize=8, frameon=False, loc="best")
    return figure
