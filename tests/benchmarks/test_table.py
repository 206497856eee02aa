"""The table on the terminal."""

from __future__ import annotations

import pytest

from benchmarks.report import losses
from benchmarks.table import digits, duration, factor, format_tables, size

from .test_store import make_row

FUSED = make_row(
    seconds=0.0123,
    spread=0.02,
    samples_per_s=166_500.0,
    ratios={"ragged": 12.34, "batched": 0.5},
    gflops=150.0,
    of_peak=0.7,
    gbs=2.0,
    of_copy=0.05,
    extra_bytes=20 << 20,
    max_error=4e-7,
)
RAGGED = make_row(
    "ragged",
    seconds=0.15,
    spread=0.01,
    samples_per_s=13_650.0,
    ratios={"fused": 0.081},
    extra_bytes=1 << 30,
    max_error=3e-7,
)
WRONG = make_row("batched", status="wrong: out: error 1e-1 where 1e-6 is allowed", error=0.1)


def test_a_block_per_case_with_aligned_columns() -> None:
    text = format_tables([FUSED, RAGGED, FUSED | {"threads": 1}])
    first, second = text.split("\n\n")
    title, head, rule, fused, ragged = first.splitlines()
    assert title.startswith("conditional_interest/tenrec/d32/B2048 forward, float32, 2 threads")
    assert "padded/real tokens 5.0" in title
    assert "12.3 ms" in fused
    assert "12x" in ragged
    assert "51x" in ragged  # memory
    for line in (fused, ragged):  # right-aligned under the head
        assert line.index("s  ") <= head.index("time") + len("time")
    assert len(rule) >= len(fused)
    assert "1 thread," in second or "1 thread" in second.splitlines()[0]


def test_what_failed_shows_its_reason_and_no_time() -> None:
    line = format_tables([FUSED, WRONG]).splitlines()[-1]
    assert line.split()[:2] == ["batched", "wrong:"]
    assert " ms" not in line


def test_busy_neighbours_are_named() -> None:
    assert "others used 1.3 cores" in format_tables([FUSED | {"foreign_load": 1.3}])


def test_losses_are_listed() -> None:
    assert losses([FUSED, RAGGED]) == [
        "conditional_interest/tenrec/d32/B2048 forward, 2 threads: 0.50x against batched"
    ]


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (duration(1.234), "1.23 s"),
        (duration(0.0999), "99.9 ms"),
        (duration(4.2e-6), "4.20 µs"),
        (size(3 << 30), "3.00 GiB"),
        (size(1234), "0.00118 MiB"),
        (size(0), "0 MiB"),
        (factor(0.512), "0.51x"),
        (factor(12.34), "12x"),
        (factor(123.4), "123x"),
        (digits(1234.5), "1234"),
    ],
)
def test_numbers(found: str, text: str) -> None:
    assert found == text
