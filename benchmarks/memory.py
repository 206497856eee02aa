"""Peak memory of one call, by the kernel's own high-water mark of this process.

Only that counts everything: tensors, scratch of C++ ops, buffers of BLAS. The process must run with
the "returning" tunables of allocator.py, under which freed memory goes back at once.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_of(call: Callable[[], Result]) -> tuple[Result, int]:
    """``(result, bytes)``: how far the resident set rose above its level before the call.

    The result is still alive when the peak is read; subtract what it holds for the memory beyond
    it. A process that was larger before than it gets in ``call`` would hide the peak where the mark
    cannot be reset; then ValueError.
    """
    gc.collect()
    _give_back_freed()
    before = _resident()
    resettable = _reset()
    if not resettable and _high_water() > before + (1 << 20):
        raise ValueError("peak memory: this system cannot reset the high-water mark of a process")
    result = call()
    return result, max(_high_water() - before, 0)


def can_measure_repeatedly() -> bool:
    """Whether one process can measure several peaks, one after the other."""
    return _reset()


def _reset() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _field(name: str) -> int | None:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found.group(1)) * 1024 if found else None


def _resident() -> int:
    size = _field("VmRSS")
    if size is None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return size


def _high_water() -> int:
    size = _field("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if size is None else size


def _give_back_freed() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def total_memory() -> int:
    """Bytes of memory that this process may use: of the machine, or less if its group has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return total
