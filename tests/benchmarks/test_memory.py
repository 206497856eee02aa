"""Peak memory and machine limits."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import limits
from benchmarks.cases import training_case
from benchmarks.memory import peak_of
from benchmarks.worker import measure_memory
from benchmarks.workloads import make_workload

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MIB = 1 << 20


def test_the_peak_counts_what_is_freed_again() -> None:
    def call() -> torch.Tensor:
        scratch = torch.ones(48 * MIB, dtype=torch.uint8)
        return scratch[: 8 * MIB].clone()

    result, peak = peak_of(call)
    assert result.nbytes == 8 * MIB
    assert 50 * MIB <= peak <= 70 * MIB


def test_an_earlier_peak_does_not_hide_a_later_one() -> None:
    peak_of(lambda: torch.ones(64 * MIB, dtype=torch.uint8).max())
    _, peak = peak_of(lambda: torch.ones(16 * MIB, dtype=torch.uint8).max())
    assert 14 * MIB <= peak <= 32 * MIB


def test_memory_of_a_baseline_grows_with_its_batch() -> None:
    found = []
    for batch in (32, 256):
        case = training_case("tenrec", 16, batch=batch, users=batch)
        workload = make_workload(case, sets=1)
        found.append(measure_memory(workload, "batched", "training"))
    small, large = found
    assert (small["status"], large["status"]) == ("ok", "ok")
    assert large["peak"] == large["held"] + large["extra"]
    assert large["extra"] > 4 * small["extra"] > 0


def test_limits_are_measured_or_say_why_not() -> None:
    found = limits.measure(1, seconds=0.02)
    if found.source != "measured":
        pytest.skip(found.source)
    assert 0.1 < found.fma_gflops < 1000
    assert found.peak("float32") == found.fma_gflops
    assert found.peak("bfloat16") >= found.fma_gflops or found.bf16_gflops > 0
    assert 0.1 < found.copy_gbs < 2000


def test_no_compiler_is_no_disaster(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    found = limits.measure(1, seconds=0.01)
    assert "no C++ compiler" in found.source
    assert found.fma_gflops == 0.0
