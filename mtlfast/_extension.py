"""Loads the native part of mtlfast, or finds out why it cannot be had.

In the package lie `lib/libmtlfast_cpu.so`, which registers the ops with torch, the module
`mtlfast._C` with helpers that are not tensor ops, and, where it was built with nvcc,
`lib/libmtlfast_cuda.so` with CUDA kernels for the same ops. Nothing is ever built here.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

_LIBRARY = Path(__file__).resolve().parent / "lib" / "libmtlfast_cpu.so"
_CUDA_LIBRARY = _LIBRARY.with_name("libmtlfast_cuda.so")
_MINIMUM_TORCH = (2, 11)

_reason: str | None = None  # why the native part is unavailable; None once it is loaded
_cuda_reason: str | None = None  # the same for the CUDA ops
_module: Any = None


def _load() -> str:
    """Loads both libraries; the empty string, or the reason why that failed."""
    global _module
    if os.environ.get("MTLFAST_DISABLE_EXTENSION", "0") not in ("", "0"):
        return "MTLFAST_DISABLE_EXTENSION is set"
    if not _LIBRARY.is_file():
        return f"{_LIBRARY.name} is not installed (this mtlfast was installed without its C++ ops)"
    release = torch.__version__.split("+")[0].split(".")
    if tuple(int(part) for part in release[:2]) < _MINIMUM_TORCH:
        return f"torch {torch.__version__} is older than 2.11"
    try:
        torch.ops.load_library(str(_LIBRARY))
        from mtlfast import _C
    except (ImportError, OSError) as error:
        return f"the libraries do not load: {error}"
    _module = _C
    return ""


def _load_cuda() -> str:
    """Loads the CUDA ops; asks no device, so that nothing of CUDA is initialized by an import."""
    if _reason:
        return _reason
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    if not _CUDA_LIBRARY.is_file():
        return f"{_CUDA_LIBRARY.name} is not installed (this mtlfast was built without nvcc)"
    try:
        torch.ops.load_library(str(_CUDA_LIBRARY))
    except OSError as error:
        return f"the library does not load: {error}"
    return ""


def load() -> None:
    """Loads the native part once; warns once where that fails. Called by `import mtlfast`."""
    global _reason, _cuda_reason
    if _reason is not None:
        return
    _reason = _load()
    _cuda_reason = _load_cuda()
    if _reason:
        warnings.warn(
            f"mtlfast runs on its plain PyTorch reference, which is much slower: {_reason}. "
            "To get the C++ ops, install a C++ compiler and run: "
            "python -m pip install --force-reinstall --no-deps mtlfast "
            "(from a checkout: python -m pip install --no-deps -e .).",
            RuntimeWarning,
            stacklevel=3,
        )


def cpu_ops_available() -> bool:
    """Whether the C++ ops are registered with torch."""
    load()
    return _reason == ""


def why_unavailable() -> str:
    """Why the C++ ops are missing; the empty string where they are not."""
    load()
    return _reason or ""


def cuda_ops_available() -> bool:
    """Whether the CUDA C++ ops are registered with torch."""
    load()
    return _cuda_reason == ""


def why_cuda_unavailable() -> str:
    """Why the CUDA C++ ops are missing; the empty string where they are not."""
    load()
    return _cuda_reason or ""


def cuda_library_built() -> bool:
    """Whether this installation has `libmtlfast_cuda.so`, loaded or not."""
    return _CUDA_LIBRARY.is_file()


def native() -> Any:
    """The module `mtlfast._C`, or None where the native part is unavailable."""
    load()
    return _module


def build_config() -> dict[str, Any]:
    """What was compiled: version, torch_target_version, cpu_isas, compiler, cuda.

    Empty where the native part is unavailable.
    """
    module = native()
    return {**module.build_config(), "cuda": cuda_library_built()} if module is not None else {}


def cpu_capability() -> str:
    """The instruction set the CPU kernels run on: "portable", "avx2", "avx512" or "avx512_bf16".

    "none" where the native part is unavailable.
    """
    module = native()
    return str(module.cpu_capability()) if module is not None else "none"


def set_cpu_capability(name: str) -> None:
    """Makes the CPU kernels use the instruction set `name`, or the best one again with "auto".

    The environment variable MTLFAST_CPU_CAPABILITY does the same from the start. Meant for tests
    and for comparing; call it while no op is running.

    Raises:
        ValueError: `name` is unknown, was not compiled, or cannot run on this CPU.
        RuntimeError: the native part is unavailable.
    """
    module = native()
    if module is None:
        raise RuntimeError(f"mtlfast has no C++ ops here: {_reason}")
    module.set_cpu_capability(name)
