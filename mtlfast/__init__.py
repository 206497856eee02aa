"""Fused kernels and models for multi-task recommendation on ragged behavior sequences.

Importing this package loads the C++ ops and nothing else; submodules and the names below are
imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mtlfast import _checkout, _extension
from mtlfast._version import __version__
from mtlfast.env import env

if TYPE_CHECKING:
    from mtlfast.fuse import FuseReport, fuse_, register_fusion, unfuse_
    from mtlfast.jagged import JaggedSequences
    from mtlfast.ops import checks, explain

_extension.load()
_checkout.find_kernels()

# Name -> the module that defines it.
_LAZY = {
    "FuseReport": "mtlfast.fuse",
    "JaggedSequences": "mtlfast.jagged",
    "checks": "mtlfast.ops",
    "explain": "mtlfast.ops",
    "fuse_": "mtlfast.fuse",
    "register_fusion": "mtlfast.fuse",
    "unfuse_": "mtlfast.fuse",
}
_SUBMODULES = frozenset(
    {
        "analysis",
        "data",
        "fuse",
        "heads",
        "interactions",
        "jagged",
        "kernels",
        "models",
        "nn",
        "ops",
        "reference",
        "sequence",
        "training",
    }
)

__all__ = [
    "FuseReport",
    "JaggedSequences",
    "__version__",
    "checks",
    "env",
    "explain",
    "fuse_",
    "register_fusion",
    "unfuse_",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"mtlfast.{name}")
    raise AttributeError(f"module 'mtlfast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_SUBMODULES})
