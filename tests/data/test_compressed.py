"""Compressed files: the same bytes, and a broken one is named."""

from __future__ import annotations

import gzip
import lzma
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mtlfast.data.compressed import ENDINGS, open_binary

TEXT = np.random.default_rng(0).bytes(200_000)


def write(path: Path) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("inside.csv", TEXT)
    else:
        opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
        with opener(path, "wb") as file:  # type: ignore[operator]
            file.write(TEXT)


def read_all(path: Path) -> bytes:
    with open_binary(path) as file:
        return b"".join(iter(lambda: file.read(30_000), b""))


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_bytes(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.csv{ending}"
    write(path)
    read: list[int] = []
    with open_binary(path, read.append) as file:
        parts = iter(lambda: file.read(30_000), b"")
        assert b"".join(parts) == TEXT
    assert sum(read) >= path.stat().st_size - 100  # an archive's directory may be read twice


@pytest.mark.parametrize("ending", ENDINGS[1:])
@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_broken_file_is_named(tmp_path: Path, ending: str, damage: str) -> None:
    path = tmp_path / f"a.csv{ending}"
    write(path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        middle = len(content) // 2
        content[middle : middle + 3000] = bytes(3000)
    path.write_bytes(content)
    message = rf"a\.csv{ending}: expected a whole compressed file"
    with pytest.raises(ValueError, match=message):
        read_all(path)


def test_an_archive_holds_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.csv", "1")
        archive.writestr("two.csv", "2")
    with pytest.raises(ValueError, match=r"expected one file in the archive, found \['one"):
        open_binary(path).__enter__()
