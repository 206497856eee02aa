from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from mtlfast.training.allocator import keep_freed_memory

CODE = """
import resource, torch
from mtlfast.training.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        for size in (3, 40, 7, 90):
            torch.zeros(size << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
changed = keep_freed_memory()
faults()
print(changed, before, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_is_used_again(monkeypatch):
    """In a process of its own, because the setting cannot be taken back."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    changed, before, after = done.stdout.split()
    assert changed == "True"
    assert int(after) < int(before) / 10


def test_settings_of_the_user_win(monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.mmap_max=5")
    assert not keep_freed_memory()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000")
    assert not keep_freed_memory()
