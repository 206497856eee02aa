"""Which dtype an op computes in: promotion as torch does it, and the autocast rule."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .errors import bad, describe

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def require_floating(argument: str, tensor: Tensor) -> None:
    if tensor.dtype not in FLOATING:
        raise bad(argument, "dtype float32, bfloat16, float16 or float64", describe(tensor))


def promoted(tensors: Iterable[Tensor]) -> torch.dtype:
    """The common dtype of floating tensors, as torch promotes them."""
    dtypes = iter({tensor.dtype for tensor in tensors})
    result = next(dtypes)
    for dtype in dtypes:
        result = torch.promote_types(result, dtype)
    return result


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``; where nothing is to be done, ten times as fast."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of the active autocast region on this kind of device, or None outside of one."""
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return None


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Ops inside run in the dtypes that they are given; meta tensors know no autocast."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def activation_and_compute_dtype(
    activations: Iterable[Tensor], parameters: Iterable[Tensor], device: torch.device
) -> tuple[torch.dtype, torch.dtype]:
    """``(dtype of activations and output, dtype of parameters and statistics)``.

    Under autocast the first is the autocast dtype and the second float32; as everywhere in torch,
    float64 is left alone by autocast. Otherwise both are the promoted dtype of everything.
    """
    common = promoted([*activations, *parameters])
    autocast = autocast_dtype(device)
    if autocast is None or common == torch.float64:
        return common, common
    return autocast, torch.float32
