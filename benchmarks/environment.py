"""Where results come from: machine, versions, commit; and the identity of the code they time."""

from __future__ import annotations

import datetime
import functools
import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import mtlfast

from . import allocator

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
_PACKAGE = Path(mtlfast.__file__).resolve().parent


def environment() -> dict[str, Any]:
    """Everything one needs to know to judge or repeat the numbers."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(),
        "mtlfast": mtlfast.env().as_dict(),
        "caches": _caches(),
        "compiler": _compiler(),
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "timing_allocator": allocator.TUNABLES["tuned"],
        "memory_allocator": allocator.TUNABLES["returning"],
    }


def device_slug() -> str:
    """A folder name for this kind of machine: CPU model, vendor's generation, cores."""
    info = _cpuinfo()
    name = info.get("model name") or str(mtlfast.env().machine["cpu"])
    # Virtual machines hide the model's name; family and model still tell the generation.
    generation = "-".join(
        f"{short}{info[key]}" for short, key in (("f", "cpu family"), ("m", "model")) if key in info
    )
    text = f"{name} {generation} {os.cpu_count()}c"
    text = re.sub(r"\((r|tm)\)|\bcpu\b|\bprocessor\b|@.*?ghz", " ", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def commit() -> str:
    """The checkout's commit, with "-dirty" where files differ from it; "" outside of git."""
    try:
        git = ["git", "-C", str(_HERE), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# Folders of csrc/ whose headers the kernels of a stem are made of, besides its own and common/.
_ALSO_READS = {"gated_cross": ("stacked_linear",)}


@functools.cache
def fingerprint(stem: str) -> str:
    """Changes when something that ``stem`` times changes: rows with another one are out of date.

    An op is what its own files and the common ones say; a training step is all of the package.
    """
    digest = hashlib.sha256(torch.__version__.encode())
    files = {_HERE / "interest.py", _HERE / "inputs.py", _HERE / "timing.py", _ROOT / "setup.py"}
    whole = stem.endswith("_training")
    folders = ("ops", "reference", "nn", "heads", "interactions", "models")
    for folder in (_HERE / "baselines", *(_PACKAGE / name for name in folders)):
        own = (f"{stem}.py", f"{stem}/*.py", "_native.py", "_backend.py")
        files |= {p for pattern in (("**/*.py",) if whole else own) for p in folder.glob(pattern)}
    native = ("",) if whole else ("common", stem, *_ALSO_READS.get(stem, ()))
    for folder in (_ROOT / "csrc" / name for name in native):
        files |= {p for p in folder.rglob("*") if p.suffix in (".h", ".cpp")}
    for file in sorted(files):
        digest.update(file.name.encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _cpuinfo() -> dict[str, str]:
    """The fields of the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _caches() -> dict[str, str]:
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = (
                (index / name).read_text().strip() for name in ("level", "type", "size")
            )
        except OSError:
            continue
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def _compiler() -> str:
    for name in ("c++", "g++", "clang++"):
        try:
            result = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return result.stdout.splitlines()[0]
    return "none"
