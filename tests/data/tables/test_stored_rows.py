"""Windows of rows: whole epochs, any batch size, one window in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtlfast.data.tables import stored_rows
from mtlfast.data.tables.stored_rows import RowWriter, StoredRows


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """95 rows in groups of 10, in two files."""
    monkeypatch.setattr(stored_rows, "ROW_GROUP", 10)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    number = np.arange(95, dtype=np.int32)
    for path, part in zip(paths, (number[:32], number[32:]), strict=True):
        with RowWriter(path) as writer:
            for block in np.array_split(part, 4):
                writer.add({"f": block, "g": 2 * block, "y": block % 5 == 0})
        assert writer.rows == len(part)
    return paths


def test_file_order(files: list[Path]) -> None:
    rows = StoredRows(files, ["g", "f"], ["y"], 1)
    assert len(rows) == 95
    assert [len(rows._readers), *rows._sizes] == [2, 10, 10, 10, 2, *[10] * 6, 3]
    ids, labels = rows[28:41]
    assert ids.tolist() == [[2 * i, i] for i in range(28, 41)]
    assert labels[:, 0].tolist() == [i % 5 == 0 for i in range(28, 41)]
    assert len(rows[90:200][0]) == 5
    assert rows[95:99][0].shape == (0, 2)


@pytest.mark.parametrize("window", [1, 25, 1000])
@pytest.mark.parametrize("size", [1, 7, 40, 200])
def test_an_epoch_has_every_row_once(files: list[Path], window: int, size: int) -> None:
    rows = StoredRows(files, ["f"], ["y"], window)
    whole = rows.shuffled(slice(0, 95), (3, 1))[0]
    parts = [rows.shuffled(slice(i, i + size), (3, 1)) for i in range(0, 95, size)]
    assert np.array_equal(np.concatenate([ids for ids, _ in parts]), whole)
    assert sorted(whole[:, 0]) == list(range(95))
    assert all((ids % 5 == 0).tolist() == labels.tolist() for ids, labels in parts)
    other = StoredRows(files, ["f"], ["y"], window).shuffled(slice(0, 95), (3, 2))[0]
    assert not np.array_equal(other, whole)
    again = StoredRows(files, ["f"], ["y"], window)
    assert np.array_equal(again.shuffled(slice(50, 60), (3, 1))[0], whole[50:60])


def test_no_more_than_a_window_is_read_at_a_time(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = StoredRows._read

    def counting(self: StoredRows, groups: object) -> object:
        assert self._in_memory is None
        ids, labels = read(self, groups)
        sizes.append(len(ids))
        return ids, labels

    monkeypatch.setattr(StoredRows, "_read", counting)
    rows = StoredRows(files, ["f"], ["y"], 20)
    for i in range(0, 95, 3):
        rows.shuffled(slice(i, i + 3), (0, 0))
    assert sum(sizes) == 95  # each window once
    assert max(sizes) <= 20
