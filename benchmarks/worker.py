"""The measuring process: ``python -m benchmarks.worker time|memory JOB [CALLS]``.

Started by runner.py with the allocator's tunables in its environment. Lines on standard output have
one key: "progress", "rows" or "memory"; whatever libraries print goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from . import allocator, limits
from .cases import Job, Mode
from .memory import peak_of
from .timing import Timing, interleave
from .workload import Workload, held_bytes
from .workloads import make_workload

Emit = Callable[[str, Any], None]


def main(arguments: list[str]) -> int:
    """``time JOB`` or ``memory JOB [[BACKEND, MODE], ...]``, both as JSON."""
    task, job = arguments[0], Job.from_dict(json.loads(arguments[1]))
    # Nobody but us may write to the real standard output.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def emit(kind: str, value: Any) -> None:
        out.write(json.dumps({kind: value}) + "\n")

    if task == "time":
        time_job(job, emit)
    else:
        memory_job(job, json.loads(arguments[2]), emit)
    return 0


def time_job(job: Job, emit: Emit) -> None:
    """Checks and times a job: one row per (mode, threads, backend)."""
    emit("progress", f"{job.case.name}: making inputs")
    workload = make_workload(job.case)
    for mode in job.modes:
        for threads in job.threads:
            torch.set_num_threads(threads)
            before = limits.measure(threads)
            rows = _time_mode(workload, job, mode, threads, emit)
            after = limits.measure(threads)
            measured = replace(
                before,
                fma_gflops=max(before.fma_gflops, after.fma_gflops),
                bf16_gflops=max(before.bf16_gflops, after.bf16_gflops),
                copy_gbs=max(before.copy_gbs, after.copy_gbs),
            )
            emit("rows", [row | rates(row, workload, mode, measured) for row in rows])


def _time_mode(
    workload: Workload, job: Job, mode: Mode, threads: int, emit: Emit
) -> list[dict[str, Any]]:
    label = f"{job.case.name} {mode}, {threads} thread{'s' if threads > 1 else ''}"
    names = [name for name in workload.backends(mode) if not job.backends or name in job.backends]
    common = {
        "case": job.case.to_dict(),
        "name": job.case.name,
        "mode": mode,
        "threads": threads,
        "allocator": job.allocator,
        "tunables": allocator.describe(),
        "padding": workload.work(mode).padding,
    }
    rows: list[dict[str, Any]] = []
    variants, costs = {}, {}
    for name in names:
        emit("progress", f"{label}: checking {name}")
        row = common | {"backend": name, "status": "ok"}
        rows.append(row)
        reason = workload.unavailable(name, mode)
        if reason:
            row["status"] = f"unavailable: {reason}"
            continue
        try:
            variant = workload.variant(name, mode)
            start = time.perf_counter()
            result = variant(0)
            costs[name] = time.perf_counter() - start
            verdict = workload.check(name, mode, result)
            del result
        except Exception as error:  # a baseline that breaks is a row, not the end of the run
            text = str(error).strip().splitlines() or [""]
            row["status"] = f"failed: {type(error).__name__}: {text[0][:200]}"
            continue
        row |= {"error": verdict.error, "max_error": verdict.max_error}
        if verdict.failure:
            row["status"] = f"wrong: {verdict.failure}"
            continue
        variants[name] = variant

    measurement = interleave(
        variants,
        sets=workload.sets,
        seconds=job.seconds,
        min_rounds=job.min_rounds,
        known_costs=costs,
        progress=lambda text: emit("progress", f"{label}: {text}"),
    )
    timings = measurement.timings
    for row in rows:
        if row["backend"] in timings:
            row |= _timing_fields(row["backend"], timings)
            row["foreign_load"] = measurement.foreign_load
    return rows


def _timing_fields(name: str, timings: dict[str, Timing]) -> dict[str, Any]:
    """Median, spread, and how many times longer than this every other backend takes."""
    mine = timings[name]
    others = {other: t.ratio_to(mine) for other, t in timings.items() if other != name}
    return {
        "seconds": mine.median,
        "spread": mine.spread,
        "samples": len(mine.samples),
        "ratios": others,
    }


def rates(
    row: dict[str, Any], workload: Workload, mode: Mode, measured: limits.Limits
) -> dict[str, Any]:
    """Operations and bytes per second, beside the limits measured around the same minutes."""
    if "seconds" not in row:
        return {}
    work, seconds = workload.work(mode), row["seconds"]
    gflops, gbs = work.flops / seconds * 1e-9, work.bytes / seconds * 1e-9
    peak = measured.peak("float32" if row["backend"].endswith("float32") else workload.case.dtype)
    return {
        "samples_per_s": workload.case.batch / seconds,
        "gflops": gflops,
        "gbs": gbs,
        "of_peak": gflops / peak if peak else None,
        "of_fp32_peak": gflops / measured.fma_gflops if measured.fma_gflops else None,
        "of_copy": gbs / measured.copy_gbs if measured.copy_gbs else None,
        "limits": measured.to_dict(),
    }


def memory_job(job: Job, calls: list[tuple[str, Mode]], emit: Emit) -> None:
    """Peak memory of each (backend, mode), one after the other."""
    torch.set_num_threads(max(job.threads))
    workload = make_workload(job.case, sets=1)
    for backend, mode in calls:
        emit("progress", f"{job.case.name} {mode}: peak memory of {backend}")
        found = measure_memory(workload, backend, mode)
        emit("memory", {"backend": backend, "mode": mode} | found)


def measure_memory(workload: Workload, backend: str, mode: Mode) -> dict[str, Any]:
    """Peak bytes of one call beyond its inputs, and beyond its outputs and gradients too."""
    case = workload.case
    reason = workload.unavailable(backend, mode)
    if reason:
        return {"status": f"unavailable: {reason}"}
    # Code, thread pools and BLAS buffers load before the mark is set. A small call does it without
    # hiding what an op keeps from call to call; compiled code and optimizers need a whole one.
    warm = workload
    if not backend.startswith("compiled") and not case.stem.endswith("_training"):
        warm = make_workload(replace(case, batch=8, users=min(8, case.users)), sets=1)
    warm.variant(backend, mode)(0)
    call = workload.variant(backend, mode)
    result, peak = peak_of(lambda: call(0))
    held = held_bytes(result)
    return {"status": "ok", "peak": peak, "held": held, "extra": max(peak - held, 0)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
