"""Differences of AUC with their intervals, one row per model and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlfast.analysis.figures.style import COLORS, clean, new_figure, shorten
from mtlfast.analysis.significance import Difference, stars

__all__ = ["draw_significance"]


def draw_significance(found: Mapping[str, Sequence[Difference]], base: str) -> Any:
    """Points with whiskers over 95 % of the resampled differences; stars as in the tables.

    Args:
        found: per model its differences from ``base``, of which those of the AUC are drawn.
        base: name of the model compared with.
    """
    rows = [
        (model, d) for model, differences in found.items() for d in differences if d.metric == "auc"
    ]
    figure, panels = new_figure(7.6, 1.4 + 0.34 * max(len(rows), 1))
    axes = panels[0][0]
    clean(axes, "x")
    models = list(found)
    for place, (model, d) in enumerate(rows):
        axes.errorbar(
            [d.difference],
            [place],
            xerr=[[max(d.difference - d.low, 0)], [max(d.high - d.difference, 0)]],
            fmt="o",
            markersize=5,
            capsize=3,
            color=COLORS[models.index(model) % len(COLORS)],
        )
        axes.annotate(
            stars(d.p),
            (d.high, place),
            xytext=(6, -4),
            textcoords="offset points",
            fontsize=10,
        )
    axes.axvline(0, color="#404040", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [f"{shorten(model, 22)} · {d.task}" for model, d in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.set_xlabel(f"AUC minus that of {shorten(base)}, with 95 % of the resamplings", fontsize=9)
    return figure
