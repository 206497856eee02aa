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
    "modules": "#7f8c8d",
    "plain": "#d1495b",
    "bag": "#2a6f97",
    "eager_sparse": "#8d3b72",
    "eager_coalesced": "#f4a6b0",
    "fused_unfused_step": "#52b788",
    "fused_rowwise": "#95d5b2",
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
        ("other_ratios.png", _other_ratios),
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
    stems = {
        "conditional_layer_norm": "CLN ",
        "gated_cross": "GDCN layer ",
        "dtrn_training": "DTRN step ",
        "dtn_training": "DTN step ",
    }
    stem = stems.get(case["stem"], "")
    parts = [f"{stem}{case['shape']} d={case['d']}"]
    if case["stem"] == "multi_hash_lookup":
        parts = [f"codebook F={case['num_fields']} m={case['num_hashes']} d={case['d']}"]
        parts += [case["gradient"]] if case["gradient"] != "dense" else []
        parts += [f"n={case['num_codewords']}"] if case["num_codewords"] != 1_000_000 else []
    if case["stem"] == "gated_cross":
        parts.append(f"F={case['num_fields']} G={case['num_tasks']}")
    if case["batch"] != 2048:
        parts.append(f"B={case['batch']}")
    if case["users"] != case["batch"] and case["stem"] != "gated_cross":
        parts.append(f"U={case['users']}")
    if case["lengths"] != "geometric":
        parts.append(case["lengths"])
    if case["dtype"] != "float32":
        parts.append("bf16")
    return " ".join(parts)


def _is_main(row: Row) -> bool:
    """A case of the published tables, not one of the odd shapes around them."""
    case = row["case"]
    usual = case["lengths"] == "geometric" and case["dtype"] == "float32" and case["d"] <= 64
    full = row["mode"] == "serving" or case["batch"] == case["users"] == 2048
    return usual and full and case["stem"] in ("conditional_interest", "dtrn_training")


def _fused_rows(rows: Sequence[Row], threads: int) -> list[Row]:
    return [
        row
        for row in rows
        if row["backend"] == FUSED and row["threads"] == threads and row.get("ratios")
    ]


def _most_threads(rows: Sequence[Row]) -> int:
    return max((row["threads"] for row in rows), default=0)


def _plain_numbers(axis: Any) -> None:
    """A logarithmic x axis labelled 1, 2, 5, 10, 20 instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _ratios(rows: Sequence[Row]) -> Any:
    """How many times faster fused is: bars per main case, a panel per mode, on the most threads."""
    import matplotlib.pyplot as plt

    threads = _most_threads(rows)
    fused = _fused_rows(rows, threads)
    fused = [row for row in fused if _is_main(row)] or fused[:12]
    modes = list(dict.fromkeys(row["mode"] for row in fused))
    if not modes:
        return None
    panels = [[row for row in fused if row["mode"] == mode] for mode in modes]
    heights = [sum(len(row["ratios"]) + 1.5 for row in panel) for panel in panels]
    figure, axes = plt.subplots(
        1, len(modes), figsize=(5.5 * len(modes), 1 + 0.15 * max(heights)), squeeze=False
    )
    seen: set[str] = set()
    for axis, panel, mode in zip(axes[0], panels, modes, strict=True):
        at, ticks = 0.0, []
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
        _plain_numbers(axis)
        axis.set_yticks([place for place, _ in ticks], [text for _, text in ticks], fontsize=7.5)
        axis.invert_yaxis()
        axis.set_title(f"{mode}, {threads} threads", fontsize=9)
        axis.margins(x=0.12, y=0.02)
    figure.suptitle("time of the baseline ÷ time of fused", fontsize=10)
    figure.tight_layout(w_pad=3)
    figure.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 0.97))
    return figure


def _other_ratios(rows: Sequence[Row]) -> Any:
    """The same for all other cases, compact: one line per case, one mark per baseline."""
    import matplotlib.pyplot as plt

    others = [
        row
        for threads in sorted({row["threads"] for row in rows}, reverse=True)
        for row in _fused_rows(rows, threads)
        if not _is_main(row)
    ]
    if not others:
        return None
    figure, axis = plt.subplots(figsize=(9, 1 + 0.2 * len(others)))
    seen = set()
    for at, row in enumerate(others):
        for name, ratio in row["ratios"].items():
            label = None if name in seen else name
            seen.add(name)
            color = _COLORS.get(name, "#777777")
            axis.plot([ratio], [at], "o", markersize=5, color=color, label=label)
    labels = [f"{_label(row)} {row['mode']}, {row['threads']}t" for row in others]
    axis.set_yticks(range(len(others)), labels, fontsize=7)
    axis.axvline(1.0, color="black", linewidth=0.8)
    _plain_numbers(axis)
    axis.grid(alpha=0.3)
    axis.invert_yaxis()
    axis.margins(y=0.02)
    axis.set_title("other cases: time of the baseline ÷ time of fused", fontsize=9)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return figure


def _time_against_width(rows: Sequence[Row]) -> Any:
    """Time over d, one panel per (shape, mode), for the cases that exist at several widths."""
    import matplotlib.pyplot as plt

    most = _most_threads(rows)
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
    figure.tight_layout()
    named = {str(line.get_label()): line for axis in axes.flat for line in axis.get_lines()}
    figure.legend(
        list(named.values()),
        list(named),
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.0, 0.98),
    )
    return figure


def _memory(rows: Sequence[Row]) -> Any:
    """Peak training memory beyond inputs, outputs and gradients."""
    import matplotlib.pyplot as plt

    most = _most_threads(rows)
    chosen = [
        row
        for row in rows
        if row["mode"] == "training" and row["threads"] == most and row.get("extra_bytes")
    ]
    chosen = [row for row in chosen if _is_main(row)] or chosen[:40]
    labels = list(dict.fromkeys(_label(row) for row in chosen))
    if not labels:
        return None
    figure, axis = plt.subplots(figsize=(9, 1 + 0.15 * (len(chosen) + 1.5 * len(labels))))
    at, ticks, seen = 0.0, [], set()
    for label in labels:
        group = [row for row in chosen if _label(row) == label]
        ticks.append(at + (len(group) - 1) / 2)
        for row in sorted(group, key=lambda row: -row["extra_bytes"]):
            name, mib = row["backend"], row["extra_bytes"] / 2**20
            legend = None if name in seen else name
            seen.add(name)
            axis.barh(at, mib, height=0.85, color=_COLORS.get(name, "#777777"), label=legend)
            axis.text(
                mib * 1.03, at, f"{mib:,.{0 if mib >= 10 else 1}f}", va="center", fontsize=6.5
            )
            at += 1
        at += 1.5
    axis.set_yticks(ticks, labels, fontsize=7.5)
    _plain_numbers(axis)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.02)
    axis.set_xlabel("MiB")
    axis.set_title("peak training memory beyond inputs, outputs and gradients", fontsize=9)
    axis.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.tight_layout()
    return figure
