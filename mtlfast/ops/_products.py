"""Which backend runs the ops on matrix products: C++ where it gains, else torch's own products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _extension
from . import _backend

# With fewer rows the BLAS is as fast: packing the weights is what takes the time.
_FEWEST_ROWS = 512


def has_cpu_op(op: str) -> bool:
    """Whether the C++ library is loaded and has ``mtlfast::<op>_forward``."""
    return _extension.cpu_ops_available() and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"mtlfast::{op}_forward", "CPU"
    )


def choose(
    op: str, backend: str, x: Tensor, others: Sequence[Tensor | None], loaded: bool
) -> tuple[str, str]:
    """Backend and reason for rows ``x [S, R, in]`` and the other arguments.

    ``MTLFAST_BACKEND`` does not bind these ops: what surrounds them may run elsewhere.
    """

    def obstacle(name: str) -> str:
        missing = _backend.missing_obstacle(name, x.device.type)
        if missing:
            return missing
        if not loaded:
            return "this build has no C++ op of that name"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is on"
        for tensor in (x, *others):
            if tensor is not None and tensor.dtype != torch.float32:
                return f"{tensor.dtype} is computed by torch's products"
        # A compiled graph must not depend on the batch size.
        if backend == "auto" and not torch.compiler.is_compiling() and x.shape[1] < _FEWEST_ROWS:
            return f"fewer than {_FEWEST_ROWS} rows"
        return ""

    return _backend.choose(op, backend, x.device.type, obstacle, environment_binds=False)
