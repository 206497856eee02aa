"""Opening text files, compressed or not, and what to do with their malformed rows."""

from __future__ import annotations

import gzip
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Literal, cast

__all__ = ["ENDINGS", "OnError", "open_binary"]

OnError = Literal["raise", "skip"]
"""What to do with a malformed row: raise, or skip and count it."""
ENDINGS = ("", ".gz", ".xz", ".zip")


@contextmanager
def open_binary(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[IO[bytes]]:
    """The content of a plain, ``.gz`` or ``.xz`` file, or of the only file in a ``.zip``.

    Args:
        on_read: called with the number of bytes of each read from the disk, for progress bars.

    Raises:
        ValueError: naming the file, if it turns out to be broken while it is open.
    """
    try:
        with open(path, "rb") as raw:
            file = raw if on_read is None else cast("BinaryIO", _Counted(raw, on_read))
            with ExitStack() as stack:
                yield _decompressed(path, file, stack)
    except (
        EOFError,
        lzma.LZMAError,
        gzip.BadGzipFile,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise ValueError(f"{path}: expected a whole compressed file, found: {error}") from error


def _decompressed(path: Path, file: BinaryIO, stack: ExitStack) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast("IO[bytes]", stack.enter_context(gzip.open(file)))
    if path.suffix == ".xz":
        return stack.enter_context(lzma.open(file))
    if path.suffix == ".zip":
        archive = stack.enter_context(zipfile.ZipFile(file))
        return stack.enter_context(archive.open(_only(path, archive)))
    return file


def _only(path: Path, archive: zipfile.ZipFile) -> str:
    names = [name for name in archive.namelist() if not name.endswith("/")]
    if len(names) != 1:
        raise ValueError(f"{path}: expected one file in the archive, found {names}")
    return names[0]


class _Counted:
    """A file that tells how much was read from it."""

    def __init__(self, file: BinaryIO, on_read: Callable[[int], None]) -> None:
        self._file = file
        self._on_read = on_read

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._on_read(len(data))
        return data

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)
