from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from mtlfast.training.allocator import keep_freed_memory

CODE = """
import resource, sys, torch
if sys.argv[1] == "keep":
    from mtlfast.training.allocator import keep_freed_memory
    assert keep_freed_memory()
def work():
    for size in (3, 40, 7, 90):
        torch.zeros(size << 18)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    faults = {}
    for kind in ("default", "keep"):
        done = subprocess.run(
            [sys.executable, "-c", CODE, kind], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        faults[kind] = int(done.stdout)
    assert faults["keep"] < faults["default"] / 10


def test_settings_of_the_user_win(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=5")
    assert not keep_freed_memory()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert not keep_freed_memory()
