"""Every shipped configuration of the Triton kernels compiles for real GPUs and fits there."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import aot  # noqa: E402 (found through the path above)

# In a process of its own: where this one interprets kernels, it cannot compile them.
COMPILING = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": str(ROOT)}


def test_what_is_shipped_compiles_and_the_table_is_up_to_date() -> None:
    command = [sys.executable, "-m", "benchmarks.aot", "--verify", "25", "--jobs", "2"]
    done = subprocess.run(command, cwd=ROOT, env=COMPILING, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compiled 0 of" not in done.stdout


def test_the_table_has_every_kernel_and_architecture() -> None:
    rows = aot.load()
    assert {row.kernel for row in rows} == set(aot.modules())
    assert {row.capability for row in rows} == {80, 90, 100}
    assert (aot.RESULTS / "table.md").read_text().endswith(aot.table(rows))


def test_a_configuration_that_must_not_be_shipped_is_found() -> None:
    row = aot.load()[0]
    assert row.problems() == []
    assert "spills 8 bytes" in replace(row, spill_bytes=8).problems()[0]
    assert "local memory" in replace(row, local_bytes=16).problems()[0]
    on_a100 = replace(row, capability=80, shared_bytes=200 << 10)
    assert "shared memory of 166912" in on_a100.problems()[0]
    assert replace(on_a100, capability=90).problems() == []


SPILLING = """
import triton, triton.language as tl
from benchmarks import aot
from mtlfast.kernels.aot import AotCase

@triton.jit
def hungry(x, out, N: tl.constexpr):
    i = tl.arange(0, N)
    a = tl.load(x + i)
    b = tl.load(x + N + i)
    c = tl.load(x + 2 * N + i)
    tl.store(out + i, a / (1.0 + tl.exp(b)) + tl.cumsum(c, 0))

case = AotCase("hungry", hungry, {"x": "*fp32", "out": "*fp32"}, {"N": 4096}, num_warps=1,
               options={"maxnreg": 32})
aot._cases = lambda module, capability: [case]
aot._cached = lambda task: None
row = aot._compile(aot.Task("test", "hungry", 90, aot._key(case, 90)))
print(row.problems())
"""


def test_a_spill_is_read_from_the_compiler(tmp_path: Path) -> None:
    script = tmp_path / "hungry.py"
    script.write_text(SPILLING)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=ROOT, env=COMPILING, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "spills" in done.stdout, done.stdout
