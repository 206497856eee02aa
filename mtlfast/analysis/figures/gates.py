"""Bars of mean gate weights, one panel per task."""

from __future__ import annotations

from typing import Any

from mtlfast.analysis.figures.style import COLORS, clean, new_figure, shorten
from mtlfast.analysis.gates import Candidate, GateReport

__all__ = ["draw_gates"]

_EQUAL = "equal weights"


def draw_gates(found: GateReport, *, title: str = "") -> Any:
    """The weights of each task's gates (DTN, arXiv 2408.11611, Figure 4).

    Whiskers are one standard deviation over the samples; a dashed line marks equal weights.
    """
    by_task = {task: [w for w in found.weights if w.candidate.task == task] for task in found.tasks}
    gates = list(dict.fromkeys(w.candidate.gate for w in found.weights))
    numbered = any(w.candidate.number for w in found.weights)
    tasks = len(by_task)
    columns = 2 if tasks == 4 else min(tasks, 3)
    rows = -(-tasks // columns)
    longest = max(map(len, by_task.values()))
    figure, panels = new_figure(1.4 + 4.4 * columns, rows * (1.5 + 0.26 * longest), rows, columns)
    widest = max(w.mean + w.sd for w in found.weights)
    for axes, (task, weights) in zip(panels.flat, by_task.items(), strict=False):
        clean(axes, "x")
        axes.set_title(task, fontsize=10)
        places, place = [], 0.0
        for i, weight in enumerate(weights):
            if i and weight.candidate.gate != weights[i - 1].candidate.gate:
                place += 0.6
            places.append(place)
            place += 1
        for number, gate in enumerate(gates):
            chosen = [i for i, w in enumerate(weights) if w.candidate.gate == gate]
            if not chosen:
                continue
            color = COLORS[number % len(COLORS)]
            axes.barh(
                [places[i] for i in chosen],
                [weights[i].mean for i in chosen],
                xerr=[weights[i].sd for i in chosen],
                height=0.72,
                color=color,
                error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#404040"},
                label=_gate_label(gate),
            )
            axes.plot(
                [1 / len(chosen)] * 2,
                [places[chosen[0]] - 0.5, places[chosen[-1]] + 0.5],
                color="#404040",
                linestyle="--",
                linewidth=1,
                label=_EQUAL,
            )
        axes.set_yticks(places, [_label(w.candidate, numbered) for w in weights])
        axes.set_ylim(places[-1] + 0.6, -0.6)
        axes.set_xlim(0, widest * 1.05)
        axes.set_xlabel("mean gate weight", fontsize=9)
    for axes in list(panels.flat)[tasks:]:
        axes.set_axis_off()
    handles: dict[str, Any] = {}
    for axes in list(panels.flat)[:tasks]:
        found_here = axes.get_legend_handles_labels()
        handles.update(zip(found_here[1], found_here[0], strict=True))
    equal = handles.pop(_EQUAL)
    figure.legend(
        [*handles.values(), equal],
        [*handles, _EQUAL],
        loc="outside lower center",
        ncols=len(handles) + 1,
        fontsize=8,
        frameon=False,
    )
    name = f" of {title}" if title else ""
    figure.suptitle(f"Gates{name}, mean ± sd over {found.samples:,} samples", fontsize=11)
    return figure


def _gate_label(gate: str) -> str:
    names = {"own": "gate over the own group", "other": "gate over the other groups"}
    return names.get(gate, gate)


def _label(candidate: Candidate, numbered: bool) -> str:
    number = f" {candidate.number}" if numbered else ""
    return f"{shorten(candidate.group, 18)} · {candidate.method}{number}"
