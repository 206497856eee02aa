"""Packaging: what pyproject.toml cannot say (the native build, and `kernels/` as a subpackage)."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "csrc"))

import native_build as native  # noqa: E402  (csrc/native_build.py, found through the path above)

# MTLFAST_BUILD_EXTENSION=0 asks for the pure Python package; nothing else ever drops the C++ part.
WITH_EXTENSION = os.environ.get("MTLFAST_BUILD_EXTENSION", "1") != "0"


class Metadata(dist_info):
    """The first thing an installation asks for: without torch it ends here, not after downloads."""

    def run(self) -> None:
        if WITH_EXTENSION:
            native.find_torch()
        super().run()


class PythonBuild(build_py):
    """Starts from an empty folder: a file deleted from the sources must not live on in a wheel."""

    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(Path(self.build_lib) / "mtlfast", ignore_errors=True)
        super().run()


class NativeBuild(build_ext):
    """Compiles with ninja and puts the libraries into the package (or the source tree for -e)."""

    def run(self) -> None:
        if not self.extensions:
            return
        native.build_into(self._package_dir())

    def _package_dir(self) -> Path:
        return ROOT / "mtlfast" if self.inplace else Path(self.build_lib) / "mtlfast"

    def get_outputs(self) -> list[str]:
        return [str(self._package_dir() / name) for name in native.output_names()]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        built = Path(self.build_lib) / "mtlfast"
        return {str(built / n): str(ROOT / "mtlfast" / n) for n in native.output_names()}


packages = find_packages(str(ROOT), include=["mtlfast", "mtlfast.*"])
kernels = [
    "mtlfast.kernels",
    *("mtlfast.kernels." + p for p in find_packages(str(ROOT / "kernels"))),
]

setup(
    packages=packages + kernels,
    package_dir={"mtlfast": "mtlfast", "mtlfast.kernels": "kernels"},
    package_data={"mtlfast": ["py.typed"]},
    ext_modules=[Extension("mtlfast._C", ["csrc/bindings.cpp"])] if WITH_EXTENSION else [],
    cmdclass={"dist_info": Metadata, "build_py": PythonBuild, "build_ext": NativeBuild},
)
