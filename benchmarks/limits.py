"""The limits of this machine, measured beside the cases: FMA and bf16 peaks, copy bandwidth."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_SOURCE = Path(__file__).with_name("limits.cpp")
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-std=c++17", "-shared", "-fPIC")
_COPY_BYTES = 128 << 20


@dataclass(frozen=True)
class Limits:
    """What all ``threads`` reach together.

    Attributes:
        fma_gflops: single-precision multiply-adds, two operations each.
        bf16_gflops: bfloat16 dot products; 0 where the CPU has no such instruction.
        copy_gbs: bytes read plus bytes written by memcpy between buffers out of cache.
        source: "measured", or why there is nothing to compare with.
    """

    threads: int
    fma_gflops: float = 0.0
    bf16_gflops: float = 0.0
    copy_gbs: float = 0.0
    source: str = "measured"

    def peak(self, dtype: str) -> float:
        """The arithmetic peak that a case of this dtype is compared with; 0 if unknown."""
        return self.bf16_gflops or self.fma_gflops if dtype == "bfloat16" else self.fma_gflops

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure(threads: int, seconds: float = 0.15) -> Limits:
    """Measures all limits on ``threads`` cores at once; needs a C++ compiler."""
    try:
        library = ctypes.CDLL(str(_compiled()))
    except (OSError, subprocess.SubprocessError) as error:
        return Limits(threads, source=f"not measured: {error}")
    for name in ("fma", "bf16", "copy"):
        getattr(library, f"mtlfast_bench_{name}").restype = ctypes.c_double
    library.mtlfast_bench_fma.argtypes = [ctypes.c_double]
    library.mtlfast_bench_bf16.argtypes = [ctypes.c_double]
    library.mtlfast_bench_copy.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_double,
    ]

    def copy(duration: float) -> float:
        to, source = (ctypes.create_string_buffer(_COPY_BYTES) for _ in range(2))
        ctypes.memset(source, 1, _COPY_BYTES)  # else all reads hit one page of zeros
        ctypes.memset(to, 1, _COPY_BYTES)
        return float(library.mtlfast_bench_copy(to, source, _COPY_BYTES, duration))

    return Limits(
        threads,
        fma_gflops=_on_all(threads, library.mtlfast_bench_fma, seconds),
        bf16_gflops=_on_all(threads, library.mtlfast_bench_bf16, seconds),
        copy_gbs=_on_all(threads, copy, seconds),
    )


def _on_all(threads: int, function: Callable[[float], float], seconds: float) -> float:
    """The sum of what ``function`` returns on every thread; ctypes lets go of the GIL."""
    rates = [0.0] * threads
    barrier = threading.Barrier(threads)

    def work(i: int) -> None:
        function(seconds / 10)  # clocks and pages warm up
        barrier.wait()
        rates[i] = function(seconds)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(rates)


def _compiled() -> Path:
    """The library, built once per source, compiler and CPU, in the user's cache."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        raise OSError("no C++ compiler found (looked for c++, g++, clang++)")
    identity = "\n".join([_SOURCE.read_text(), compiler, platform.machine(), _cpu_flags()])
    name = f"limits-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.so"
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtlfast"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="mtlfast-"))
    library = folder / name
    if not library.exists():
        building = library.with_suffix(f".{os.getpid()}.tmp")
        command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(building)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if result.returncode:
            raise OSError(f"{' '.join(command)} failed: {result.stderr.strip()[-400:]}")
        os.replace(building, library)
    return library


def _cpu_flags() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
