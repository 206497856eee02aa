"""Finds what lies beside the package in a source checkout, but not in an installed wheel."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import mtlfast

__all__ = ["NoCheckoutError", "checkout_root", "import_benchmarks"]


class NoCheckoutError(ValueError):
    """The package is installed without its source checkout."""


def checkout_root() -> Path:
    """The folder of the source checkout this package runs from.

    Raises:
        NoCheckoutError: if the package was installed as a wheel.
    """
    root = Path(mtlfast.__file__).resolve().parents[1]
    if not (root / "benchmarks" / "__init__.py").is_file():
        raise NoCheckoutError(
            "the benchmarks are not part of the installed package: clone the repository and run "
            "this command there (pip install -e .)"
        )
    return root


def import_benchmarks(module: str = "") -> ModuleType:
    """``benchmarks`` of the source checkout, or its submodule ``module``.

    Raises:
        NoCheckoutError: if the package was installed as a wheel.
    """
    root = str(checkout_root())
    if root not in sys.path:
        sys.path.insert(0, root)
    return importlib.import_module("benchmarks" + (f".{module}" if module else ""))
