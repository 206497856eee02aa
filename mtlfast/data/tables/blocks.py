"""Large text files in blocks of whole lines; a malformed line is found by halving its block.

A parser sees a block at a time, so that it can be vectorised, and need not know which line it
fails on: a block that it rejects is cut in two until single lines are left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mtlfast.data.compressed import OnError, open_binary

__all__ = ["BLOCK_BYTES", "LineReader", "Malformed"]

BLOCK_BYTES = 1 << 24

T = TypeVar("T")


class Malformed(Exception):
    """A parser's refusal of a block. For a block of one line its text is shown to the user."""


@dataclass
class LineReader(Generic[T]):
    """Parses files in the format of ``parse``, in bounded memory.

    Args:
        parse: makes something of a block of whole lines, or raises :class:`Malformed`.
        on_error: what to do with a malformed line: raise, or skip and count it.
        header: the files' first line; None where they have none.
        on_read: called with the number of bytes of each read, for progress bars.
        on_skip: called for each line that is skipped.
        block_bytes: size of a block of decompressed text, about; four times that is the longest
            line.
    """

    parse: Callable[[bytes], T]
    on_error: OnError = "raise"
    header: str | None = None
    on_read: Callable[[int], None] | None = None
    on_skip: Callable[[], None] | None = None
    block_bytes: int = BLOCK_BYTES

    def read(self, path: Path) -> Iterator[T]:
        """What ``parse`` makes of each block of the file, in order.

        Raises:
            ValueError: naming the file and the line (1 is the first) of the first malformed line.
        """
        first_line = 1
        for block in self._blocks(path):
            if first_line == 1 and self.header is not None:
                found, _, block = block.partition(b"\n")
                _check_header(path, self.header, found)
                first_line = 2
            if block:
                yield from self._parse(path, block, first_line)
                first_line += block.count(b"\n")

    def _blocks(self, path: Path) -> Iterator[bytes]:
        rest = b""
        with open_binary(path, self.on_read) as file:
            while data := file.read(self.block_bytes):
                cut = data.rfind(b"\n") + 1
                if cut:
                    yield rest + data[:cut]
                    rest = data[cut:]
                else:
                    rest += data
                    if len(rest) > 4 * self.block_bytes:
                        raise ValueError(
                            f"{path}: expected lines of at most {4 * self.block_bytes} bytes, "
                            "found a longer one"
                        )
        if rest:
            yield rest

    def _parse(self, path: Path, block: bytes, first_line: int) -> Iterator[T]:
        try:
            parsed = self.parse(block)
        except Malformed as error:
            middle = len(block) // 2
            cut = block.find(b"\n", middle, len(block) - 1) + 1 or block.rfind(b"\n", 0, middle) + 1
            if cut:
                yield from self._parse(path, block[:cut], first_line)
                yield from self._parse(path, block[cut:], first_line + block.count(b"\n", 0, cut))
                return
            if self.on_error == "raise":
                raise ValueError(f"{path}, line {first_line}: {error}") from error
            if self.on_skip is not None:
                self.on_skip()
        else:
            yield parsed


def _check_header(path: Path, expected: str, found: bytes) -> None:
    text = found.decode("utf-8", "replace").rstrip("\r").lstrip("\ufeff")
    if text != expected:
        raise ValueError(f"{path}, line 1: expected the header {expected!r}, found {text!r}")
