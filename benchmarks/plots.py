"""PNG plots of a result folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .workload import FUSED

Row = dict[str, Any]

_COLORS = {
    FUSED: "#0b6e4f",
    "fused_float32": "#52b788",
    "naive": "#9aa0a6",
    "batched": "#d1495b",
    "repeated": "#8d3b72",
    "ragged": "#2a6f97",
    "ragged_flat": "#61a5c2",
    "compiled": "#edae49",
    "compiled_batched": "#edae49",
    "compiled_ragged": "#66a182",
    "reference": "#5f5f5f",
    "eager": "#d1495b",
    "gathered": "#2a6f97",
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draws what the rows allow; returns the files, none without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return []
    matplotlib.use("Agg")
    rows = [row for row in rows if "seconds" in row and row["allocator"] == "tuned"]
    makers: tuple[tuple[str, Callable[[Sequence[Row]], Any]], ...] = (
        ("ratios.png", _ratios),
        ("time_vs_d.png", _time_against_width),
        ("memory.png", _memory),
    )
    written = []
    for name, make in makers:
        figure = make(rows)
        if figure is None:
            continue
        path = folder / name
        _save(figure, path)
        written.append(path)
    return written


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".png")
    os.close(handle)
    figure.savefig(temporary, dpi=130, bbox_inches="tight")
    plt.close(figure)
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _label(row: Row) -> str:
    case = row["case"]
    stem = {"conditional_layer_norm": "CLN ", "dtrn_training": "DTRN step "}.get(case["stem"], "")
    parts = [f"{stem}{case['shape']} d={case['d']}"]
    if case["batch"] != 2048:
        parts.append(f"B={case['batch']}")
    if case["users"] != case["batch"]:
        parts.append(f"U={case['users']}")
    if case["lengths"] != "geometric":
        parts.append(case["lengths"])
    if case["dtype"] != "float32":
        parts.append("bf16")
    return " ".join(parts)


def _ratios(rows: Sequence[Row]) -> Any:
    """How many times faster fused is: bars per case, a panel per mode, on the most threads."""
    import matplotlib.pyplot as plt

    most = max((row["threads"] for row in rows), default=0)
    fused = [
        row
        for row in rows
        if row["backend"] == FUSED and row["threads"] == most and row.get("ratios")
    ]
    modes = list(dict.fromkeys(row["mode"] for row in fused))
    if not modes:
        return None
    panels = [[row for row in fused if row["mode"] == mode] for mode in modes]
    heights = [sum(len(row["ratios"]) + 1.5 for row in panel) for panel in panels]
    figure, axes = plt.subplots(
        len(modes),
        1,
        figsize=(9, 1.2 * len(modes) + 0.19 * sum(heights)),
        height_ratios=heights,
        squeeze=False,
    )
    for axis, panel, mode in zip(axes[:, 0], panels, modes, strict=True):
        at, ticks, seen = 0.0, [], set()
        for row in panel:
            ratios = sorted(row["ratios"].items(), key=lambda item: -item[1])
            ticks.append((at + (len(ratios) - 1) / 2, _label(row)))
            for name, ratio in ratios:
                label = None if name in seen else name
                seen.add(name)
                axis.barh(at, ratio, height=0.85, color=_COLORS.get(name, "#777777"), label=label)
                axis.text(ratio * 1.03, at, f"{ratio:.1f}", va="center", fontsize=6.5)
                at += 1
            at += 1.5
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_yticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=7.5)
        axis.invert_yaxis()
        axis.set_title(f"{mode}, {most} threads: time of the baseline ÷ time of fused", fontsize=9)
        axis.margins(x=0.12)
        axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    return figure


def _time_against_width(rows: Sequence[Row]) -> Any:
    """Time over d, one panel per (shape, mode), for the cases that exist at several widths."""
    import matplotlib.pyplot as plt

    most = max((row["threads"] for row in rows), default=0)
    groups: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in rows:
        case = row["case"]
        plain = case["lengths"] == "geometric" and case["dtype"] == "float32"
        if case["stem"] != "conditional_interest" or not plain or row["threads"] != most:
            continue
        if row["mode"] != "serving" and (case["batch"], case["users"]) != (2048, 2048):
            continue
        lines = groups.setdefault((case["shape"], row["mode"]), {})
        lines.setdefault(row["backend"], {})[case["d"]] = row["seconds"]
    groups = {
        key: lines for key, lines in groups.items() if max(map(len, lines.values()), default=0) > 1
    }
    if not groups:
        return None
    columns = min(len(groups), 2)
    height = -(-len(groups) // columns)
    figure, axes = plt.subplots(height, columns, figsize=(5 * columns, 3.6 * height), squeeze=False)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, ((shape, mode), lines) in zip(axes.flat, groups.items(), strict=False):
        for name, points in lines.items():
            widths = sorted(points)
            axis.plot(
                widths,
                [1e3 * points[d] for d in widths],
                marker="o",
                markersize=3.5,
                color=_COLORS.get(name, "#777777"),
                linewidth=2 if name == FUSED else 1,
                label=name,
            )
        axis.set(xscale="log", yscale="log", xlabel="d", ylabel="ms")
        every = sorted({d for points in lines.values() for d in points})
        axis.set_xticks(every, [str(d) for d in every])
        axis.minorticks_off()
        axis.set_title(f"{shape}, {mode}, {most} threads", fontsize=9)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6.5)
    figure.tight_layout()
    return figure


def _memory(rows: Sequence[Row]) -> Any:
    """Peak training memory beyond inputs, outputs and gradients."""
    import matplotlib.pyplot as plt

    most = max((row["threads"] for row in rows), default=0)
    chosen = [
        row
        for row in rows
        if row["mode"] == "training" and row["threads"] == most and row.get("extra_bytes")
    ]
    labels = list(dict.fromkeys(_label(row) for row in chosen))
    names = list(dict.fromkeys(row["backend"] for row in chosen))
    if not labels:
        return None
    figure, axis = plt.subplots(figsize=(9, 1 + 0.17 * len(labels) * (len(names) + 1)))
    for i, name in enumerate(names):
        for row in chosen:
            if row["backend"] != name:
                continue
            at = labels.index(_label(row)) * (len(names) + 1) + i
            mib = row["extra_bytes"] / 2**20
            axis.barh(at, mib, height=0.85, color=_COLORS.get(name, "#777777"))
            axis.text(mib * 1.05, at, f"{mib:,.0f}", va="center", fontsize=6.5)
        axis.barh([0], [0], color=_COLORS.get(name, "#777777"), label=name)
    middle = (len(names) - 1) / 2
    axis.set_yticks(
        [i * (len(names) + 1) + middle for i in range(len(labels))], labels, fontsize=7.5
    )
    axis.set_xscale("log")
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.set_xlabel("MiB")
    axis.set_title(
        "peak memory of a training step beyond inputs, outputs and gradients", fontsize=9
    )
    axis.legend(fontsize=7, loc="lower right")
    figure.tight_layout()
    return figure
