"""What the steps do. Each entry returns ``(data, failures)`` or raises :class:`~.steps.Skipped`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from ..checkout import ROOT
from .steps import Skipped

Answer = tuple[dict[str, Any], list[str]]


def build(device: str, seconds: float, answer: Path) -> Answer:
    """The extension in place. One instruction set will do: the CPU is not what is measured."""
    if device == "cpu":
        raise Skipped("uses what is built already")
    isas = os.environ.get("MTLFAST_ISAS", "portable")
    environment = {**os.environ, "MTLFAST_CUDA": "on", "MTLFAST_ISAS": isas}
    command = [sys.executable, "csrc/native_build.py", "inplace"]
    done = subprocess.run(command, cwd=ROOT, env=environment)
    return {"isas": isas}, [] if done.returncode == 0 else ["the build failed"]


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


def correctness(device: str, seconds: float, answer: Path) -> Answer:
    """The tests of the GPU kernels, on the GPU."""
    results = answer.with_name("tests.xml")
    command = [sys.executable, "-m", "pytest", "tests/kernels", "-q", "-p", "no:cacheprovider"]
    command += ["--ignore=tests/kernels/test_aot.py", f"--junitxml={results}"]
    command += ["--ignore-glob=*/test_cuda_emulation*.py"]
    if device == "cpu":
        command += ["-k", "test_explain or test_nothing_to_do or test_mixed_dtypes"]
    done = subprocess.run(command, cwd=ROOT)
    counts = {}
    if results.is_file():
        suite = ElementTree.parse(results).getroot().find("testsuite")
        assert suite is not None
        counts = {k: int(suite.get(k, 0)) for k in ("tests", "failures", "errors", "skipped")}
    good = done.returncode == 0 and counts.get("tests", 0) > counts.get("skipped", 0)
    return counts, [] if good else [f"pytest ended with {done.returncode}: {counts}"]


def small(device: str, seconds: float, answer: Path) -> Answer:
    """Every op once, forward and backward, on small awkward inputs: for compute-sanitizer."""
    from .graphs import OPS, run_once

    done = {}
    for op in OPS:
        for backend in op.backends(device):
            for dtype in ("float32", "bfloat16"):
                run_once(op, device, backend, dtype)
                done[f"{op.name}/{backend}/{dtype}"] = "ran"
    return done, [] if done else ["no op has a GPU backend"]


def graphs(device: str, seconds: float, answer: Path) -> Answer:
    from .graphs import check

    return check(device)


def benchmark(device: str, seconds: float, answer: Path) -> Answer:
    from .benchmark import run

    return run(device, seconds)
