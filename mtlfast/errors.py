"""One wording for every error: argument, what was expected, what was found.

Shape and dtype errors are built with :func:`bad`. Data errors (the *values* in ``offsets`` or
``user_index``) have the same texts in the reference, in the C++ kernels and here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import torch
from torch import Tensor


class TraceTimeError(ValueError, AssertionError):
    """What torch.compile raises while it traces a call with a wrong argument: a ValueError.

    Dynamo hands AssertionErrors through as they are; every other exception that reaches it comes
    out as one of its own.
    """


class TraceTimeRefusal(RuntimeError, AssertionError):
    """Likewise, for what cannot be done in a graph: a RuntimeError."""


def bad(argument: str, expected: object, found: object) -> ValueError:
    """The ValueError for one wrong argument; the caller raises it."""
    if isinstance(found, (int, float, torch.SymInt, torch.SymFloat)):
        found = number(found)
    text = f"{argument}: expected {expected}, found {found}"
    if torch.compiler.is_dynamo_compiling():
        _raise_at_trace_time(text)
    return ValueError(text)


def _raise_at_trace_time(text: str) -> NoReturn:
    raise TraceTimeError(text)


# Dynamo calls such a function while tracing instead of tracing into it. This is what
# torch.compiler.assume_constant_result sets; that decorator imports all of Dynamo.
_raise_at_trace_time._dynamo_marked_constant = True  # type: ignore[attr-defined]  # an attribute that dynamo looks for


def refuse(text: str) -> NoReturn:
    """Raises RuntimeError for what is right but cannot be done."""
    if torch.compiler.is_dynamo_compiling():
        _refuse_at_trace_time(text)
    raise RuntimeError(text)


def _refuse_at_trace_time(text: str) -> NoReturn:
    raise TraceTimeRefusal(text)


_refuse_at_trace_time._dynamo_marked_constant = True  # type: ignore[attr-defined]  # an attribute that dynamo looks for


def number(value: int | float | torch.SymInt | torch.SymFloat) -> int | float:
    """``value`` for a text: in a traced graph, what the symbol stands for in this call.

    Only for calls that fail, since a graph is then specialized to the number.
    """
    if torch.compiler.is_dynamo_compiling() or isinstance(value, (torch.SymInt, torch.SymFloat)):
        if isinstance(value, bool):
            return value
        from torch.fx.experimental.symbolic_shapes import guard_scalar  # it imports sympy

        return guard_scalar(value)
    return value


def sizes_text(sizes: Iterable[int | str]) -> str:
    """``[B, 16]``; a letter stands for any size."""
    return (
        "["
        + ", ".join([size if isinstance(size, str) else f"{number(size)}" for size in sizes])
        + "]"
    )


def describe(value: object) -> str:
    """What an error says of ``value``: dtype, shape and device of a tensor, else its type."""
    if isinstance(value, Tensor):
        dtype = str(value.dtype).removeprefix("torch.")
        return f"a {dtype} tensor of shape {shape_text(value)} on {value.device}"
    return type(value).__name__


def shape_text(value: Tensor) -> str:
    return sizes_text(value.shape)


def require_tensor(argument: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise bad(argument, "a tensor", type(value).__name__)


def check_offsets(offsets: Tensor, num_values: int, num_behaviors: int, max_len: int) -> None:
    """Reads ``offsets`` (a host sync on CUDA) and raises ValueError where its data are wrong.

    offsets ``[M*U+1]`` must start at 0, never decrease and end at ``num_values``; no segment may be
    longer than ``max_len``.
    """
    offsets = offsets.detach()
    if offsets[0].item() != 0:
        raise bad("offsets", "offsets[0] == 0", offsets[0].item())
    # Compared, not subtracted: the difference of two arbitrary integers may overflow.
    decreasing = offsets[1:] < offsets[:-1]
    if decreasing.any():
        at = int(decreasing.nonzero()[0].item()) + 1
        before, after = offsets[at - 1 : at + 1].tolist()
        raise bad(
            "offsets",
            "non-decreasing values",
            f"offsets[{at}] = {after} after offsets[{at - 1}] = {before}",
        )
    if offsets[-1].item() != num_values:
        raise bad("offsets", f"offsets[-1] == len(values) = {num_values}", offsets[-1].item())
    # In int64: compared with int32, a large max_len would wrap.
    lengths = offsets.to(torch.int64).diff()
    too_long = lengths > max_len
    if too_long.any():
        at = int(too_long.nonzero()[0].item())
        num_users = lengths.numel() // num_behaviors
        raise bad(
            "max_len",
            "an upper bound of every sequence length",
            f"max_len = {max_len} and a sequence of length {lengths[at].item()} "
            f"(behavior {at // num_users}, user {at % num_users})",
        )


def check_user_index(user_index: Tensor, num_users: int) -> None:
    """Reads ``user_index`` and raises ValueError where a value is outside ``[0, num_users)``."""
    user_index = user_index.detach()
    outside = (user_index < 0) | (user_index >= num_users)
    if outside.any():
        at = int(outside.nonzero()[0].item())
        raise bad(
            "user_index",
            f"values in [0, {num_users})",
            f"user_index[{at}] = {user_index[at].item()}",
        )


def can_read(tensor: Tensor) -> bool:
    """Whether the values of ``tensor`` can be looked at here and now without a device sync."""
    if torch.compiler.is_compiling() or tensor.device.type != "cpu":
        return False
    return type(tensor) in (Tensor, torch.nn.Parameter)
