"""What the steps do. Each entry returns ``(data, failures)`` or raises :class:`~.steps.Skipped`."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..checkout import ROOT
from .steps import Skipped, toolkit, write_answer

Answer = tuple[dict[str, Any], list[str]]


def _keep(answer: Path, data: dict[str, Any], failures: list[str]) -> None:
    """What is known before the step has ended: it may run out of time."""
    write_answer(answer, {"data": data, "failures": failures})


def build(device: str, seconds: float, answer: Path) -> Answer:
    """The extension in place. One instruction set will do: the CPU is not what is measured."""
    if device == "cpu" and list((ROOT / "mtlfast" / "lib").glob("libmtlfast_cpu.*")):
        raise Skipped("uses what is built already")
    environment = {**os.environ, "MTLFAST_ISAS": os.environ.get("MTLFAST_ISAS", "portable")}
    if nvcc := toolkit("nvcc"):
        environment["PATH"] = os.pathsep.join([environment["PATH"], str(Path(nvcc).parent)])
    data, failures = {"isas": environment["MTLFAST_ISAS"], "nvcc": nvcc or ""}, []
    wanted = ("auto",) if device == "cpu" else ("on", "off")
    for cuda in wanted:
        environment["MTLFAST_CUDA"] = cuda
        command = [sys.executable, "csrc/native_build.py", "inplace"]
        if subprocess.run(command, cwd=ROOT, env=environment).returncode == 0:
            break
        # The Triton kernels need no CUDA C++: everything else is checked all the same.
        failures.append(f"the build with MTLFAST_CUDA={cuda} failed")
    return data, failures


def environment(device: str, seconds: float, answer: Path) -> Answer:
    import mtlfast
    from mtlfast import _extension

    report = mtlfast.env()
    print(report)
    failures = []
    if device == "cuda" and not report.cuda["available"]:
        failures.append("torch sees no GPU")
    if device == "cuda" and not _extension.cuda_ops_available():
        failures.append(f"no CUDA ops: {_extension.why_cuda_unavailable()}")
    return report.as_dict(), failures


def compile_kernels(device: str, seconds: float, answer: Path) -> Answer:
    from .compile import compile_all

    return compile_all(device, seconds)


def correctness(device: str, seconds: float, answer: Path) -> Answer:
    """The tests of the GPU kernels, on the GPU; where pytest-xdist is installed, on every core."""
    from . import deadline
    from .compile import cores

    results = answer.with_name("tests.xml")
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "--tb=short"]
    command += ["-p", "no:cacheprovider", "-p", "benchmarks.gpu.deadline"]
    command += ["--ignore=tests/kernels/test_aot.py", f"--junitxml={results}"]
    command += ["--ignore-glob=*/test_cuda_emulation*.py"]
    if device == "cpu":
        command += ["-k", "test_explain or test_nothing_to_do or test_mixed_dtypes"]
    # Most of the time goes into compiling, which is the work of one core.
    processes = min(cores(), 16 if device == "cuda" else 2)
    if processes > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(processes), "--maxschedchunk=1"]
    # A test that has begun may compile for a while, and reports have to be written.
    last_start = time.time() + seconds - min(40.0, seconds / 3)
    environment = {**os.environ, deadline.VARIABLE: str(last_start)}
    done = subprocess.run(command, cwd=ROOT, env=environment)
    return read_results(results, done.returncode)


def read_results(results: Path, code: int) -> Answer:
    """Counts and failures of a JUnit file, as far as pytest got."""
    from .deadline import NO_TIME

    if not results.is_file():
        return {}, [f"pytest ended with {code} and wrote no results"]
    cases = list(ElementTree.parse(results).getroot().iter("testcase"))
    by_message: dict[str, list[str]] = {}
    skipped = late = 0
    for case in cases:
        for child in case:
            message = child.get("message", "")
            if child.tag == "skipped":
                skipped += 1
                late += NO_TIME in message
            elif child.tag in ("failure", "error"):
                line = message.partition("\n")[0][:200]
                by_message.setdefault(line, []).append(case.get("name", ""))
    counts: dict[str, Any] = {"tests": len(cases), "skipped": skipped, "no_time": late}
    counts["failures"] = sum(len(names) for names in by_message.values())
    # What is wrong with a kernel fails many tests with one message.
    counts["failed"] = {line: names[:20] for line, names in by_message.items()}
    counts["note"] = f"{late} of {len(cases)} tests had no time left" if late else ""
    good = code == 0 and len(cases) > skipped
    return counts, [] if good else [f"pytest ended with {code}: {counts}"]


def small(device: str, seconds: float, answer: Path) -> Answer:
    """Every op once, forward and backward, on small awkward inputs: for compute-sanitizer."""
    from .graphs import OPS, run_once

    done: dict[str, Any] = {}
    for op in OPS:
        for backend in op.backends(device):
            for dtype in ("float32", "bfloat16"):
                run_once(op, device, backend, dtype)
                done[f"{op.name}/{backend}/{dtype}"] = "ran"
                _keep(answer, done, [])
    return done, [] if done else ["no op has a GPU backend"]


def graphs(device: str, seconds: float, answer: Path) -> Answer:
    from .graphs import check

    return check(device, functools.partial(_keep, answer))


def benchmark(device: str, seconds: float, answer: Path) -> Answer:
    from .benchmark import run

    return run(device, seconds, functools.partial(_keep, answer))
