"""Checkpoints: complete or absent on disk, and enough inside to go on as if nothing happened."""

from __future__ import annotations

import random
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy import random as numpy_random

from mtlfast.training.files import write_atomically

__all__ = [
    "CheckpointError",
    "capture_rng",
    "find_checkpoint",
    "load_checkpoint",
    "prune",
    "restore_rng",
    "save_checkpoint",
]

FORMAT = "mtlfast.checkpoint"
VERSION = 1
_NAME = re.compile(r"step-(\d+)\.pt")
_KEYS = ("config", "spec", "model", "optimizers", "rng", "progress")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the text names the file and the reason."""


def checkpoint_name(step: int) -> str:
    """File name of the checkpoint after ``step`` steps; names sort by step."""
    return f"step-{step:09d}.pt"


def save_checkpoint(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` atomically: a crash while saving leaves what was there before.

    Raises:
        OSError: naming the file, where it cannot be written, such as on a full disk.
    """
    record = {"format": FORMAT, "version": VERSION, **content}
    try:
        write_atomically(path, lambda file: torch.save(record, file))
    except (OSError, RuntimeError) as error:
        # torch.save covers what the disk said by an error of its own.
        said: BaseException | None = error
        while said is not None and not isinstance(said, OSError):
            said = said.__context__
        if said is None or said.errno is None:
            raise
        raise OSError(said.errno, said.strerror, str(path)) from None


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint; runs no code from the file (``weights_only``).

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        _check_sums(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({reason[0] if reason else type(error).__name__})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a checkpoint of mtlfast")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"{path}: expected checkpoint version {VERSION}, found {content.get('version')}"
        )
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise CheckpointError(f"{path}: incomplete, without {', '.join(missing)}")
    return content


def _check_sums(path: Path) -> None:
    """The file is a zip archive with a checksum per entry, which ``torch.load`` does not verify."""
    with zipfile.ZipFile(path) as archive:
        entry = archive.testzip()
    if entry is not None:
        raise ValueError(f"wrong checksum of {entry}")


def find_checkpoint(path: str | Path) -> Path:
    """A checkpoint file itself, or the latest one of a run folder.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint or run folder")
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    found = numbered(folder)
    if not found:
        raise CheckpointError(f"{path}: no checkpoint in this folder yet")
    return found[-1]


def numbered(folder: Path) -> list[Path]:
    """The checkpoints ``step-*.pt`` of a folder, oldest first."""
    return sorted(p for p in folder.glob("step-*.pt") if _NAME.fullmatch(p.name))


def prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` latest numbered checkpoints, and leftovers of crashed saves."""
    for path in numbered(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".*.partial"):
        path.unlink(missing_ok=True)


def capture_rng() -> dict[str, Any]:
    """State of every global random generator, as tensors and plain values."""
    kind: Any
    keys: Any
    # A data source of the user may draw from NumPy's global generator.
    kind, keys, position, has_gauss, cached = numpy_random.get_state()  # noqa: NPY002
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(keys.copy()), position, has_gauss, cached],
        "python": [version, list(internal), gauss],
    }


def restore_rng(state: Mapping[str, Any]) -> None:
    """Inverse of :func:`capture_rng`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    numpy_random.set_state(  # noqa: NPY002
        (kind, keys.numpy(), position, has_gauss, cached)
    )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
