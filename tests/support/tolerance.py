"""The tolerance rule: a kernel may err little more than plain PyTorch in the same dtype does.

The truth is float64 on the same inputs. Errors are compared in the norm over a whole tensor: near a
ReLU kink single elements of a gradient may flip in either implementation.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORWARD, BACKWARD = 2.0, 5.0  # how much larger than PyTorch's the error may be
_FLOOR = 1.0  # units in the last place that rounding a perfect result may cost anyway


def error(actual: Tensor, truth: Tensor) -> float:
    """Euclidean norm of ``actual - truth``, in float64."""
    return float(torch.linalg.vector_norm(actual.detach().double() - truth.detach().double()))


def allowed(plain: Tensor, truth: Tensor, factor: float) -> float:
    """The largest error the rule allows: ``factor`` times that of ``plain``, or a last place."""
    ulp = torch.finfo(plain.dtype).eps * float(torch.linalg.vector_norm(truth.detach().double()))
    return max(factor * error(plain, truth), _FLOOR * ulp)


def check(name: str, actual: Tensor, plain: Tensor, truth: Tensor, factor: float) -> None:
    """Fails where ``actual`` breaks the rule; ``plain`` is PyTorch's result in the same dtype."""
    assert actual.shape == truth.shape, f"{name}: shape {actual.shape}, not {truth.shape}"
    assert bool(torch.isfinite(truth).all()), f"{name}: the truth itself is not finite"
    found, limit = error(actual, truth), allowed(plain, truth, factor)
    assert found <= limit, f"{name}: error {found:.3g}, PyTorch's {error(plain, truth):.3g}"
