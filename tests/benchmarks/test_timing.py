"""Interleaving, with a clock that the variants themselves advance."""

from __future__ import annotations

import pytest

from benchmarks.timing import Timing, interleave


class Clock:
    """Advances by what each call costs; remembers who ran on which input set."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, int]] = []

    def __call__(self) -> float:
        return self.now

    def variant(self, name: str, cost: float):
        def run(i: int) -> None:
            self.now += cost
            self.calls.append((name, i))

        return run


def _measure(costs: dict[str, float], seconds: float, **options):
    clock = Clock()
    variants = {name: clock.variant(name, cost) for name, cost in costs.items()}
    result = interleave(variants, sets=3, seconds=seconds, clock=clock, **options)
    return clock, result.timings


def test_there_and_back_with_rotating_inputs() -> None:
    clock, timings = _measure({"a": 0.1, "b": 0.2}, seconds=3.0)
    assert [name for name, _ in clock.calls[4:10]] == ["a", "b", "b", "a", "a", "b"]
    for name in ("a", "b"):
        sets = [i for who, i in clock.calls[4:] if who == name]
        assert sets[:4] == [0, 1, 2, 0]
        assert timings[name].median == pytest.approx({"a": 0.1, "b": 0.2}[name])
    assert timings["b"].ratio_to(timings["a"]) == pytest.approx(2.0)


def test_short_calls_are_repeated_within_a_sample() -> None:
    clock, timings = _measure({"a": 0.001}, seconds=0.1)
    assert len(clock.calls) >= 10 * len(timings["a"].samples)
    assert timings["a"].median == pytest.approx(0.001)


def test_slow_variants_sit_out_but_share_rounds_with_fast_ones() -> None:
    _, timings = _measure({"fast": 0.02, "slow": 5.0}, seconds=20.0, min_rounds=3)
    assert 3 <= len(timings["slow"].samples) <= 4
    assert len(timings["fast"].samples) > 20
    assert set(timings["slow"].rounds) <= set(timings["fast"].rounds)
    assert timings["slow"].ratio_to(timings["fast"]) == pytest.approx(250.0)


def test_no_fewer_than_the_least_rounds_when_time_is_short() -> None:
    _, timings = _measure({"a": 9.0, "b": 9.0}, seconds=1.0, min_rounds=3)
    assert [len(timing.samples) for timing in timings.values()] == [3, 3]


def test_known_slow_variants_are_not_run_to_find_out() -> None:
    clock, _ = _measure({"a": 9.0}, seconds=1.0, min_rounds=3, known_costs={"a": 9.0})
    assert len(clock.calls) == 3


def test_a_drift_that_hits_both_cancels_in_the_ratio() -> None:
    mine = Timing([1.0, 2.0, 4.0], [0, 1, 2])
    other = Timing([0.5, 1.0, 2.0], [0, 1, 2])
    assert mine.ratio_to(other) == 2.0


def test_nothing_to_time() -> None:
    assert interleave({}, sets=1, seconds=1.0).timings == {}
