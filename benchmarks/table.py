"""The rows as a table for the terminal: one block per case, one line per backend."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .workload import FUSED

Row = dict[str, Any]

_HEAD = (
    "backend",
    "time",
    "±",
    "÷ fused",
    "samples/s",
    "GFLOP/s",
    "peak",
    "GB/s",
    "copy",
    "memory",
    "÷ fused's",
    "max error",
)
_LEFT = {0}  # columns aligned to the left


def format_tables(rows: Sequence[Row]) -> str:
    """All blocks, with the cases in the order of the rows."""
    blocks: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        key = (row["name"], row["mode"], row["threads"], row["allocator"])
        blocks.setdefault(key, []).append(row)
    return "\n\n".join(_block(block) for block in blocks.values())


def _block(rows: list[Row]) -> str:
    first = rows[0]
    fused = next((row for row in rows if row["backend"] == FUSED and "seconds" in row), None)
    lines = [_HEAD] + [_cells(row, fused) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEAD))]
    table = [_join(line, widths) for line in lines]
    table.insert(1, "-" * len(table[0]))
    for at, row in reversed(list(enumerate(rows))):
        if row["status"] != "ok":
            table[at + 2] = f"{row['backend'].ljust(widths[0])}  {row['status']}"
    return "\n".join([_title(first), *table])


def _title(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    title = f"{row['name']} {row['mode']}, {row['case']['dtype']}, {threads}"
    if row["padding"] > 1.005:
        title += f", padded/real tokens {row['padding']:.1f}"
    if row["allocator"] != "tuned":
        title += f", {row['allocator']} malloc"
    load = row.get("foreign_load", 0.0)
    if load > 0.05:
        title += f"  [others used {load:.1f} cores meanwhile]"
    return title


def _cells(row: Row, fused: Row | None) -> tuple[str, ...]:
    seconds = row.get("seconds")
    ratio = memory_ratio = None
    if fused is not None and row is not fused and seconds is not None:
        ratio = fused["ratios"].get(row["backend"])
        if row.get("extra_bytes") is not None and fused.get("extra_bytes"):
            memory_ratio = row["extra_bytes"] / fused["extra_bytes"]
    return (
        row["backend"],
        duration(seconds),
        "" if seconds is None else f"{100 * row['spread']:.0f}%",
        factor(ratio),
        "" if seconds is None else count(row["samples_per_s"]),
        number(row.get("gflops") or None),
        percent(row.get("of_peak") or None),
        number(row.get("gbs") or None),
        percent(row.get("of_copy") or None),
        size(row.get("extra_bytes")),
        factor(memory_ratio),
        "" if row.get("max_error") is None else f"{row['max_error']:.0e}",
    )


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i in _LEFT else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()


def duration(seconds: float | None) -> str:
    """Three digits and a unit: "1.23 ms"."""
    if seconds is None:
        return ""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1 or unit == "µs":
            return f"{digits(seconds * scale)} {unit}"
    raise AssertionError


def size(nbytes: float | None) -> str:
    """Bytes with a binary unit: "1.23 GiB"."""
    if nbytes is None:
        return ""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if nbytes >= scale or unit == "MiB":
            return f"{digits(nbytes / scale)} {unit}"
    raise AssertionError


def digits(value: float, places: int = 3) -> str:
    """``value`` with three significant digits and no exponent."""
    if value <= 0:
        return "0"
    return f"{value:.{max(places - 1 - math.floor(math.log10(value)), 0)}f}"


def number(value: float | None) -> str:
    return "" if value is None else digits(value)


def factor(value: float | None) -> str:
    """A ratio; losses show as below one."""
    if value is None:
        return ""
    return f"{digits(value, 2 if value < 9.95 else 3 if value >= 99.5 else 2)}x"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def count(value: float) -> str:
    """Thousands with k, millions with M."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{digits(value / scale)}{unit}"
    return digits(value)
