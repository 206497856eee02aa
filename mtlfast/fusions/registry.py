"""Which class replaces which."""

from __future__ import annotations

import importlib
import inspect
import sys
from typing import Any, TypeVar

from torch import nn

from mtlfast.errors import bad

_Fusion = TypeVar("_Fusion", bound=type[nn.Module])

# Qualified name of a class -> the fusion, in a module that may import that class's library: it is
# imported when a model has such a module, so the library is there.
_BUILT_IN = {
    "torch_rechub.models.multi_task.mmoe.MMOE": ("mtlfast.fusions.torch_rechub", "FusedMMOE"),
}

_registered: list[type[nn.Module]] = []


def register_fusion(cls: _Fusion) -> _Fusion:
    """Teach :func:`fuse_` a replacement for a module class; a decorator.

    ``cls`` is a subclass of ``torch.nn.Module`` with

    ``replaces``
        the class it stands in for, or its qualified name ``"package.module.Class"``, so that the
        library need not be imported, or a tuple of these. Exactly these classes: a subclass may
        compute something else.
    ``from_unfused(module, backend)``
        a class or static method that returns the ``cls`` that computes what ``module`` does, on
        ``backend``. It has the module's own parameters and buffers under the same names, parameters
        in the same order, and does not keep the module itself, which is what changes.
    ``why_not(module, backend)``
        optional; a class or static method that returns None, or the reason why this module cannot
        be replaced.

    What is registered later comes first, before what the library knows by itself; registering a
    class of the same name again replaces the earlier one.

    Example::

        import torch
        from torch import nn

        import mtlfast
        from mtlfast.ops import stacked_linear

        class Gates(nn.Module):  # somebody's
            def __init__(self, in_dim, num_experts, num_tasks):
                super().__init__()
                self.weight = nn.Parameter(torch.randn(num_tasks, num_experts, in_dim))

            def forward(self, x):
                return torch.stack([(x @ w.t()).softmax(-1) for w in self.weight])

        @mtlfast.register_fusion
        class FusedGates(nn.Module):
            replaces = Gates

            @staticmethod
            def why_not(module, backend):
                return "float64" if module.weight.dtype == torch.float64 else None

            @classmethod
            def from_unfused(cls, module, backend):
                fused = cls()
                fused.weight, fused.backend = module.weight, backend
                return fused

            def forward(self, x):
                return stacked_linear(x[None], self.weight, backend=self.backend).softmax(-1)

        mtlfast.fuse_(model)

    Raises:
        ValueError: ``cls`` lacks something of this, or has it in another form.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise bad("cls", "a subclass of torch.nn.Module", _name(cls))
    for target in _targets(cls):
        if isinstance(target, str):
            if not all(part.isidentifier() for part in target.split(".")) or "." not in target:
                raise bad("cls.replaces", "a name 'package.module.Class'", repr(target))
        elif not (isinstance(target, type) and issubclass(target, nn.Module)):
            raise bad("cls.replaces", "module classes or their qualified names", _name(target))
        if target is cls:
            raise bad("cls.replaces", "another class", "the class itself")
    _check_method(cls, "from_unfused", required=True)
    _check_method(cls, "why_not", required=False)
    name = qualified_name(cls)
    _registered[:] = [known for known in _registered if qualified_name(known) != name]
    _registered.append(cls)
    return cls


def fusion_for(module_class: type[nn.Module]) -> type[nn.Module] | None:
    """The fusion that replaces modules of exactly this class."""
    for fusion in reversed(_registered):
        if any(_is(module_class, target) for target in _targets(fusion)):
            return fusion
    for target, (module, name) in _BUILT_IN.items():
        if _is(module_class, target):
            return getattr(importlib.import_module(module), name)
    return None


def known_base(module_class: type[nn.Module]) -> type[nn.Module] | None:
    """The nearest base class that a fusion replaces."""
    for base in module_class.__mro__[1:]:
        if issubclass(base, nn.Module) and base is not nn.Module and fusion_for(base) is not None:
            return base
    return None


def reason_against(fusion: Any, module: nn.Module, backend: str) -> str:
    """What the fusion has against this module; empty for nothing."""
    why_not = getattr(fusion, "why_not", None)
    reason = None if why_not is None else why_not(module, backend)
    if reason is not None and not (isinstance(reason, str) and reason):
        raise bad(f"{fusion.__name__}.why_not(module, backend)", "None or a reason", repr(reason))
    return reason or ""


def qualified_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _targets(fusion: Any) -> tuple[Any, ...]:
    if not hasattr(fusion, "replaces"):
        raise bad("cls.replaces", "the class that it replaces, or its qualified name", "nothing")
    targets = fusion.replaces if isinstance(fusion.replaces, tuple) else (fusion.replaces,)
    if not targets:
        raise bad("cls.replaces", "at least one class", "an empty tuple")
    return targets


def _is(module_class: type[nn.Module], target: Any) -> bool:
    if not isinstance(target, str):
        return module_class is target
    if qualified_name(module_class) == target:
        return True
    # A package may offer the class under a shorter name than that of the file that defines it.
    package, _, name = target.rpartition(".")
    return getattr(sys.modules.get(package), name, None) is module_class


def _check_method(cls: type, name: str, *, required: bool) -> None:
    argument = f"cls.{name}"
    method = inspect.getattr_static(cls, name, None)
    if method is None:
        if required:
            raise bad(argument, "a class or static method (module, backend)", "nothing")
        return
    if not isinstance(method, (classmethod, staticmethod)):
        raise bad(argument, "a class or static method (module, backend)", _name(method))
    try:
        inspect.signature(getattr(cls, name)).bind("module", "backend")
    except TypeError:
        found = str(inspect.signature(getattr(cls, name)))
        raise bad(argument, "the arguments (module, backend)", found) from None


def _name(value: object) -> str:
    return value.__qualname__ if isinstance(value, type) else type(value).__name__
