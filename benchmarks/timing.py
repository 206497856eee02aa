"""Interleaved timing: every variant runs in every round, so that drift hits all of them alike."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

Variant = Callable[[int], object]
"""Does one unit of work on the input set of the given number."""

_LEAST_SAMPLE = 0.01  # seconds; shorter calls are repeated within a sample
_MOST_ROUNDS = 41
_ENOUGH = 2.5  # times the least number of rounds: then nobody has to sit out


@dataclass
class Timing:
    """Samples of one variant, in seconds per call; ``rounds[i]`` is the round of ``samples[i]``."""

    samples: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Half the interquartile range over the median."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return (high - low) / 2 / self.median

    def ratio_to(self, other: Timing) -> float:
        """Median over the rounds both ran in of this time divided by the other's."""
        theirs = dict(zip(other.rounds, other.samples, strict=True))
        pairs = zip(self.rounds, self.samples, strict=True)
        return statistics.median(mine / theirs[r] for r, mine in pairs if r in theirs)


@dataclass(frozen=True)
class Measurement:
    """The outcome of :func:`interleave`.

    Attributes:
        timings: per variant.
        foreign_load: CPU seconds other processes used per second of measuring, in cores.
    """

    timings: dict[str, Timing]
    foreign_load: float


def interleave(
    variants: Mapping[str, Variant],
    *,
    sets: int,
    seconds: float,
    min_rounds: int = 3,
    known_costs: Mapping[str, float] | None = None,
    progress: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Measurement:
    """Times all variants in turn, round after round, there and back (A B C, C B A, ...).

    A call on input set ``i`` is followed by one on ``i + 1``: sets rotate through memory. Every
    variant runs once untimed, then once to see how long it takes; one that is known to take more
    than a second is trusted to be warm. Rounds go on until ``seconds``
    are used; variants that are slow sit out most rounds, but none has fewer than ``min_rounds``
    samples and every sample of theirs is in a round where all fast ones run too.

    Args:
        sets: number of input sets.
        seconds: aim for this much time in total.
        known_costs: seconds that an earlier call of a variant took.
        clock: replaced in tests.
    """
    cost: dict[str, float] = {}
    for name, variant in variants.items():
        cost[name] = (known_costs or {}).get(name, 0.0)
        if cost[name] > 1.0:
            continue
        progress(f"warming up {name}")
        variant(0)
        start = clock()
        variant(1 % sets)
        cost[name] = max(clock() - start, 1e-7)
    calls = {name: max(1, min(1000, int(_LEAST_SAMPLE / cost[name]))) for name in variants}
    round_cost = {name: cost[name] * calls[name] for name in variants}
    rounds, every = _plan(round_cost, seconds, min_rounds)

    timings = {name: Timing() for name in variants}
    turn = dict.fromkeys(variants, 0)
    collecting = gc.isenabled()
    gc.disable()
    load = ForeignLoad()
    try:
        for r in range(rounds):
            progress(f"round {r + 1} of {rounds}")
            order = [name for name in variants if r % every[name] == 0]
            for name in order if r % 2 == 0 else reversed(order):
                variant, n, first = variants[name], calls[name], turn[name]
                start = clock()
                for i in range(first, first + n):
                    variant(i % sets)
                timings[name].samples.append((clock() - start) / n)
                timings[name].rounds.append(r)
                turn[name] = first + n
    finally:
        if collecting:
            gc.enable()
    return Measurement(timings, load.since_start())


def _plan(cost: Mapping[str, float], seconds: float, min_rounds: int) -> tuple[int, dict[str, int]]:
    """Rounds, and how many rounds apart each variant runs.

    All variants run in every round if that makes enough rounds. Otherwise the costliest run in
    ``min_rounds`` of them only, and the time they leave goes to the others.
    """
    slow: set[str] = set()
    rounds = float(min_rounds)
    for name in sorted(cost, key=lambda name: -cost[name]):
        left = seconds - min_rounds * sum(cost[other] for other in slow)
        rounds = left / sum(c for other, c in cost.items() if other not in slow)
        if rounds >= _ENOUGH * min_rounds:
            break
        slow.add(name)
    if len(slow) == len(cost):
        return min_rounds, dict.fromkeys(cost, 1)
    rounds = int(min(rounds, _MOST_ROUNDS))
    apart = (rounds - 1) // max(min_rounds - 1, 1)
    return rounds, {name: apart if name in slow else 1 for name in cost}


class ForeignLoad:
    """CPU time that other processes use while this one measures: the reason to distrust a row."""

    def __init__(self) -> None:
        self._start = self._now()

    def since_start(self) -> float:
        """Cores kept busy by others on average; 0.0 where the system does not tell."""
        (busy, own, wall), (busy0, own0, wall0) = self._now(), self._start
        if busy is None or busy0 is None or wall <= wall0:
            return 0.0
        return max((busy - busy0 - (own - own0)) / (wall - wall0), 0.0)

    @staticmethod
    def _now() -> tuple[float | None, float, float]:
        try:
            cpu = Path("/proc/stat").read_text().split("\n", 1)[0].split()
            fields = [int(value) for value in cpu[1:9]]
            busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            return None, time.process_time(), time.monotonic()
        return busy, time.process_time(), time.monotonic()
