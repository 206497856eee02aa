"""Errors of the C++ kernels, as the Python door raises them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_PREFIX = "mtlfast: "


def call(op: Callable[..., Any], *args: Any) -> Any:
    """Calls a C++ op; wrong data are a ValueError here and stay RuntimeError in compiled graphs."""
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return op(*args)
    except RuntimeError as error:
        _, prefix, text = str(error).partition(_PREFIX)
        if not prefix:
            raise
        raise ValueError(text.partition("\n")[0]) from None


def first_order_only(op: str) -> Callable[..., Any]:
    """The autograd formula of a backward op: says why there is no double backward."""

    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op}: fused backends have first-order gradients only; "
            "use backend='reference' where a gradient of a gradient is needed"
        )

    return backward


def no_vmap(op: str) -> Callable[..., Any]:
    """The vmap rule of an op that has none."""

    def rule(info: Any, in_dims: Any, *args: Any) -> Any:
        raise NotImplementedError(
            f"{op}: fused backends cannot run under torch.vmap; the op is batched already, "
            "or use backend='reference'"
        )

    return rule
