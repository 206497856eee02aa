"""Scatter plot of two tasks' feature importances."""

from __future__ import annotations

import math
from typing import Any

from mtlfast.analysis.divergence_table import Divergence
from mtlfast.analysis.figures.style import COLORS, clean, new_figure, shorten

__all__ = ["draw_divergence"]

# Neighbours in the table often lie close to each other: their numbers go different ways.
_OFFSETS = ((5, 5), (5, -11), (-9, 6), (-10, -12))


def draw_divergence(found: Divergence, *, title: str = "", top: int = 10) -> Any:
    """Importance for the first task against that for the second (DTN, arXiv 2408.11611, Figure 2).

    The ``top`` most divergent features are numbered, with a legend of their names and ranks.
    Importances mostly lie close to 0, hence axes that are linear there and logarithmic further out.
    """
    marked = [feature for feature in found.features[:top] if feature.rank_difference]
    others = [feature for feature in found.features if feature not in marked]
    figure, panels = new_figure(8.6, 5.0)
    axes = panels[0][0]
    clean(axes)
    every = [value for feature in found.features for value in feature.importance]
    low, high = _limits(every)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("symlog", linthresh=_linear_part(every), linscale=0.6)
    axes.plot([low, high], [low, high], color="#9aa0a6", linewidth=1, linestyle="--", zorder=1)
    axes.axhline(0, color="#c0c0c0", linewidth=0.8, zorder=1)
    axes.axvline(0, color="#c0c0c0", linewidth=0.8, zorder=1)
    axes.scatter(
        *_columns(others),
        s=22,
        color="#9aa0a6",
        alpha=0.8,
        linewidths=0,
        label="other features" if others else None,
    )
    for number, feature in enumerate(marked, start=1):
        first, second = feature.importance
        prefers_first = feature.rank[0] < feature.rank[1]
        color = COLORS[0] if prefers_first else COLORS[1]
        axes.scatter([first], [second], s=34, color=color, zorder=3, linewidths=0)
        axes.annotate(
            str(number),
            (first, second),
            xytext=_OFFSETS[number % len(_OFFSETS)],
            textcoords="offset points",
            fontsize=8,
            color=color,
        )
        axes.plot(
            [],
            [],
            "o",
            color=color,
            markersize=5,
            label=f"{number}  {shorten(feature.name, 30)}  ({feature.rank[0]} : {feature.rank[1]})",
        )
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal", adjustable="box")
    axes.set_xlabel(f"importance for {found.tasks[0]} (AUC lost)", fontsize=9)
    axes.set_ylabel(f"importance for {found.tasks[1]} (AUC lost)", fontsize=9)
    correlation = found.rank_correlation
    same = "" if math.isnan(correlation) else f", rank correlation {correlation:.2f}"
    axes.set_title(
        f"{f'{title}: ' if title else ''}{len(found.features)} features{same}", fontsize=11
    )
    legend = axes.legend(
        title=f"most divergent (rank {found.tasks[0]} : rank {found.tasks[1]})",
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        fontsize=8,
        title_fontsize=8,
        frameon=False,
    )
    legend.get_title().set_ha("left")
    return figure


def _columns(features: list[Any]) -> tuple[list[float], list[float]]:
    return [f.importance[0] for f in features], [f.importance[1] for f in features]


def _linear_part(values: list[float]) -> float:
    """Where the axes turn logarithmic: two decades below the largest importance."""
    return max(max(map(abs, values)) / 100, 1e-6)


def _limits(values: list[float]) -> tuple[float, float]:
    threshold = _linear_part(values)
    return min(min(values) * 1.5, -0.5 * threshold), max(max(values) * 1.6, threshold)
