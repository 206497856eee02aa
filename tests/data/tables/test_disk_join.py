"""The join by key, against the obvious loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mtlfast.data.tables.disk_join import KeyedRows


@pytest.mark.parametrize("kind", [np.int64, "S3"])
def test_equals_a_nested_loop(tmp_path: Path, kind: object) -> None:
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 30, 40)  # some twice, some missing
    values = rng.random((40, 3))
    rows = KeyedRows(tmp_path / "rows")
    for part in np.array_split(np.arange(40), 7):
        rows.append(keys[part].astype(kind), {"values": values[part], "n": part.astype(np.int32)})
    rows.finish()
    asked = rng.integers(0, 40, 100)
    left, right = rows.find(asked.astype(kind))
    pairs = [(i, j) for i in range(100) for j in range(40) if asked[i] == keys[j]]
    assert list(zip(left, right, strict=True)) == pairs
    np.testing.assert_array_equal(rows.column("values", right), values[right])
    np.testing.assert_array_equal(rows.column("n", right), right)
    assert isinstance(rows._columns["values"], np.memmap)


def test_no_rows(tmp_path: Path) -> None:
    rows = KeyedRows(tmp_path / "rows")
    with pytest.raises(RuntimeError):
        rows.find(np.array([1]))
    rows.finish()
    assert [len(side) for side in rows.find(np.array([1, 2]))] == [0, 0]
