"""The steps, their budgets, and how one is run: a process of its own, killed when time is up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkout import ROOT


@dataclass(frozen=True)
class Step:
    """One part of the check.

    Attributes:
        name: as in ``--only`` and in the report.
        seconds: its time budget.
        what: for the report.
        prefix: a command in front of Python, such as compute-sanitizer.
        entry: the function of ``benchmarks.gpu.entries`` that runs in the process.
        environment: added to that of the process.
    """

    name: str
    seconds: float
    what: str
    entry: str
    prefix: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


# Without torch's caching allocator a read past the end of a tensor leaves its allocation.
_UNCACHED = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def toolkit(program: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, in CUDA_HOME, beside nvcc, or where it usually is."""
    folders = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    if nvcc := shutil.which("nvcc"):
        folders.append(Path(nvcc).resolve().parent)
    folders.append(Path("/usr/local/cuda/bin"))
    return shutil.which(program) or shutil.which(
        program, path=os.pathsep.join(str(folder) for folder in folders)
    )


def _sanitizer(tool: str) -> tuple[str, ...]:
    program = toolkit("compute-sanitizer") or "compute-sanitizer"
    # torch and Triton ask drivers for what these may not have: a refusal is no error of a kernel.
    return (program, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9")


# What compute-sanitizer prints where the device is one that it cannot look into.
_NO_SANITIZER = "Device not supported"


STEPS: tuple[Step, ...] = (
    Step("build", 300, "compiles the extension in place with nvcc", "build"),
    Step("environment", 40, "what is there", "environment"),
    Step("compile", 80, "compiles what the next steps run, on every core", "compile_kernels"),
    Step(
        "correctness",
        120,
        "every op and dtype against float64, opcheck",
        "correctness",
        # Without it cuBLAS refuses to be deterministic, which tests ask for.
        environment={"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    ),
    Step("graphs", 90, "CUDA graphs, torch.compile, torch.export", "graphs"),
    Step("benchmark", 220, "speed against baselines and limits", "benchmark"),
    Step(
        "memcheck",
        80,
        "compute-sanitizer: no access out of bounds",
        "small",
        _sanitizer("memcheck"),
        _UNCACHED,
    ),
    Step(
        "racecheck",
        80,
        "compute-sanitizer: no race in shared memory",
        "small",
        _sanitizer("racecheck"),
    ),
)


@dataclass
class Outcome:
    """What became of a step. ``data`` is what it measured or counted."""

    step: str
    status: str  # passed, failed, timed out, skipped
    seconds: float = 0.0
    reason: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    log: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def good(self) -> bool:
        return self.status in ("passed", "skipped")


def write_answer(answer: Path, content: dict[str, Any]) -> None:
    """What the process of a step tells; all or nothing, for it may be killed at any time."""
    temporary = answer.with_suffix(".new")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(answer)


class Skipped(Exception):
    """Raised by an entry whose step cannot run here; the text says why."""


def run_step(step: Step, options: Sequence[str], seconds: float, interpret: bool) -> Outcome:
    """Runs one step for at most ``seconds``."""
    if step.prefix and (interpret or shutil.which(step.prefix[0]) is None):
        reason = "needs a GPU" if interpret else f"{step.prefix[0]} is not installed"
        return Outcome(step.name, "skipped", reason=reason)
    with tempfile.TemporaryDirectory() as folder:
        answer, log = Path(folder) / "answer.json", Path(folder) / "log"
        command = [*step.prefix, sys.executable, "-m", "benchmarks.gpu", *options]
        command += ["--entry", step.entry, "--answer", str(answer), "--seconds", f"{seconds:.1f}"]
        start = time.monotonic()
        code = _run(command, environment_of(step, interpret), log, seconds)
        spent = time.monotonic() - start
        found = json.loads(answer.read_text()) if answer.is_file() else {}
        text = log.read_text(errors="replace")[-20_000:]
    outcome = Outcome(step.name, "passed", spent, data=found.get("data", {}), log=text)
    if found.get("skipped"):
        outcome.status, outcome.reason = "skipped", found["skipped"]
    elif code is None:
        outcome.status = "timed out"
        outcome.reason = "; ".join([f"after {seconds:.0f} s", *found.get("failures", [])])
    elif step.prefix and code != 0 and _NO_SANITIZER in text:
        outcome.status, outcome.reason = "skipped", f"{step.prefix[0]}: {_NO_SANITIZER}"
    elif code != 0 or found.get("failures"):
        outcome.status = "failed"
        outcome.reason = "; ".join(found.get("failures", [])) or f"exit status {code}"
    else:
        outcome.reason = found.get("data", {}).get("note", "")
    return outcome


def environment_of(step: Step, interpret: bool) -> dict[str, str]:
    environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    environment["TRITON_INTERPRET"] = "1" if interpret else "0"
    return environment


def _run(
    command: Sequence[str], environment: dict[str, str], log: Path, seconds: float
) -> int | None:
    """The exit status; None where the process, and all it started, had to be killed."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
