"""Runs jobs in worker processes, keeps their rows, and reports."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import allocator
from .cases import Job, full_jobs, quick_jobs
from .environment import device_slug, environment, fingerprint
from .memory import can_measure_repeatedly
from .progress import Progress
from .report import report
from .store import Row, Store, key_of

_ROOT = Path(__file__).resolve().parent.parent


def default_folder() -> Path:
    """``benchmarks/results/<kind of machine>``."""
    return Path(__file__).resolve().parent / "results" / device_slug()


def run(
    quick: bool = False,
    *,
    jobs: Sequence[Job] | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    memory: bool = True,
    plots: bool = True,
    quiet: bool = False,
) -> list[Row]:
    """Measures, prints the table, and writes results.json, results.csv and plots.

    Rows that are in the folder already and were measured with the same code are kept: a run that
    was interrupted goes on where it stopped.

    Args:
        quick: fused against batched, ragged and reference at d = 32; under a minute.
        jobs: what to measure instead.
        out: folder of the results; by default ``benchmarks/results/<kind of machine>``, and for the
            quick run ``quick`` inside of it.
        fresh: measure again what is there already.
        memory: measure peak memory as well.
        plots: draw PNG files.
        quiet: no progress on standard error.

    Returns:
        The rows of the jobs, measured now or before.
    """
    jobs = list(jobs) if jobs is not None else quick_jobs() if quick else full_jobs()
    folder = Path(out) if out is not None else default_folder() / ("quick" if quick else "")
    store = Store(folder)
    store.environment = environment()
    progress = Progress(len(jobs), quiet=quiet)
    keys: list[str] = []
    try:
        for job in jobs:
            keys += _run_job(job if memory else replace(job, memory=False), store, fresh, progress)
    finally:
        progress.close()
    rows = [row for key in dict.fromkeys(keys) if (row := store.get(key)) is not None]
    report(rows, store, plots=plots)
    return rows


def _run_job(job: Job, store: Store, fresh: bool, progress: Progress) -> list[str]:
    """Measures what is missing of a job; the keys of all its rows."""
    progress.start(job.case.name)
    wanted = [
        (mode, threads)
        for mode in job.modes
        for threads in job.threads
        if fresh or not _complete(_rows_of(job, mode, threads, store), job)
    ]
    for mode in dict.fromkeys(mode for mode, _ in wanted):
        threads = tuple(t for m, t in wanted if m == mode)
        part = replace(job, modes=(mode,), threads=threads)
        for kind, value in _work(part, ["time"], progress):
            if kind == "rows":
                stamped = [_stamp(row) for row in value]
                store.put(_with_old_memory(stamped, store))
    if job.memory:
        _measure_memory(job, store, fresh, progress)
    progress.finish()
    return [
        key_of(row)
        for mode in job.modes
        for threads in job.threads
        for row in _rows_of(job, mode, threads, store)
    ]


def _rows_of(job: Job, mode: str, threads: int, store: Store) -> list[Row]:
    return [
        row
        for row in store.rows
        if (row["name"], row["mode"], row["threads"], row["allocator"])
        == (job.case.name, mode, threads, job.allocator)
        and (not job.backends or row["backend"] in job.backends)
    ]


def _complete(rows: list[Row], job: Job) -> bool:
    """Whether these rows are all that the job asks for, measured with today's code."""
    names = {row["backend"] for row in rows}
    current = all(row["fingerprint"] == fingerprint(job.case.stem) for row in rows)
    return bool(rows) and current and (not job.backends or names >= set(job.backends))


def _stamp(row: Row) -> Row:
    now = environment()
    code = fingerprint(row["case"]["stem"])
    return row | {"date": now["date"], "commit": now["commit"], "fingerprint": code}


def _with_old_memory(rows: list[Row], store: Store) -> list[Row]:
    """Memory stays with its row as long as the code is the same."""
    merged = []
    for row in rows:
        old = store.get(key_of(row)) or {}
        if old.get("fingerprint") == row["fingerprint"]:
            row = {k: old[k] for k in ("peak_bytes", "extra_bytes") if k in old} | row
        merged.append(row)
    return merged


def _measure_memory(job: Job, store: Store, fresh: bool, progress: Progress) -> None:
    """Memory of every backend and mode, on the most threads of the job; all its rows get it."""
    calls = [
        (row["backend"], mode)
        for mode in job.modes
        for row in _rows_of(job, mode, max(job.threads), store)
        if row["status"] == "ok" and (fresh or "extra_bytes" not in row)
    ]
    part = replace(job, allocator="returning")
    at_once = [calls] if can_measure_repeatedly() else [[call] for call in calls]
    for some in filter(None, at_once):
        for kind, value in _work(part, ["memory", json.dumps(some)], progress):
            if kind != "memory" or value["status"] != "ok":
                continue
            found = {"peak_bytes": value["peak"], "extra_bytes": value["extra"]}
            store.put(
                row | found
                for threads in job.threads
                for row in _rows_of(job, value["mode"], threads, store)
                if row["backend"] == value["backend"]
            )


def _work(job: Job, task: list[str], progress: Progress) -> Iterator[tuple[str, Any]]:
    """Runs a worker and yields what it says; a worker that dies costs its job, not the run."""
    name, *rest = task
    command = [sys.executable, "-m", f"{__package__}.worker", name, json.dumps(job.to_dict())]
    variables = allocator.environment(job.allocator)
    package_root = str(_ROOT.parent if __package__.count(".") else _ROOT)
    variables["PYTHONPATH"] = ":".join(filter(None, (package_root, variables.get("PYTHONPATH"))))
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(
            [*command, *rest], stdout=subprocess.PIPE, stderr=errors, text=True, env=variables
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                ((kind, value),) = json.loads(line).items()
                if kind == "progress":
                    progress.say(value)
                else:
                    yield kind, value
        except BaseException:
            process.kill()
            raise
        process.wait()
        errors.seek(0)
        complaint = errors.read().strip().splitlines()
    if process.returncode:
        what = f"stopped by signal {-process.returncode}"
        if process.returncode > 0:
            what = complaint[-1] if complaint else f"exit status {process.returncode}"
        progress.warn(f"{job.case.name} ({' '.join([name, *rest])}): {what}")
