"""Turning a module into another one in place: the object stays, its class and contents change.

So every reference to the module stays good, be it a parent's, a second name's, a plain list's or
the caller's own, and the model itself may be the one that changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from mtlfast.errors import bad

_RECORD = (
    "_mtlfast_unfused"  # in a module's __dict__, where state_dict and named_modules do not look
)
_CALL_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_HOOKS = tuple(name for name in nn.Module().__dict__ if "hook" in name)


@dataclass
class Replaced:
    """What a module was: an object of its old class with its old contents."""

    original: nn.Module
    backend: str
    """What the replacement was asked to run on."""
    own: frozenset[str]
    """Names of the replacement's own attributes; all others are the module's."""


def replaced(module: nn.Module) -> Replaced | None:
    """The record of a module that :func:`exchange` has changed."""
    return module.__dict__.get(_RECORD)


def obstacle(module: nn.Module, fused_class: type[nn.Module]) -> str:
    """Why no module of ``fused_class`` can take the place of ``module``, whatever it computes."""
    for name, inner in module.named_modules():
        owner = f"{name!r} inside" if name else "it"
        if "forward" in inner.__dict__:
            return f"{owner} has a forward of its own, patched onto the object"
        if inner.__dict__.get("_compiled_call_impl") is not None:
            return f"{owner} is compiled; fuse first, compile then"
        if any(is_lazy(p) for p in inner._parameters.values() if p is not None):
            return f"{owner} has parameters without a shape yet"
        if name and any(inner.__dict__.get(hooks) for hooks in _CALL_HOOKS):
            return f"{owner} has hooks, which the fused module would not call"
    try:
        object.__setattr__(object.__new__(type(module)), "__class__", fused_class)
    except TypeError as error:
        return f"objects of its class cannot change it ({error})"
    return ""


def check(module: nn.Module, fused: object, fusion: type[nn.Module]) -> None:
    """Refuse what ``fusion.from_unfused`` has made where it would not be the same model.

    Gives ``fused`` the hooks of ``module``.

    Raises:
        ValueError: it is of another class, or its parameters, buffers or ``state_dict`` keys are
            not those of ``module``, or it has hooks of its own.
    """
    argument = f"{fusion.__name__}.from_unfused(module, backend)"
    if not isinstance(fused, nn.Module) or type(fused) is not fusion:
        raise bad(argument, f"a {fusion.__name__}", type(fused).__name__)
    if fused is module:
        raise bad(argument, "a new module", "the one that was to be replaced")
    for kind, theirs, ours in (
        ("parameter", dict(_parameters(module)), dict(_parameters(fused))),
        ("buffer", dict(_buffers(module)), dict(_buffers(fused))),
    ):
        for name, tensor in theirs.items():
            if name not in ours:
                raise bad(argument, f"the {kind} {name!r} of the module", "none of that name")
            if ours[name] is not tensor:
                raise bad(
                    argument,
                    f"the module's own {kind} {name!r}",
                    "another tensor; optimizers would not see it",
                )
        if kind == "parameter" and list(ours) != list(theirs):
            expected = f"the module's parameters in their order, {list(theirs)}"
            raise bad(argument, expected, list(ours))
    for hooks in _CALL_HOOKS:
        own = fused.__dict__.get(hooks)
        if own and own is not module.__dict__.get(hooks):
            raise bad(argument, "a module without hooks", f"{len(own)} in {hooks}")
    _hand_hooks(module, fused)  # those of state_dict count
    different = {*module.state_dict(keep_vars=True)} ^ {*fused.state_dict(keep_vars=True)}
    if different:
        raise bad(argument, "the module's state_dict keys", f"a difference in {sorted(different)}")


def exchange(module: nn.Module, fused: nn.Module, backend: str) -> None:
    """Make ``module`` what ``fused``, as :func:`check` left it, is; in the training mode it has."""
    original = object.__new__(type(module))
    object.__setattr__(original, "__dict__", module.__dict__)
    kept = {id(inner) for inner in original.modules()}
    for inner in fused.modules():
        if id(inner) not in kept:
            inner.training = original.training
    old, new = original.__dict__, fused.__dict__
    own = frozenset(name for name in new if name not in old or new[name] is not old[name])
    new[_RECORD] = Replaced(original, backend, own | {_RECORD})
    _become(module, fused)


def sync(module: nn.Module) -> nn.Module:
    """The original of a changed module, with the parameters, buffers and modes of now.

    And the attributes: trainers leave notes on models.
    """
    record = replaced(module)
    if record is None:
        raise RuntimeError("the module was not replaced")
    original = record.original
    for name, value in module.__dict__.items():
        if name not in record.own:
            original.__dict__[name] = value
    for name, parameter in _parameters(module):
        _put(original, name, parameter, "_parameters")
    for name, buffer in _buffers(module):
        _put(original, name, buffer, "_buffers")
    now = dict(module.named_modules(remove_duplicate=False))
    for name, inner in original.named_modules(remove_duplicate=False):
        inner.training = now.get(name, module).training
    _hand_hooks(module, original)
    return original


def restore(module: nn.Module) -> None:
    """Undo :func:`exchange`."""
    _become(module, sync(module))


def _become(module: nn.Module, other: nn.Module) -> None:
    # Not setattr: that of nn.Module looks names up in the dict that is about to change.
    object.__setattr__(module, "__dict__", other.__dict__)
    object.__setattr__(module, "__class__", type(other))


def _hand_hooks(source: nn.Module, target: nn.Module) -> None:
    """The very dicts: the handles that registering a hook returned must keep working."""
    for name in _HOOKS:
        if name in source.__dict__:
            target.__dict__[name] = source.__dict__[name]


def _put(root: nn.Module, name: str, tensor: Tensor, kind: str) -> None:
    prefix, _, leaf = name.rpartition(".")
    try:
        owner = root.get_submodule(prefix)
    except AttributeError:  # the replacement's own
        return
    if leaf in owner.__dict__[kind]:
        owner.__dict__[kind][leaf] = tensor


def _parameters(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_parameters(remove_duplicate=False)


def _buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_buffers(remove_duplicate=False)
