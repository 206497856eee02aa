"""What is in memory while a data set is prepared, and the halves of its test part."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mtlfast.data import vocabulary
from mtlfast.data.progress import no_progress
from mtlfast.data.tables import stored_rows
from mtlfast.data.tables.prepare import Halves, PrepareOptions, prepare
from mtlfast.data.tables.table_format import FilePart, Reading, RowBlock, TableFormat


@dataclass
class Generated(TableFormat):
    """``blocks`` blocks of 2000 rows: 8 fields with 100 ids each, 2 with numbers."""

    blocks: int
    name = "generated"
    categorical = tuple(f"id{i}" for i in range(8))
    numeric = ("a", "b")
    files = {}  # noqa: RUF012 (there are none)

    def read(self, part: FilePart, reading: Reading) -> Iterator[RowBlock]:
        rng = np.random.default_rng(part == "test")
        for _ in range(self.blocks if part == "train" else 1):
            columns = {name: rng.integers(0, 100, 2000) for name in self.categorical}
            columns.update({name: rng.random(2000) for name in self.numeric})
            yield RowBlock(columns, rng.random((2000, 2)) < 0.5)


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    before = pa.default_memory_pool()
    monkeypatch.setattr(stored_rows, "ROW_GROUP", 2000)
    monkeypatch.setattr(vocabulary, "_MERGE_FROM", 200)
    options = PrepareOptions(sample_rows=2000)
    peaks = []
    for blocks in (1, 10, 40):  # the first imports what is needed
        folder = tmp_path / str(blocks)
        folder.mkdir()
        pool = pa.proxy_memory_pool(before)  # its own count of arrow's memory
        pa.set_memory_pool(pool)
        tracemalloc.start()
        about = prepare(folder, Generated(blocks), options, no_progress)
        peaks.append(tracemalloc.get_traced_memory()[1] + pool.max_memory())
        tracemalloc.stop()
        pa.set_memory_pool(before)
        assert about["rows"] == {"train": 2000 * blocks, "validation": 1000, "test": 1000}
    whole = 40 * 2000 * 10 * 8  # bytes of all rows as they are read
    assert peaks[2] < 1.3 * peaks[1]
    assert peaks[2] < whole / 4


def test_no_rows_at_all(tmp_path: Path) -> None:
    class Empty(Generated):
        files = {"train": (Path("train.csv"),)}  # noqa: RUF012

    (tmp_path / "train.csv").touch()
    source = Empty(0)
    source.files = {"train": (tmp_path / "train.csv",)}
    with pytest.raises(ValueError, match=r"train\.csv: expected training rows, found none"):
        prepare(tmp_path, source, PrepareOptions(), no_progress)


@pytest.mark.parametrize("sizes", [[100], [1] * 100, [0, 3, 7, 0, 90], [33, 33, 34]])
def test_halves_do_not_depend_on_the_blocks(sizes: list[int]) -> None:
    halves = Halves(0)
    drawn = np.concatenate([halves.next(size) for size in sizes])
    assert np.array_equal(drawn, Halves(0).next(100))
    assert np.all(drawn[::2] != drawn[1::2])
    assert 10 < int(drawn[::2].sum()) < 40
