"""Bars of the most important features of each task."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtlfast.analysis.figures.style import COLORS, clean, new_figure, shorten
from mtlfast.analysis.importance import Importance

__all__ = ["draw_importance"]


def draw_importance(found: Importance, *, title: str = "", top: int = 20) -> Any:
    """One panel per task with its ``top`` features, whiskers of one standard deviation.

    Tasks without an AUC stay empty.
    """
    tasks, shown = len(found.tasks), min(top, len(found.features))
    columns = 2 if tasks == 4 else min(tasks, 3)
    rows = -(-tasks // columns)
    figure, panels = new_figure(1.6 + 4.2 * columns, rows * (1.5 + 0.21 * shown), rows, columns)
    mean, sd = found.mean, found.sd
    for task, axes in enumerate(panels.flat):
        if task >= tasks:
            axes.set_axis_off()
            continue
        auc = found.base[task]
        axes.set_title(
            f"{found.tasks[task]} (AUC {'n/a' if np.isnan(auc) else format(auc, '.4f')})",
            fontsize=10,
        )
        axes.set_xlabel("AUC lost when the feature is permuted", fontsize=9)
        clean(axes, "x")
        if np.isnan(auc):
            axes.set_yticks([])
            continue
        order = np.argsort(-mean[:, task], kind="stable")[:shown]
        places = np.arange(shown)
        axes.barh(
            places,
            mean[order, task],
            xerr=None if np.isnan(sd).any() else sd[order, task],
            color=COLORS[task % len(COLORS)],
            error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#404040"},
            height=0.7,
        )
        axes.set_yticks(places, [shorten(found.features[f].name) for f in order])
        axes.set_ylim(shown - 0.4, -0.6)
        axes.axvline(0, color="#404040", linewidth=0.8)
        axes.locator_params(axis="x", nbins=5)
    repeats = found.drops.shape[1]
    times = "1 permutation" if repeats == 1 else f"mean ± sd of {repeats} permutations"
    figure.suptitle(
        f"Permutation importance{f' of {title}' if title else ''}\n"
        f"{found.samples:,} samples, {times}",
        fontsize=11,
    )
    return figure
