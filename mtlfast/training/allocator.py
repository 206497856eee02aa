"""Keeps the memory of one training step for the next."""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["keep_freed_memory"]

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Ask glibc not to hand large freed blocks back to the system.

    By default it does, and each step faults thousands of pages in again: up to a tenth of a
    training step on CPU. Holds for the whole process, so it is for programs, not for libraries, to
    call. Settings of the user (``GLIBC_TUNABLES``, ``MALLOC_*_``) stay as they are.

    Returns:
        Whether anything was changed.
    """
    given = any(name.startswith("MALLOC_") for name in os.environ)
    if platform.libc_ver()[0] != "glibc" or given or "GLIBC_TUNABLES" in os.environ:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # -1: never trim the heap. 0: no block gets a mapping of its own, which freeing would undo.
    return bool(mallopt(_M_TRIM_THRESHOLD, -1)) and bool(mallopt(_M_MMAP_MAX, 0))
