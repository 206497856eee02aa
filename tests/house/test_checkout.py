"""A checkout that was never installed, only put on the path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
# An editable installation would find the folder of the real checkout.
sys.meta_path = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
sys.path.insert(0, sys.argv[1])
import mtlfast.ops, mtlfast.kernels.aot
print(mtlfast.__file__, mtlfast.kernels.__file__)
"""


def test_kernels_are_found_beside_the_package(tmp_path: Path) -> None:
    for name in ("mtlfast", "kernels"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr
    package, kernels = run.stdout.split()
    assert Path(package) == tmp_path / "mtlfast" / "__init__.py"
    assert Path(kernels) == tmp_path / "kernels" / "__init__.py"
