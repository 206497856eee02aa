"""Which backend runs an op, and why."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .. import _extension
from ..errors import bad

BACKENDS = ("reference", "cpu", "triton", "cuda")

# The fused backends that auto tries on each kind of device, fastest first.
_FUSED: dict[str, tuple[str, ...]] = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}

_HAS_TRITON = importlib.util.find_spec("triton") is not None
_OLDEST_CAPABILITY = (8, 0)  # what the GPU kernels are compiled for and checked with

_checks = os.environ.get("MTLFAST_CHECK", "0") not in ("", "0")


class Explanation(NamedTuple):
    """Which backend an op runs on for given inputs, and why."""

    op: str
    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op} runs on backend {self.backend!r}: {self.reason}"


# Name of the op -> function of the op's own arguments that says which backend would run.
_explainers: dict[str, Callable[..., Explanation]] = {}


def explains(op: str) -> Callable[[Callable[..., Explanation]], Callable[..., Explanation]]:
    """Decorator: makes a function the answer of ``explain(op, ...)``."""

    def register(function: Callable[..., Explanation]) -> Callable[..., Explanation]:
        _explainers[op] = function
        return function

    return register


def explain(op: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Explanation:
    """Which backend ``op(*args, **kwargs)`` would run on, and why; runs nothing.

    Args:
        op: a function of :mod:`mtlfast.ops`, or its name.
        *args, **kwargs: what the op would be called with.

    Raises:
        ValueError: ``op`` is not an op, or the arguments are ones the op itself would refuse.
    """
    name = op if isinstance(op, str) else getattr(op, "__name__", repr(op))
    if name not in _explainers:
        raise bad("op", f"one of {sorted(_explainers)}", repr(name))
    found = _explainers[name](*args, **kwargs)
    if found.backend == "cpu":
        capability = _extension.cpu_capability()
        found = found._replace(reason=f"{found.reason}; instruction set: {capability}")
    if found.backend in ("triton", "cuda"):
        found = found._replace(reason=f"{found.reason}; device: {_gpu()}")
    return found


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none, Triton interprets its kernels"
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()}, sm_{major}{minor}"


def choose(
    op: str,
    requested: str,
    device_type: str,
    obstacle: Callable[[str], str],
    *,
    environment_binds: bool = True,
) -> tuple[str, str]:
    """``(backend, reason)`` for one call.

    Args:
        op: name of the op, for error messages.
        requested: the user's ``backend``; "auto" leaves it to MTLFAST_BACKEND, then to us.
        device_type: "cpu", "cuda" ...: where the tensors are.
        obstacle: why a fused backend cannot run this call; the empty string where it can.
        environment_binds: a backend that MTLFAST_BACKEND names and that cannot run is an error;
            False for parts of models that have fewer backends than the ops the variable is for:
            they run on the reference then.

    Raises:
        ValueError: an unknown backend, or one that was asked for and cannot run.
    """
    argument = "backend"
    if requested == "auto":
        # Read at every call, so that it can be set late; a compiled graph keeps what it saw.
        requested = os.environ.get("MTLFAST_BACKEND", "auto") or "auto"
        argument = "MTLFAST_BACKEND"
    if requested == "auto":
        reasons = []
        for backend in _FUSED.get(device_type, ()):
            reason = obstacle(backend)
            if not reason:
                return backend, f"fastest backend for these inputs on {device_type}"
            reasons.append(f"{backend}: {reason}")
        return "reference", "; ".join(reasons) or f"no fused backend for device {device_type}"
    if requested not in BACKENDS:
        raise bad(argument, f"one of {(*BACKENDS, 'auto')}", repr(requested))
    if requested != "reference":
        reason = obstacle(requested)
        if reason and argument == "MTLFAST_BACKEND" and not environment_binds:
            return "reference", f"{requested}: {reason}"
        if reason:
            raise bad(argument, f"one that can run {op} here", f"{requested!r}: {reason}")
    return requested, f"{argument} asks for it"


def missing_obstacle(backend: str, device_type: str, backends: tuple[str, ...] = ("cpu",)) -> str:
    """What stands against a backend whatever the inputs: not built, not loaded, another device.

    Args:
        backends: the fused backends that the op has.
    """
    if backend not in backends:
        return "it is not part of this build"
    if backend == "triton":
        return _triton_obstacle(device_type)
    if device_type != backend:
        return f"the tensors are on {device_type}"
    if not _extension.cpu_ops_available():
        return f"the C++ ops are not loaded ({_extension.why_unavailable()})"
    if backend == "cuda" and not _extension.cuda_ops_available():
        return f"the CUDA ops are not loaded ({_extension.why_cuda_unavailable()})"
    return _capability_obstacle() if backend == "cuda" else ""


def _triton_obstacle(device_type: str) -> str:
    if not _HAS_TRITON:
        return "triton is not installed"
    if device_type == "cuda":
        return _capability_obstacle()
    if device_type == "cpu" and interpreting():
        return ""
    return f"the tensors are on {device_type}"


def interpreting() -> bool:
    """Whether Triton runs its kernels in Python, on any device: slow, for tests without a GPU."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@torch.compiler.assume_constant_result
def _capability_obstacle() -> str:
    if not torch.cuda.is_available():  # a graph traced for a GPU elsewhere
        return ""
    found = torch.cuda.get_device_capability()
    if found >= _OLDEST_CAPABILITY:
        return ""
    return f"compute capability {found[0]}.{found[1]} is below 8.0"


def checks(enabled: bool) -> None:
    """Turns the full check of offsets and indices before every fused eager call on or off.

    On CPU wrong data are found anyway. On a GPU the check costs a host sync, so it is off unless
    this or the environment variable MTLFAST_CHECK=1 asks for it.
    """
    global _checks
    _checks = bool(enabled)


def checks_enabled() -> bool:
    return _checks
