"""Compiles what the later steps run, on every core at once; they find it in the caches.

A configuration of all kernels of ``conditional_interest`` takes 13 s on one core, and a compiled
baseline half a minute.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from typing import Any

import torch

from .graphs import OPS, run_once, synchronize

_Job = tuple[str, int, str]  # "op" or "plan", its number, dtype or variant
_BASELINES = ("compiled", "compiled_batched")


def compile_all(device: str, seconds: float) -> tuple[dict[str, Any], list[str]]:
    """Runs every kernel of the other steps once; ``{job: seconds}``, and what went wrong."""
    jobs = _jobs(device)
    # The rest is for starting this process, whose time counts, and for ending the others.
    deadline = time.monotonic() + 0.75 * seconds
    found: dict[str, Any] = {}
    failures = []
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(len(jobs), cores(), 16), _prepare) as pool:
        results = pool.imap_unordered(_run, [(device, job) for job in jobs])
        for _ in jobs:
            try:
                name, spent, error = results.next(timeout=max(0.1, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                break
            found[name] = round(spent, 1)
            if error:
                failures.append(f"{name}: {error}")
    # Nothing is wrong with a slow machine: what is missing is compiled when it is used.
    if len(found) < len(jobs):
        print(f"{len(jobs) - len(found)} of {len(jobs)} were not compiled in time")
    return found, failures


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _jobs(device: str) -> list[_Job]:
    from .benchmark import plans

    ops: list[_Job] = [
        ("op", i, dtype) for i in range(len(OPS)) for dtype in ("float32", "bfloat16")
    ]
    fused: list[_Job] = [("plan", i, "triton") for i in range(len(plans(device)))]
    if device == "cpu":
        return [*ops[:1], *fused[:1]]
    compiled = [i for i, plan in enumerate(plans(device)) if plan.compiled]
    # The longest first.
    return [*(("plan", i, name) for i in compiled for name in _BASELINES), *fused, *ops]


def _prepare() -> None:
    torch.set_num_threads(1)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    torch.set_float32_matmul_precision("highest")


def _run(arguments: tuple[str, _Job]) -> tuple[str, float, str]:
    """(name, seconds, what went wrong); baselines may go wrong."""
    from .benchmark import plans, work_of
    from .variants import Failed

    device, (kind, number, which) = arguments
    start = time.monotonic()
    if kind == "op":
        name = f"{OPS[number].name} {which}"
    else:
        plan = plans(device)[number]
        name = f"{plan.case.name} {plan.mode} {which}"
    error = ""
    try:
        if kind == "op":
            run_once(OPS[number], device, "triton", which)
        else:
            variants = work_of(plan, device).variants()
            if which in variants:
                variants[which]()(0)
                synchronize(device)
    except Failed:
        pass
    except Exception as problem:
        traceback.print_exc()
        if which not in _BASELINES:
            error = f"{type(problem).__name__}: {str(problem)[:200]}"
    return name, time.monotonic() - start, error
