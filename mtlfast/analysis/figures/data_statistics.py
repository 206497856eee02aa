"""Bars of positive rates, and of mean lengths or distinct ids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mtlfast.analysis.data_statistics import DataStatistics
from mtlfast.analysis.figures.style import COLORS, clean, new_figure, shorten
from mtlfast.analysis.published_statistics import PublishedStatistics

__all__ = ["draw_statistics"]

_MOST_FIELDS = 40


def draw_statistics(
    parts: Mapping[str, DataStatistics],
    published: PublishedStatistics | None = None,
    *,
    title: str = "",
) -> Any:
    """Positive rate per task beside the mean length per sequence (or distinct ids per field).

    Args:
        parts: what was counted, by the name of the part; at least one, of the same data.
        published: drawn as diamonds.
        title: of the data.
    """
    spec = next(iter(parts.values())).spec
    rates = {name: part.positive_rates for name, part in parts.items()}
    if spec.behaviors:
        names, label = spec.behaviors, "mean length"
        heights = {name: part.mean_lengths for name, part in parts.items()}
    else:
        names, label = spec.fields[:_MOST_FIELDS], "distinct ids"
        heights = {name: part.distinct[:_MOST_FIELDS] for name, part in parts.items()}
    figure, panels = new_figure(max(9.0, 5.0 + 0.28 * len(names)), 3.8, columns=2)
    left, right = panels[0]
    paper_rates: list[float | None] = []
    paper_lengths: list[float | None] = []
    if published is not None:
        paper_rates = [published.positive_rate(task) for task in spec.tasks]
        paper_lengths = [published.mean_lengths.get(name) for name in spec.behaviors]
    _bars(left, spec.tasks, rates, paper_rates, log=True)
    left.set_ylabel("share of positive samples", fontsize=9)
    _bars(right, names, heights, paper_lengths, log=not spec.behaviors)
    right.set_ylabel(label, fontsize=9)
    left.legend(fontsize=8, frameon=False)
    figure.suptitle(title or spec.name, fontsize=11)
    return figure


def _bars(
    axes: Any,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    published: Sequence[float | None],
    *,
    log: bool,
) -> None:
    clean(axes, "y")
    width = 0.8 / len(series)
    for place, (part, heights) in enumerate(series.items()):
        shift = (place - (len(series) - 1) / 2) * width
        at = [group + shift for group in range(len(names))]
        color = COLORS[place % len(COLORS)]
        axes.bar(at, heights, width * 0.92, color=color, label=part)
    points = [(group, value) for group, value in enumerate(published) if value is not None]
    if points:
        axes.plot(*zip(*points, strict=True), "D", color="#202020", markersize=5, label="published")
    shown = [value for heights in series.values() for value in heights if value > 0]
    if log and shown:
        axes.set_yscale("log")
        # A whole decade, so that no bar is all but invisible.
        axes.set_ylim(bottom=10.0 ** math.floor(math.log10(0.999 * min(shown))))
    turned = len(names) > 8
    axes.set_xticks(
        range(len(names)),
        [shorten(name, 22) for name in names],
        rotation=90 if turned else 0,
        fontsize=7 if turned else 8,
    )
