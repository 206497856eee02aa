"""The built libraries: what they need, what they export, and the choice of instruction set."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mtlfast
from mtlfast import _extension

pytestmark = pytest.mark.skipif(
    not _extension.cpu_ops_available(), reason="mtlfast was installed without its C++ part"
)
needs_nm = pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")

LIBRARY = Path(mtlfast.__file__).parent / "lib" / "libmtlfast_cpu.so"
SHIMS = (
    "stable/c/shim.h",
    "inductor/aoti_torch/c/shim.h",
    "inductor/aoti_torch/generated/c_shim_aten.h",
)


def symbols(*options: str) -> list[str]:
    text = subprocess.run(
        ["nm", "-D", *options, str(LIBRARY)], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[-1] for line in text.splitlines() if " w " not in line]


def declarations_of_the_oldest_torch() -> str:
    """What torch's stable headers declare, without the parts that came after torch 2.11."""
    include = Path(torch.__file__).parent / "include" / "torch" / "csrc"
    kept, hidden = [], []
    for shim in SHIMS:
        for line in (include / shim).read_text().splitlines():
            if re.match(r"\s*#\s*if", line):
                newer = re.search(r"TORCH_FEATURE_VERSION >= TORCH_VERSION_2_(\d+)_0", line)
                hidden.append(newer is not None and int(newer.group(1)) > 11)
            elif re.match(r"\s*#\s*endif", line):
                hidden.pop()
            elif not any(hidden):
                kept.append(line)
    return "\n".join(kept)


@needs_nm
def test_the_library_needs_only_the_stable_abi():
    stable = declarations_of_the_oldest_torch()
    # Symbols of the C and C++ runtimes carry a version (name@GLIBC_2.34), those of torch do not.
    runtime = re.compile(r"@@?(GLIBC|GLIBCXX|CXXABI|GCC)_")
    foreign = [
        name
        for name in symbols("--undefined-only")
        if not runtime.search(name) and not re.search(rf"\b{re.escape(name)}\s*\(", stable)
    ]
    assert foreign == []
    # The scan would notice: this one came with torch 2.12.
    assert "torch_library_def_with_tags" not in stable
    assert "torch_call_dispatcher" in stable


@needs_nm
def test_the_library_exports_only_its_c_interface():
    assert set(symbols("--defined-only")) == {
        "mtlfast_compiled_isas",
        "mtlfast_cpu_capability",
        "mtlfast_cpu_capability_detected",
        "mtlfast_set_cpu_capability",
    }


def test_build_config():
    config = _extension.build_config()
    assert config["version"] == mtlfast.__version__
    assert config["torch_target_version"] == "2.11"
    assert config["cpu_isas"][0] == "portable"
    assert config["cuda"] is LIBRARY.with_name("libmtlfast_cuda.so").is_file()
    assert config["compiler"]


def test_cpu_capability_can_be_lowered_and_restored():
    before = _extension.cpu_capability()
    detected = mtlfast.env().cpu_capability["detected"]
    try:
        _extension.set_cpu_capability("portable")
        assert _extension.cpu_capability() == "portable"
        _extension.set_cpu_capability(detected)
        assert _extension.cpu_capability() == detected
    finally:
        _extension.set_cpu_capability(before)


def test_an_impossible_cpu_capability_is_a_value_error():
    before = _extension.cpu_capability()
    with pytest.raises(ValueError, match=r'name: expected .* found "sse9"'):
        _extension.set_cpu_capability("sse9")
    assert _extension.cpu_capability() == before


@pytest.mark.parametrize(("name", "expected"), [("portable", "portable"), ("sse9", None)])
def test_cpu_capability_from_the_environment(name, expected, tmp_path):
    code = "from mtlfast import _extension as e; print(e.cpu_capability())"
    environment = {**os.environ, "MTLFAST_CPU_CAPABILITY": name}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (expected or mtlfast.env().cpu_capability["detected"])
    assert ("sse9" in done.stderr) == (expected is None)


def test_env_reports_what_is_loaded():
    report = mtlfast.env()
    assert report.versions["torch"] == torch.__version__
    assert report.unavailable == ""
    assert "conditional_interest_forward" in report.ops
    assert report.as_dict()["ops"] == list(report.ops)
    reason = _extension.why_cuda_unavailable()
    assert report.cuda["ops"] == (f"not loaded: {reason}" if reason else "loaded")
    text = str(report)
    assert report.cuda["ops"] in text
    assert report.cuda["triton"] in text
    assert torch.__version__ in text
    assert report.cpu_capability["active"] in text
