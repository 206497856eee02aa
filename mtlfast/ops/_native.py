"""How a pair of C++ ops becomes one differentiable function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

from ..errors import refuse

_PREFIX = "mtlfast: "


def differentiable(
    op: str,
    *,
    fake_forward: Callable[..., Any],
    fake_backward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """Tells torch what it must know of ``mtlfast::<op>_forward`` and ``mtlfast::<op>_backward``.

    Args:
        op: the stem; the two ops must be loaded.
        fake_forward, fake_backward: shapes and dtypes of the outputs.
        setup_context: as ``torch.library.register_autograd`` takes it.
        backward: likewise, with what runs the backward op as one more argument in front.

    Returns:
        A function of the forward op's arguments. Wrong data are a ValueError; inside compiled
        graphs they stay the RuntimeError of the C++ op.
    """
    forward_name, backward_name = f"mtlfast::{op}_forward", f"mtlfast::{op}_backward"
    forward_op = getattr(torch.ops.mtlfast, f"{op}_forward").default
    backward_op = getattr(torch.ops.mtlfast, f"{op}_backward").default
    first_order_only, vmap_rule = _first_order_only(op), no_vmap(op)

    torch.library.register_fake(forward_name, fake_forward)
    torch.library.register_fake(backward_name, fake_backward)
    torch.library.register_autograd(
        forward_name, partial(backward, backward_op), setup_context=setup_context
    )
    torch.library.register_autograd(backward_name, first_order_only)
    torch.library.register_vmap(forward_name, vmap_rule)
    torch.library.register_vmap(backward_name, vmap_rule)

    # Eager calls take the same formulas through autograd.Function, without the quarter of a
    # millisecond that register_autograd costs for 27 arguments (it reads the default of each from
    # the schema), and with torch.func.grad.
    run_backward = _eager(op, backward_op, lambda ctx, inputs, output: None, first_order_only)
    run_forward = _eager(op, forward_op, setup_context, partial(backward, run_backward))

    def call(*inputs: Any) -> Any:
        if torch.compiler.is_compiling():
            refuse_forward_mode(op)
            return forward_op(*inputs)
        return with_value_errors(run_forward, *inputs)

    return call


def eager_only(
    op: str,
    forward_op: Callable[..., Any],
    *,
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    """A forward op with a backward that graphs cannot hold: sparse gradients, updates in place."""
    run = _eager(op, forward_op, setup_context, backward)
    return lambda *inputs: with_value_errors(run, *inputs)


def with_value_errors(function: Callable[..., Any], *inputs: Any) -> Any:
    """Calls ``function``; wrong data that the C++ op found are a ValueError."""
    try:
        return function(*inputs)
    except RuntimeError as error:
        _, prefix, text = str(error).partition(_PREFIX)
        if not prefix:
            raise
        raise ValueError(text.partition("\n")[0]) from None


def _eager(
    name: str,
    op: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Any]:
    def forward(*inputs: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op(*inputs)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        _no_forward_mode(name)

    def forward_and_setup(ctx: Any, *inputs: Any) -> Any:
        output = forward(*inputs)
        setup_context(ctx, inputs, output)
        return output

    common = {
        "jvp": staticmethod(jvp),
        "backward": staticmethod(backward),
        "vmap": staticmethod(no_vmap(name)),
    }
    apart = {"forward": staticmethod(forward), "setup_context": staticmethod(setup_context)}
    in_one = {"forward": staticmethod(forward_and_setup)}
    # torch.func needs the context set up apart. torch looks at the signature of such a function in
    # every call, which takes longer than a small forward.
    for_torch_func: Any = type(f"{name}_eager", (torch.autograd.Function,), common | apart)
    function: Any = type(f"{name}_eager", (torch.autograd.Function,), common | in_one)

    def call(*inputs: Any) -> Any:
        differentiated = torch.is_grad_enabled() and any(
            isinstance(value, torch.Tensor) and value.requires_grad for value in inputs
        )
        # Below autograd tangents would be lost without a word.
        if differentiated or _in_forward_mode():
            if torch._C._are_functorch_transforms_active():
                return for_torch_func.apply(*inputs)
            return function.apply(*inputs)
        return forward(*inputs)

    return call


def _in_forward_mode() -> bool:
    """Whether torch.func.jvp or a dual level of torch.autograd.forward_ad is active."""
    return forward_ad._current_level >= 0


def refuse_forward_mode(op: str) -> None:
    """Raises RuntimeError in a graph under forward mode, whose tangents an op would drop."""
    if _in_forward_mode():
        _no_forward_mode(op)


def _no_forward_mode(op: str) -> NoReturn:
    refuse(
        f"{op}: fused backends and compiled graphs have no forward-mode gradients; "
        "use backend='reference', not compiled, where torch.func.jvp or dual numbers are needed"
    )


def _first_order_only(op: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(
            f"{op}: fused backends have first-order gradients only; "
            "use backend='reference' where a gradient of a gradient is needed"
        )

    return backward


def no_vmap(op: str) -> Callable[..., Any]:
    def rule(info: Any, in_dims: Any, *args: Any) -> Any:
        raise NotImplementedError(
            f"{op}: fused backends cannot run under torch.vmap; the op is batched already, "
            "or use backend='reference'"
        )

    return rule
