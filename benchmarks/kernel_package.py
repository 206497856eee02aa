"""Makes ``mtlfast.kernels`` importable from a checkout that was never installed.

An installation maps the folder ``kernels/`` to ``mtlfast.kernels`` (setup.py). On a machine where
nothing may be installed, :func:`kernels_package` does the same for this process.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def kernels_package() -> None:
    """Does nothing where the package is installed."""
    import mtlfast

    name = "mtlfast.kernels"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    mtlfast.kernels = module
