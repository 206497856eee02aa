"""Compiles every shipped configuration of every Triton kernel, without a GPU, and reads its needs.

``python -m benchmarks.aot`` compiles for compute capabilities 8.0, 9.0 and 10.0, prints registers,
spills, local and shared memory of each, and writes the table to ``benchmarks/results/aot``. It
fails where a configuration spills, needs local memory, or needs more shared memory than a block of
the device may have. Nothing here says how fast a kernel is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import inspect
import io
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from .checkout import ROOT

RESULTS = ROOT / "benchmarks" / "results" / "aot"
CACHE = ROOT / "build" / "aot"

# Shared memory that one block may have (CUDA C++ Programming Guide, table of compute capabilities).
SHARED_LIMIT = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}


@dataclass(frozen=True)
class Resources:
    """What ptxas and Triton say of one compiled kernel; bytes are per block or per thread."""

    kernel: str
    case: str
    capability: int
    key: str  # hash of source and configuration: tells whether a stored row is still true
    registers: int
    spill_bytes: int  # stores and loads
    local_bytes: int  # stack frame of a thread
    shared_bytes: int
    num_warps: int

    def problems(self) -> list[str]:
        """Why this configuration must not be shipped; nothing where it may."""
        found = []
        if self.spill_bytes:
            found.append(f"spills {self.spill_bytes} bytes")
        if self.local_bytes:
            found.append(f"uses {self.local_bytes} bytes of local memory per thread")
        limit = SHARED_LIMIT[self.capability]
        if self.shared_bytes > limit:
            found.append(f"needs {self.shared_bytes} bytes of shared memory of {limit}")
        return found

    def __str__(self) -> str:
        return f"{self.kernel}: {self.case} (sm_{self.capability})"


@dataclass(frozen=True)
class Task:
    """Something to compile, named so that a worker process can find it again."""

    module: str
    case: str
    capability: int
    key: str


def modules() -> list[str]:
    """Names of the kernel files that ship configurations."""
    folder = ROOT / "kernels"
    files = {file.stem: file for file in folder.glob("*.py")}
    files |= {file.parent.name: file for file in folder.glob("*/__init__.py")}
    shipping = (name for name, file in files.items() if "\ndef aot_cases(" in file.read_text())
    return sorted(shipping)


def tasks(capabilities: Iterable[int] = SHARED_LIMIT, pattern: str = "") -> list[Task]:
    """Every shipped configuration on every architecture; ``pattern`` must be part of its name."""
    found = []
    for module in modules():
        for capability in capabilities:
            for case in _cases(module, capability):
                if pattern in f"{module}/{case.name}":
                    found.append(Task(module, case.name, capability, _key(case, capability)))
    names = [(task.module, task.case, task.capability) for task in found]
    if len(set(names)) != len(names):
        raise ValueError(f"kernels: expected unique case names, found {sorted(names)}")
    return found


def compile_all(wanted: list[Task], jobs: int = 2, seconds: float | None = None) -> list[Resources]:
    """Compiles in ``jobs`` processes; what the cache knows is not compiled again.

    Args:
        seconds: start nothing new after this time; the result then lacks what was not started.
    """
    done, left = [], []
    for task in wanted:
        row = _cached(task)
        (left if row is None else done).append(task if row is None else row)
    if not left:
        return done
    deadline = None if seconds is None else time.monotonic() + seconds
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_no_interpreter) as pool:
        futures = [pool.submit(_compile, task, deadline) for task in left]
        done += [row for future in as_completed(futures) if (row := future.result()) is not None]
    return done


def verify(jobs: int, seconds: float) -> list[str]:
    """What is wrong with the committed table, or with a configuration: nothing where all is well.

    Every shipped configuration must have a row made from its present source. As many as fit into
    ``seconds`` are compiled anew and must need what the row says.
    """
    wanted = tasks()
    stored = {(r.kernel, r.case, r.capability): r for r in load()}
    names = {(t.module, t.case, t.capability): t for t in wanted}
    wrong = [
        f"{row}: in the table, but no longer shipped" for n, row in stored.items() if n not in names
    ]
    for name, task in names.items():
        if name not in stored or stored[name].key != task.key:
            wrong.append(f"{'/'.join(map(str, name))}: not in the table as it is now")
    if wrong:
        return [*wrong, "run: python -m benchmarks.aot"]
    # The order is arbitrary but always the same, so that no kind of kernel is always left out.
    compiled = compile_all(sorted(wanted, key=lambda t: t.key), jobs, seconds)
    print(f"compiled {len(compiled)} of {len(wanted)} configurations")
    for row in compiled:
        wrong += [f"{row}: {problem}" for problem in row.problems()]
        if made_with() == _triton_version() and row != stored[row.kernel, row.case, row.capability]:
            wrong.append(f"{row}: needs other resources than the table says")
    for row in stored.values():
        wrong += [f"{row}: {problem}" for problem in row.problems()]
    return wrong


def table(rows: Iterable[Resources]) -> str:
    """A Markdown table."""
    lines = [
        "| kernel | configuration | sm | registers | spilled | local | shared | warps |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.kernel} | {r.case} | {r.capability} | {r.registers} | {r.spill_bytes} | "
        f"{r.local_bytes} | {r.shared_bytes} | {r.num_warps} |"
        for r in _sorted(rows)
    ]
    return "\n".join(lines) + "\n"


def load() -> list[Resources]:
    """The committed table."""
    stored = json.loads((RESULTS / "table.json").read_text(encoding="utf-8"))
    return [Resources(**row) for row in stored["rows"]]


def made_with() -> str:
    """The version of Triton that made the committed table."""
    return str(json.loads((RESULTS / "table.json").read_text(encoding="utf-8"))["triton"])


def _triton_version() -> str:
    import triton

    return str(triton.__version__)


def save(rows: Iterable[Resources]) -> None:
    """Writes ``table.json`` and ``table.md``."""
    version = _triton_version()
    rows = _sorted(rows)
    RESULTS.mkdir(parents=True, exist_ok=True)
    body = ",\n".join("  " + json.dumps(asdict(row)) for row in rows)
    text = f'{{"triton": "{version}", "rows": [\n{body}\n]}}\n'
    _write(RESULTS / "table.json", text)
    head = (
        "# Resources of the compiled Triton kernels\n\n"
        f"Made by `python -m benchmarks.aot` with Triton {version}: compiled, not run.\n"
        "Registers and local memory are per thread, shared memory per block, all in bytes.\n\n"
    )
    _write(RESULTS / "table.md", head + table(rows))


# ---- one configuration ----


def _cases(module: str, capability: int) -> list[Any]:
    return list(importlib.import_module(f"mtlfast.kernels.{module}").aot_cases(capability))


def _key(case: Any, capability: int) -> str:
    """Changes with the source of the kernel, of what it calls, and with the configuration."""
    parts = [
        _source(case.kernel),
        case.signature,
        sorted(case.constexprs.items()),
        case.divisible_by_16,
        case.num_warps,
        case.num_stages,
        sorted(case.options.items()),
        capability,
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _source(kernel: Any) -> str:
    """The text of a kernel and of everything of ours that it uses."""
    seen: dict[str, str] = {}

    def visit(function: Any) -> None:
        name = f"{function.__module__}.{function.__qualname__}"
        if name in seen:
            return
        seen[name] = inspect.getsource(function)
        for used in sorted(function.__code__.co_names):
            value = function.__globals__.get(used)
            inner = getattr(value, "fn", None)
            if inspect.isfunction(inner):
                if inner.__module__.startswith("mtlfast."):
                    visit(inner)
            elif isinstance(value, ModuleType) and value.__name__.startswith("mtlfast."):
                seen[value.__name__] = inspect.getsource(value)
            elif not callable(value) and not isinstance(value, ModuleType):
                seen[f"{name}:{used}"] = repr(value)

    visit(kernel.fn)
    return repr(sorted(seen.items()))


def _cache_file(task: Task) -> Path:
    name = f"{task.module}-{task.case}-{task.capability}-{task.key}-{_triton_version()}"
    return CACHE / (re.sub(r"[^\w.-]", "_", name) + ".json")


def _cached(task: Task) -> Resources | None:
    file = _cache_file(task)
    try:
        return Resources(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _no_interpreter() -> None:
    os.environ.pop("TRITON_INTERPRET", None)


def _compile(task: Task, deadline: float | None = None) -> Resources | None:
    if deadline is not None and time.monotonic() > deadline:
        return None
    (case,) = (c for c in _cases(task.module, task.capability) if c.name == task.case)
    log, kernel = _compile_logged(case, task.capability)
    row = Resources(
        kernel=task.module,
        case=task.case,
        capability=task.capability,
        key=task.key,
        registers=_number(r"Used (\d+) registers", log),
        spill_bytes=_number(r"(\d+) bytes spill stores", log)
        + _number(r"(\d+) bytes spill loads", log),
        local_bytes=_number(r"(\d+) bytes stack frame", log),
        shared_bytes=int(kernel.metadata.shared),
        num_warps=case.num_warps,
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    _write(_cache_file(task), json.dumps(asdict(row)))
    return row


def _compile_logged(case: Any, capability: int) -> tuple[str, Any]:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    unknown = set(names) ^ (set(case.signature) | set(case.constexprs))
    if unknown or set(case.signature) & set(case.constexprs):
        raise ValueError(f"{case.name}: expected every argument once, found {sorted(unknown)}")
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    divisible = case.divisible_by_16
    if divisible is None:
        divisible = tuple(name for name, kind in signature.items() if kind.startswith("*"))
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    source = ASTSource(case.kernel, signature, case.constexprs, attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, **case.options}
    target = GPUTarget("cuda", capability, 32)
    # Triton runs `ptxas -v` itself and, asked to, prints what it said. Only a fresh compilation
    # does, so Triton's own cache stays out of this.
    printed = io.StringIO()
    with _fresh_triton_cache(), contextlib.redirect_stdout(printed):
        kernel = triton.compile(source, target=target, options=options)
    log = printed.getvalue()
    if "registers" not in log:
        log = _ptxas(kernel.asm["ptx"], capability)
    return log, kernel


@contextlib.contextmanager
def _fresh_triton_cache() -> Iterator[None]:
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder, knobs.cache.scope(), knobs.nvidia.scope():
        knobs.cache.dir = folder
        knobs.nvidia.dump_ptxas_log = True
        yield


def _ptxas(ptx: str, capability: int) -> str:
    from triton import knobs

    tool = knobs.nvidia.ptxas_blackwell if capability >= 100 else knobs.nvidia.ptxas
    target = re.search(r"\.target\s+(sm_\w+)", ptx)
    name = target.group(1) if target else f"sm_{capability}"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        command = [tool.path, "-v", f"--gpu-name={name}", file.name, "-o", os.devnull]
        return subprocess.run(command, capture_output=True, text=True, check=True).stderr


def _number(pattern: str, log: str) -> int:
    match = re.search(pattern, log)
    if match is None:
        raise RuntimeError(f"ptxas said nothing like {pattern!r}:\n{log}")
    return int(match.group(1))


def _sorted(rows: Iterable[Resources]) -> list[Resources]:
    return sorted(rows, key=lambda r: (r.kernel, r.case, r.capability))


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


# ---- the command ----


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.aot", description=__doc__)
    parser.add_argument("--filter", default="", help="only cases with this text in their name")
    parser.add_argument("--capability", type=int, choices=sorted(SHARED_LIMIT), action="append")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument(
        "--verify", type=float, metavar="SECONDS", help="check the committed table instead"
    )
    options = parser.parse_args(arguments)
    _no_interpreter()
    if options.verify is not None:
        wrong = verify(options.jobs, options.verify)
        print("\n".join(wrong))
        return 1 if wrong else 0
    wanted = tasks(options.capability or SHARED_LIMIT, options.filter)
    rows = compile_all(wanted, options.jobs)
    print(table(rows), end="")
    whole = not options.filter and not options.capability
    if whole and not options.check:
        save(rows)
    failures = [f"{row}: {problem}" for row in _sorted(rows) for problem in row.problems()]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
