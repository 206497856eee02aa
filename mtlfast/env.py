"""What runs here: versions, instruction sets, compiled features, loaded ops."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mtlfast import _extension
from mtlfast._version import __version__

# Environment variables that change what mtlfast or the allocator does; reported where they are set.
_VARIABLES = (
    "MTLFAST_BACKEND",
    "MTLFAST_CHECK",
    "MTLFAST_CPU_CAPABILITY",
    "MTLFAST_DISABLE_EXTENSION",
    "MTLFAST_HUGE_PAGES",
    "MTLFAST_TUNED",
    "TRITON_INTERPRET",
    "CUDA_VISIBLE_DEVICES",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)


@dataclass(frozen=True)
class Environment:
    """The answer of `mtlfast.env()`; `as_dict()` is what benchmark results store, `str()` prints.

    Attributes:
        versions: mtlfast, python, torch, numpy, and triton ("not installed" where it is missing).
        machine: cpu, cores, platform.
        threads: torch's intra-op and inter-op threads.
        build: what was compiled, as `mtlfast._C.build_config()` tells; empty without C++ ops.
        cpu_capability: instruction sets: "active", "detected" (the best one that can run here).
        ops: the ops of namespace mtlfast that are registered with torch.
        unavailable: why the C++ ops are missing; empty where they are not.
        cuda: "available" (bool), "ops" ("loaded", or why the CUDA ops are not), "triton" (whether
            its kernels can run), and the device's "name" and "capability" where there is one.
        variables: the environment variables that matter, as far as they are set.
    """

    versions: dict[str, str]
    machine: dict[str, str | int]
    threads: dict[str, int]
    build: dict[str, Any]
    cpu_capability: dict[str, str]
    ops: tuple[str, ...]
    unavailable: str
    cuda: dict[str, Any]
    variables: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries, lists, strings and numbers, ready for JSON."""
        report = asdict(self)
        report["ops"] = list(self.ops)
        return report

    def __str__(self) -> str:
        if self.unavailable:
            native = [("C++ ops", f"missing: {self.unavailable}")]
        else:
            isa = self.cpu_capability
            native = [
                ("C++ ops", f"{', '.join(self.ops) or 'none'}"),
                ("compiled", f"for {', '.join(self.build['cpu_isas'])}; {self.build['compiler']}"),
                ("stable ABI", f"torch >= {self.build['torch_target_version']}"),
                ("running on", f"{isa['active']} (best here: {isa['detected']})"),
            ]
        cuda = (
            f"{self.cuda['name']}, sm_{self.cuda['capability']}"
            if self.cuda["available"]
            else "not available"
        )
        rows = [
            *self.versions.items(),
            ("machine", f"{self.machine['cpu']}, {self.machine['cores']} cores"),
            ("platform", str(self.machine["platform"])),
            ("threads", f"{self.threads['intra_op']} (inter-op {self.threads['inter_op']})"),
            *native,
            ("CUDA", cuda),
            ("CUDA ops", self.cuda["ops"]),
            ("Triton ops", self.cuda["triton"]),
            *self.variables.items(),
        ]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def env() -> Environment:
    """Reports versions, instruction sets, compiled features and loaded ops. Builds nothing."""
    return Environment(
        versions={
            "mtlfast": __version__,
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "numpy": _installed("numpy"),
            "triton": _installed("triton"),
        },
        machine={
            "cpu": _cpu_name(),
            "cores": os.cpu_count() or 0,
            "platform": platform.platform(),
        },
        threads={"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()},
        build=_extension.build_config(),
        cpu_capability=_cpu_capability(),
        ops=_registered_ops(),
        unavailable=_extension.why_unavailable(),
        cuda=_cuda(),
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
    )


def _installed(package: str) -> str:
    if importlib.util.find_spec(package) is None:
        return "not installed"
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown version"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cpu_capability() -> dict[str, str]:
    module = _extension.native()
    if module is None:
        return {"active": "none", "detected": "none"}
    return {"active": module.cpu_capability(), "detected": module.cpu_capability_detected()}


def _registered_ops() -> tuple[str, ...]:
    names = torch._C._dispatch_get_all_op_names()
    return tuple(sorted(name.split("::")[1] for name in names if name.startswith("mtlfast::")))


def _cuda() -> dict[str, Any]:
    available = torch.cuda.is_available()
    reason = _extension.why_cuda_unavailable()
    report: dict[str, Any] = {
        "available": available,
        "ops": f"not loaded: {reason}" if reason else "loaded",
        "triton": _triton(available),
    }
    if available:
        major, minor = torch.cuda.get_device_capability()
        report |= {"name": torch.cuda.get_device_name(), "capability": f"{major}{minor}"}
    return report


def _triton(available: bool) -> str:
    if importlib.util.find_spec("triton") is None:
        return "not available: triton is not installed"
    if available:
        return "available, compiled at first use"
    if os.environ.get("TRITON_INTERPRET", "0") == "1":
        return "interpreted on the CPU (TRITON_INTERPRET=1)"
    return "not available: no GPU"
