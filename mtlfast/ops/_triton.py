"""Registers a pair of Triton launches as ops that compilers see as one opaque call each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

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
    for way, schema in (("forward", forward_schema), ("backward", backward_schema)):
        name = f"{stem}_triton_{way}"
        _library.define(name + schema)
        launch = _launcher(stem, way)
        for device in ("CUDA", "CPU"):
            _library.impl(name, launch, device)
    return f"{stem}_triton"


def _launcher(stem: str, way: str) -> Callable[..., Any]:
    found: list[Callable[..., Any]] = []

    def launch(*inputs: Any) -> Any:
        if not found:
            module = importlib.import_module(f"{__package__.rpartition('.')[0]}.kernels.{stem}")
            found.append(getattr(module, way))
        return found[0](*inputs)

    return launch
