"""How memory is allocated while something is measured.

glibc's malloc gives large tensors back to the system at once and faults them in again, which makes
eager PyTorch two to five times slower than it need be. Timing is done with that switched off, for
every backend alike; peak memory is measured under the opposite setting. Tunables are read when a
process starts, so workers are started with them.
"""

from __future__ import annotations

import os
import platform
import sys

_VARIABLE = "GLIBC_TUNABLES"

TUNABLES = {
    # Large blocks come from the heap too, which never shrinks and grows in few steps.
    "tuned": {
        "glibc.malloc.mmap_max": "0",
        "glibc.malloc.trim_threshold": str(1 << 36),
        "glibc.malloc.top_pad": str(64 << 20),
    },
    # As processes are started that nobody tuned.
    "plain": {},
    # Every tensor of 64 KiB has a mapping of its own, which goes back when it is freed.
    "returning": {
        "glibc.malloc.mmap_threshold": str(64 << 10),
        "glibc.malloc.trim_threshold": str(64 << 10),
        "glibc.malloc.arena_max": "1",
    },
}


def environment(allocator: str) -> dict[str, str]:
    """The variables of this process with one of :data:`TUNABLES` in place of any tunables."""
    variables = {k: v for k, v in os.environ.items() if k != _VARIABLE}
    settings = TUNABLES[allocator]
    if settings and sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        variables[_VARIABLE] = ":".join(f"{name}={value}" for name, value in settings.items())
    return variables


def describe() -> str:
    """How this process allocates memory, for reports."""
    names = [name for name in (_VARIABLE, "LD_PRELOAD", "MALLOC_CONF") if os.environ.get(name)]
    return " ".join(f"{name}={os.environ[name]}" for name in names) or "the system's default"


def is_tuned() -> bool:
    """Whether this process keeps large tensors, instead of returning and re-faulting them."""
    given = os.environ.get(_VARIABLE, "").split(":")
    return "glibc.malloc.mmap_max=0" in given or "jemalloc" in os.environ.get("LD_PRELOAD", "")
