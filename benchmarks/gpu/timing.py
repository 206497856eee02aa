"""Clocks for a device that works while the host goes on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from .graphs import synchronize


def clock_of(device: str) -> Callable[[], float]:
    """A clock that waits for the device before it looks."""

    def clock() -> float:
        synchronize(device)
        return time.perf_counter()

    return clock


def seconds_per_call(call: Callable[[], Any], device: str, rounds: int = 5) -> float:
    """Median over rounds of about 20 ms each."""
    clock = clock_of(device)
    for _ in range(3):
        call()
    start = clock()
    call()
    calls = max(1, min(1000, int(0.02 / max(clock() - start, 1e-7))))
    samples = []
    for _ in range(rounds):
        start = clock()
        for _ in range(calls):
            call()
        samples.append((clock() - start) / calls)
    return statistics.median(samples)
