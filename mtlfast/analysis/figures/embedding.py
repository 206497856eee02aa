"""Scatter plots of t-SNE."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast.analysis.figures.style import COLORS, new_figure, shorten

__all__ = ["draw_embeddings"]


def draw_embeddings(
    panels: Mapping[str, Mapping[str, NDArray[np.float32]]], *, title: str = ""
) -> Any:
    """One panel per view, one color per series.

    Args:
        panels: per title of a view, per name of a series its points ``[n, 2]``.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, grid = new_figure(4.9 * columns, 5.0 * rows + 0.4, rows, columns)
    for axes, (name, series) in zip(grid.flat, panels.items(), strict=False):
        count = sum(map(len, series.values()))
        size = 14 if count <= 1000 else 7
        # In a random order: drawn one after the other, the last series would hide the others.
        points = np.concatenate(list(series.values()))
        colors = np.repeat(
            [COLORS[i % len(COLORS)] for i in range(len(series))], [len(p) for p in series.values()]
        )
        order = np.random.default_rng(0).permutation(count)
        axes.scatter(*points[order].T, s=size, c=colors[order], alpha=0.65, linewidths=0)
        for i, label in enumerate(series):
            color = COLORS[i % len(COLORS)]
            axes.scatter([], [], s=30, color=color, linewidths=0, label=shorten(label, 24))
        axes.set_title(f"{name}\n{len(next(iter(series.values()))):,} samples each", fontsize=10)
        axes.set_xlabel("t-SNE 1", fontsize=9)
        axes.set_ylabel("t-SNE 2", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[["top", "right", "left", "bottom"]].set_color("#c0c0c0")
        axes.legend(
            fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=4
        )
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    if title:
        figure.suptitle(f"t-SNE of {title}", fontsize=11)
    return figure
