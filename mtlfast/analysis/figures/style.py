"""What all plots have in common."""

from __future__ import annotations

from typing import Any

__all__ = ["COLORS", "clean", "new_figure", "shorten"]

# Distinguishable to the color-blind, and in this order also in grey (after Okabe and Ito).
COLORS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c564b", "#404040",
)  # fmt: skip


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes ``[rows][columns]``; belongs to no window system."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def clean(axes: Any, grid: str = "both") -> None:
    """No frame on top and on the right, a light grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis=grid, color="#e5e5e5", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def shorten(text: str, length: int = 34) -> str:
    """``text``, cut in the middle if it is longer."""
    if len(text) <= length:
        return text
    head = (length - 1) * 2 // 3
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"
