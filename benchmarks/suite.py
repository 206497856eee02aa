"""What the pytest-benchmark suites share; run one with ``pytest benchmarks/bench_<stem>.py``.

These time one backend after the other, which is handy while tuning one of them (``-k ragged``,
``--benchmark-compare``). Ratios to publish come from ``python -m benchmarks``, which interleaves.
"""

from __future__ import annotations

import functools
import itertools
import os
from typing import Any

import pytest

from .cases import Case, Job, Mode, full_jobs, quick_jobs
from .workload import Workload
from .workloads import make_workload

FULL = os.environ.get("MTLFAST_BENCH_FULL", "0") not in ("", "0")


def cases_of(stem: str, mode: Mode) -> list[Any]:
    """The cases of a stem: those of the quick run, or with MTLFAST_BENCH_FULL=1 all."""
    jobs: list[Job] = full_jobs() if FULL else quick_jobs()
    found = [job.case for job in jobs if job.case.stem == stem and mode in job.modes]
    if not found:  # the quick run leaves this stem out
        jobs = [job for job in full_jobs() if job.case.stem == stem and mode in job.modes]
        found = [job.case for job in jobs[:2]]
    return [pytest.param(case, id=case.name) for case in dict.fromkeys(found)]


@functools.lru_cache(maxsize=1)
def _workload(case: Case) -> Workload:
    return make_workload(case)


def measure(benchmark: Any, case: Case, mode: Mode, backend: str) -> None:
    """Checks a backend, then times it on rotating inputs; skips what cannot run."""
    workload = _workload(case)
    if backend not in workload.backends(mode):
        pytest.skip(f"no baseline for {mode}")
    reason = workload.unavailable(backend, mode)
    if reason:
        pytest.skip(reason)
    variant = workload.variant(backend, mode)
    verdict = workload.check(backend, mode, variant(0))
    if verdict.failure:
        pytest.fail(verdict.failure)
    work = workload.work(mode)
    benchmark.group = f"{case.name} {mode}"
    benchmark.extra_info.update(
        case=case.to_dict(),
        backend=backend,
        flops=work.flops,
        bytes=work.bytes,
        padding=work.padding,
        error=verdict.error,
        max_error=verdict.max_error,
    )
    turns = itertools.cycle(range(workload.sets))
    benchmark(lambda: variant(next(turns)))
