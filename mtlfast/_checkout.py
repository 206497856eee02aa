"""A source checkout on the path works like an installation.

An installation maps the folder ``kernels/`` to ``mtlfast.kernels`` (setup.py); where nothing was
installed the folder lies beside the package.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def find_kernels() -> None:
    """Makes ``mtlfast.kernels`` importable from the checkout. Does nothing where it already is."""
    name = "mtlfast.kernels"
    folder = Path(__file__).resolve().parents[1] / "kernels"
    if name in sys.modules or importlib.util.find_spec(name) or not folder.is_dir():
        return
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
