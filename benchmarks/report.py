"""What a run leaves behind: the table on the terminal, files, plots, and where to find them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .store import Store
from .table import format_tables
from .workload import FUSED

Row = dict[str, Any]

_LEGEND = """\
÷ fused: how many times the fused op's time (memory) this backend takes; medians of interleaved
runs. ±: half the interquartile range. peak: share of the measured FMA peak (bf16: dot-product peak)
of the threads used, counting only the operations the best algorithm needs. memory: peak of one call
beyond its inputs, outputs and gradients. max error: to float64, of the largest element. A backend
that fails its check against float64 gets no time."""


def report(rows: Sequence[Row], store: Store, *, plots: bool = True) -> None:
    """Prints the rows and draws them into the store's folder."""
    if not rows:
        print("nothing was measured")
        return
    print(format_tables(rows))
    print()
    print(_LEGEND)
    print(_limits(rows))
    lost = losses(rows)
    if lost:
        print("\nSlower than a baseline:")
        print("\n".join(f"  {line}" for line in lost))
    print(f"\nresults: {store.path} and results.csv")
    if plots:
        from .plots import draw

        for path in draw(rows, store.folder):
            print(f"plot:    {path}")


def losses(rows: Sequence[Row]) -> list[str]:
    """Cases in which the fused op is slower than some baseline."""
    found = []
    for row in rows:
        if row["backend"] != FUSED:
            continue
        for baseline, ratio in row.get("ratios", {}).items():
            if ratio < 1:
                threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
                found.append(
                    f"{row['name']} {row['mode']}, {threads}: {ratio:.2f}x against {baseline}"
                )
    return found


def _limits(rows: Sequence[Row]) -> str:
    """The machine's limits as measured beside the cases: the best of all measurements."""
    lines = []
    measured = [row["limits"] for row in rows if row.get("limits")]
    for threads in sorted({limits["threads"] for limits in measured}):
        best = {
            name: max(limits[name] for limits in measured if limits["threads"] == threads)
            for name in ("fma_gflops", "bf16_gflops", "copy_gbs")
        }
        bf16 = f"{best['bf16_gflops']:.0f}" if best["bf16_gflops"] else "no"
        lines.append(
            f"limits of {threads} thread{'s' if threads > 1 else ''}: "
            f"{best['fma_gflops']:.0f} GFLOP/s fp32, {bf16} GFLOP/s bf16 dot products, "
            f"{best['copy_gbs']:.0f} GB/s copied (read + written)"
        )
    if measured and not any(limits["fma_gflops"] for limits in measured):
        return f"limits of this machine: {measured[0]['source']}"
    return "\n".join(lines)
