"""Run folders: one per run, never overwritten."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["checkpoint_home", "data_label", "new_run_folder"]


def new_run_folder(chosen: str | Path | None, model: str, data: str, root: str = "runs") -> Path:
    """A new, empty folder for a run.

    Args:
        chosen: the folder to use; ``None`` takes the next free ``runs/<model>-<data>-<number>``.

    Raises:
        ValueError: if ``chosen`` exists and holds anything, or cannot be made.
    """
    if chosen is not None:
        path = Path(chosen)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ValueError(
                f"run_dir: expected a new or empty folder, found {path} with content; "
                f"choose another, or continue that run with --resume {path}"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            expected = "a folder that can be made"
            raise ValueError(
                f"run_dir: expected {expected}, found {path}: {error.strerror}"
            ) from None
        return path
    number = 1
    while True:
        path = Path(root) / f"{model}-{data_label(data)}-{number:03d}"
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            number += 1


def data_label(data: str) -> str:
    """A short file name for a data source: "synthetic:tenrec" -> "tenrec"."""
    kind, _, rest = data.partition(":")
    return re.sub(r"[^A-Za-z0-9]+", "-", rest if kind == "synthetic" else kind).strip("-")


def checkpoint_home(file: Path) -> Path:
    """The run folder of a checkpoint; the folder it lies in, where that is no run's."""
    return file.parent.parent if file.parent.name == "checkpoints" else file.parent
