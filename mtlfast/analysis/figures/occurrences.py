"""Bars of the target's mean occurrences per sequence and task."""

from __future__ import annotations

from typing import Any

from mtlfast.analysis.figures.style import COLORS, clean, new_figure
from mtlfast.analysis.occurrences import Occurrences

__all__ = ["draw_occurrences"]


def draw_occurrences(found: Occurrences, *, what: str, title: str = "") -> Any:
    """A group of bars per sequence, one per task (DTRN, CIKM 2023, Table 1).

    A line across each group marks the mean over all samples.

    Args:
        found: what to draw.
        what: is counted: "item", or the field.
        title: of the data.
    """
    count, width = len(found.tasks), 0.8 / len(found.tasks)
    groups = len(found.behaviors)
    figure, panels = new_figure(max(5.0, 1.8 + groups * (0.5 + 0.3 * count)), 3.8)
    axes = panels[0][0]
    clean(axes, "y")
    for place, task in enumerate(found.tasks):
        heights = [row[place] or 0.0 for row in found.means]
        shift = (place - (count - 1) / 2) * width
        axes.bar(
            [group + shift for group in range(groups)],
            heights,
            width * 0.92,
            color=COLORS[place % len(COLORS)],
            label=f"{task} ({found.positives[place]:,})",
        )
    axes.hlines(
        found.overall,
        [group - 0.42 for group in range(groups)],
        [group + 0.42 for group in range(groups)],
        color="#404040",
        linestyle="--",
        linewidth=1,
        label=f"all samples ({found.samples:,})",
    )
    axes.set_xticks(range(groups), found.behaviors)
    axes.set_xlabel("sequence", fontsize=9)
    axes.set_ylabel("mean occurrences", fontsize=9)
    where = f" in {title}" if title else ""
    whose = "target item" if what == "item" else f"target's {what}"
    axes.set_title(f"Occurrences of the {whose}{where}", fontsize=11)
    axes.legend(title="positives of", title_fontsize=8, fontsize=8, frameon=False)
    return figure
