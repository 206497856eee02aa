"""libmtlfast_cuda.so as nvcc built it here: what it needs, what its kernels need."""

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

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(mtlfast.__file__).parent / "lib" / "libmtlfast_cuda.so"
sys.path.insert(0, str(ROOT / "csrc"))
import native_build  # noqa: E402 (found through the path above)

needs_nvcc = pytest.mark.skipif(
    native_build.find_nvcc() is None or not _extension.cpu_ops_available(),
    reason="nvcc is not installed, so there are no CUDA ops",
)


def undefined_symbols() -> list[str]:
    command = ["nm", "-D", "--undefined-only", str(LIBRARY)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in text.splitlines() if " w " not in line]


@needs_nvcc
def test_it_is_built_where_nvcc_is_installed() -> None:
    assert LIBRARY.is_file()
    assert _extension.build_config()["cuda"] is True


@needs_nvcc
@pytest.mark.skipif(shutil.which("nm") is None, reason="nm (binutils) is not installed")
def test_it_needs_only_the_stable_abi_and_no_cuda_library_of_one_version() -> None:
    stable = sys.modules.get("test_library") or _load("test_library")
    declared = stable.declarations_of_the_oldest_torch()
    runtime = re.compile(r"@@?(GLIBC|GLIBCXX|CXXABI|GCC)_")
    foreign = [
        name
        for name in undefined_symbols()
        if not runtime.search(name) and not re.search(rf"\b{re.escape(name)}\s*\(", declared)
    ]
    assert foreign == []
    assert "aoti_torch_get_current_cuda_stream" in undefined_symbols()
    needed = subprocess.run(["readelf", "-d", str(LIBRARY)], capture_output=True, text=True).stdout
    assert "libcudart" not in needed
    assert "libtorch_cuda.so" in needed


def _load(name: str):  # type: ignore[no-untyped-def]
    import importlib.util

    file = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@needs_nvcc
def test_no_kernel_spills_on_any_architecture() -> None:
    compiler, installed = native_build.find_compiler(), native_build.find_torch()
    folder = native_build._build_directory("native", compiler, installed)
    if not (folder / native_build.CUDA_REPORT).is_file():
        pytest.skip("built elsewhere: the compiler's report is not here")
    text = (folder / native_build.CUDA_REPORT).read_text()
    functions = re.findall(r"Compiling entry function '(\w+)' for '(sm_\d+)'", text)
    assert {architecture for _, architecture in functions} == {"sm_80", "sm_90", "sm_100"}
    used = [
        tuple(map(int, row))
        for row in re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text
        )
    ]
    assert len(used) >= len(functions) > 0
    assert set(used) == {(0, 0, 0)}


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_without_cuda_it_is_not_loaded_and_says_why() -> None:
    assert not _extension.cuda_ops_available()
    if _extension.cpu_ops_available():
        assert "was built without CUDA" in _extension.why_cuda_unavailable()
    with pytest.raises(ValueError, match="the tensors are on cpu"):
        mtlfast.ops.conditional_layer_norm(
            torch.ones(2, 8), torch.ones(8), torch.ones(8), backend="cuda"
        )


@pytest.mark.parametrize(
    ("mode", "path", "expected"),
    [
        ("off", None, "None"),
        ("auto", "", "None"),
        ("on", "", "MTLFAST_CUDA=on, but nvcc was not found"),
        ("maybe", None, "MTLFAST_CUDA: expected auto, on or off, found 'maybe'"),
    ],
)
def test_the_switch(mode: str, path: str | None, expected: str) -> None:
    environment = {**os.environ, "MTLFAST_CUDA": mode}
    environment.pop("CUDA_HOME", None)
    if path is not None:
        environment["PATH"] = path
    code = "import native_build; print(native_build.find_nvcc())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "csrc",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert expected in done.stdout + done.stderr
