"""Writing files so that a crash leaves either the old content or the new one, never a mixture."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["write_atomically", "write_csv", "write_json", "write_text"]


def write_atomically(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place in one move.

    The data is on the disk before the move and the move is on the disk before this returns, so
    a crash or a power cut at any moment leaves a complete file: the old one or the new one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8"))

    write_atomically(path, write)


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV table, atomically. ``None`` becomes an empty cell."""
    import io

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())


def _sync_folder(folder: Path) -> None:
    # The new name is an entry of the folder; without this it may be lost in a power cut.
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # platforms that cannot open a folder
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
