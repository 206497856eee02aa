"""What a wheel holds: every Python file, kernels as a subpackage, both libraries, no sources."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mtlfast import _extension

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    if not _extension.cpu_ops_available():
        pytest.skip("mtlfast was installed without its C++ part")
    # Plain, with build isolation: the build must find the installed torch by itself. Object files
    # of an earlier build in this tree are used again.
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "-q",
        "-w",
        str(folder),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_the_wheel_holds_exactly_the_package(wheel):
    names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    expected = {f"mtlfast/{p.relative_to(ROOT / 'mtlfast')}" for p in ROOT.glob("mtlfast/**/*.py")}
    expected |= {
        f"mtlfast/kernels/{p.relative_to(ROOT / 'kernels')}" for p in ROOT.glob("kernels/**/*.py")
    }
    libraries = {n for n in names if n.endswith(".so")}
    assert names - libraries - {"mtlfast/py.typed"} == expected
    assert "mtlfast/kernels/__init__.py" in names
    assert "mtlfast/lib/libmtlfast_cpu.so" in libraries
    expected = {"mtlfast/lib/libmtlfast_cpu", "mtlfast/_C"}
    if _extension.cuda_library_built():
        expected.add("mtlfast/lib/libmtlfast_cuda")
    assert {n.split(".")[0] for n in libraries} == expected


def test_the_wheel_is_for_this_platform_and_names_what_it_needs(wheel):
    (metadata,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    text = wheel.read(metadata).decode()
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:")]
    core = sorted(line.split()[1].split(">")[0] for line in required if "extra ==" not in line)
    assert core == ["numpy", "torch"]
    assert not str(wheel.filename).endswith("none-any.whl")
