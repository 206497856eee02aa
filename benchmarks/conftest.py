"""Tells what the timings of the pytest-benchmark suites are worth."""

from __future__ import annotations

from . import allocator
from .suite import FULL


def pytest_report_header() -> list[str]:
    lines = [f"allocator: {allocator.describe()}"]
    if not allocator.is_tuned():
        settings = allocator.environment("tuned").get("GLIBC_TUNABLES")
        if settings:
            lines.append(
                "  large tensors are returned and re-faulted, which slows the baselines; start "
                f"pytest with GLIBC_TUNABLES={settings}"
            )
    if not FULL:
        lines.append("cases: the quick ones; MTLFAST_BENCH_FULL=1 for all")
    return lines
