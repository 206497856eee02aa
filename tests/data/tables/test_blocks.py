"""Blocks of lines: the same content for every size, malformed lines found by number."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest

from mtlfast.data.tables.blocks import LineReader, Malformed


def numbers(block: bytes) -> list[int]:
    lines = block.decode().split("\n")
    lines = lines[:-1] if lines[-1] == "" else lines
    if bad := [line for line in lines if not line.isdecimal()]:
        raise Malformed(f"expected a number, found {bad[0]!r}")
    return [int(line) for line in lines]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lines.csv"


@pytest.mark.parametrize("size", [3, 4, 7, 50, 10_000])
@pytest.mark.parametrize("end", ["", "\n"])
def test_every_line_comes_once_and_in_order(file: Path, size: int, end: str) -> None:
    file.write_text("\n".join(map(str, range(500))) + end)
    read: list[int] = []
    blocks = list(LineReader(numbers, on_read=read.append, block_bytes=size).read(file))
    assert list(chain(*blocks)) == list(range(500))
    assert max(map(len, blocks)) <= 1 + size
    assert sum(read) == file.stat().st_size


@pytest.mark.parametrize("size", [6, 40, 10_000])
@pytest.mark.parametrize("bad", [[0], [99], [17, 18, 60], [31, 99], list(range(100))])
def test_malformed_lines_are_named_or_skipped(file: Path, size: int, bad: list[int]) -> None:
    lines = ["x" if i in bad else str(i) for i in range(100)]
    for header in (None, "head"):
        text = "\n".join(lines if header is None else [header, *lines])
        for end in ("", "\n"):
            file.write_text(text + end)
            line = bad[0] + (1 if header is None else 2)
            with pytest.raises(ValueError, match=f"lines.csv, line {line}: .* found 'x'$"):
                list(LineReader(numbers, header=header, block_bytes=size).read(file))
            skipped: list[int] = []
            reader = LineReader(
                numbers, "skip", header, on_skip=lambda s=skipped: s.append(1), block_bytes=size
            )
            assert list(chain(*reader.read(file))) == [i for i in range(100) if i not in bad]
            assert len(skipped) == len(bad)


def test_empty_lines_and_files(file: Path) -> None:
    file.write_text("1\n\n2\n")
    with pytest.raises(ValueError, match="line 2: expected a number, found ''"):
        list(LineReader(numbers).read(file))
    file.write_text("")
    assert list(LineReader(numbers).read(file)) == []


def test_wrong_headers_are_shown(file: Path) -> None:
    file.write_text("tail\n1\n")
    with pytest.raises(ValueError, match="line 1: expected the header 'head', found 'tail'"):
        list(LineReader(numbers, header="head").read(file))
    file.write_bytes(b"\xef\xbb\xbfhead\r\n7\n")
    assert list(LineReader(numbers, header="head").read(file)) == [[7]]


def test_a_file_without_lines_does_not_fill_the_memory(file: Path) -> None:
    file.write_bytes(b"1" * 10_000)
    with pytest.raises(ValueError, match="expected lines of at most 400 bytes"):
        list(LineReader(numbers, block_bytes=100).read(file))
