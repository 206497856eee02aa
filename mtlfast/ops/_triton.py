"""Registers Triton launches as ops that compilers see as one opaque call each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from . import _backend

# Everything registered lives as long as this.
_library = torch.library.Library("mtlfast", "FRAGMENT")


def define(stem: str, forward_schema: str, backward_schema: str) -> str:
    """Defines ``mtlfast::<stem>_triton_forward`` and ``..._backward``.

    They run ``forward`` and ``backward`` of ``mtlfast.kernels.<stem>``, which is imported, and
    triton with it, at the first call. On CPU they run only where Triton interprets its kernels.

    Args:
        forward_schema, backward_schema: "(Tensor x, ...) -> (Tensor, ...)", those of the C++ ops.

    Returns:
        The name that :func:`~._native.differentiable` takes.
    """
    define_one(f"{stem}_triton_forward", forward_schema, stem, "forward")
    define_one(f"{stem}_triton_backward", backward_schema, stem, "backward")
    return f"{stem}_triton"


def define_one(name: str, schema: str, stem: str, function: str) -> None:
    """Defines ``mtlfast::<name>``, which runs ``function`` of ``mtlfast.kernels.<stem>``."""
    _library.define(name + schema)
    launch = _launcher(stem, function)
    for device in ("CUDA", "CPU"):
        _library.impl(name, launch, device)


def serve(op: str, stem: str, function: str) -> None:
    """Makes ``function`` of ``mtlfast.kernels.<stem>`` the CUDA side of the C++ op ``op``."""
    _library.impl(op, _launcher(stem, function), "CUDA")


def _launcher(stem: str, function: str) -> Callable[..., Any]:
    found: list[Callable[..., Any]] = []

    def launch(*inputs: Any) -> Any:
        if not found:
            kernels = f"{__package__.rpartition('.')[0]}.kernels"
            if _backend.interpreting():
                importlib.import_module(f"{kernels}.interpreter").repair()
            found.append(getattr(importlib.import_module(f"{kernels}.{stem}"), function))
        return found[0](*inputs)

    return launch
