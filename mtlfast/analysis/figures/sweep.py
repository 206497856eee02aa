"""AUC over the value of an option, one panel per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtlfast.analysis.figures.style import COLORS, clean, new_figure

__all__ = ["draw_sweep"]

Points = Sequence[tuple[int, float, float]]


def draw_sweep(series: Mapping[str, Mapping[str, Points]], *, xlabel: str, title: str = "") -> Any:
    """Lines with whiskers of one standard deviation (DTRN, CIKM 2023, Figure 4).

    Args:
        series: per task, per model its points (value, mean AUC, sd), at least one.
        xlabel: the option, drawn on a logarithmic axis.
        title: of the data.
    """
    columns = 2 if len(series) == 4 else min(max(len(series), 1), 3)
    rows = -(-len(series) // columns) or 1
    figure, panels = new_figure(1.2 + 3.6 * columns, 0.8 + 2.6 * rows, rows, columns)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, (task, models) in zip(panels.flat, series.items(), strict=False):
        axes.set_axis_on()
        clean(axes)
        axes.set_title(task, fontsize=10)
        axes.set_xscale("log", base=2)
        for number, (model, points) in enumerate(models.items()):
            sizes, aucs, spreads = zip(*sorted(points), strict=True)
            axes.errorbar(
                sizes,
                aucs,
                yerr=spreads if any(spreads) else None,
                marker="o",
                markersize=4,
                capsize=2,
                color=COLORS[number % len(COLORS)],
                label=model,
            )
        ticks = sorted({point[0] for points in models.values() for point in points})
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.minorticks_off()
        axes.set_xlabel(xlabel, fontsize=9)
        axes.set_ylabel("AUC", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"AUC by {xlabel}{f' on {title}' if title else ''}", fontsize=11)
    return figure
