"""Rows of ids and labels in parquet files, read a window at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ROW_GROUP", "RowWriter", "StoredRows", "import_parquet"]

ROW_GROUP = 1 << 16

Ids = NDArray[np.int32]
Labels = NDArray[np.bool_]


def import_parquet() -> ModuleType:
    """``pyarrow.parquet``.

    Raises:
        ImportError: saying what to install.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "this data set is kept as parquet, which needs pyarrow: pip install 'mtlfast[train]' "
            "(or pip install pyarrow)"
        ) from error
    return pyarrow.parquet


class RowWriter:
    """Writes blocks of columns into one parquet file.

    Row groups have :data:`ROW_GROUP` rows whatever the size of the blocks, so that what is read
    later does not depend on how the source was cut.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._num_waiting = 0
        self.rows = 0

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows; every block has the same columns."""
        import pyarrow as pa

        table = pa.table(dict(columns))
        if self._writer is None:
            self._writer = import_parquet().ParquetWriter(self._path, table.schema)
        self._waiting.append(table)
        self._num_waiting += table.num_rows
        self.rows += table.num_rows
        if self._num_waiting >= ROW_GROUP:
            self._write(self._num_waiting // ROW_GROUP * ROW_GROUP)

    def _write(self, rows: int) -> None:
        import pyarrow as pa

        table = pa.concat_tables(self._waiting)
        self._writer.write_table(table.slice(0, rows), row_group_size=ROW_GROUP)
        # A copy, so that the slice does not keep all of the table in memory.
        rest = pa.table({name: table[name].slice(rows).to_numpy() for name in table.column_names})
        self._waiting, self._num_waiting = [rest], rest.num_rows

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            if kind is None and self._num_waiting:
                self._write(self._num_waiting)
            self._writer.close()


class StoredRows:
    """The rows of some parquet files one after the other, of which few are in memory.

    Rows are read in *windows*: some row groups together. With a shuffle the groups come in random
    order and the rows of a window are mixed, which needs memory for one window only.

    Args:
        files: written by :class:`RowWriter`.
        fields: columns of ids.
        labels: columns of labels.
        window: rows in a window, about; at least one row group is read.
    """

    def __init__(
        self, files: Sequence[Path], fields: Sequence[str], labels: Sequence[str], window: int
    ) -> None:
        parquet = import_parquet()
        self._fields, self._labels = list(fields), list(labels)
        self._readers = [parquet.ParquetFile(file, memory_map=True) for file in files]
        self._groups = [
            (reader, group)
            for reader in self._readers
            for group in range(reader.metadata.num_row_groups)
        ]
        self._sizes = np.array(
            [reader.metadata.row_group(group).num_rows for reader, group in self._groups], np.int64
        )
        self._per_window = max(1, window // ROW_GROUP)
        self._plan: tuple[tuple[int, ...] | None, list[NDArray[np.int64]], NDArray[np.int64]] = (
            None,
            *self._windows(np.arange(len(self._groups))),
        )
        self._in_memory: tuple[object, Ids, Labels] | None = None

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def __getitem__(self, rows: slice) -> tuple[Ids, Labels]:
        """Ids ``[n, F]`` and labels ``[n, T]`` of consecutive rows in file order."""
        return self.shuffled(rows, None)

    def shuffled(self, rows: slice, key: tuple[int, ...] | None) -> tuple[Ids, Labels]:
        """The same of consecutive rows in the order that ``key`` (seed, epoch) makes."""
        if self._plan[0] != key:
            order = np.arange(len(self._groups))
            if key is not None:
                order = np.random.default_rng(key).permutation(len(self._groups))
            self._plan = (key, *self._windows(order))
        _, windows, ends = self._plan
        start, stop, _ = rows.indices(len(self))
        ids, labels = [np.empty((0, len(self._fields)), np.int32)], []
        labels.append(np.empty((0, len(self._labels)), np.bool_))
        while start < stop:
            number = int(np.searchsorted(ends, start, side="right"))
            window_ids, window_labels = self._window(key, number, windows[number])
            first = int(ends[number]) - len(window_ids)
            part = slice(start - first, min(stop, int(ends[number])) - first)
            ids.append(window_ids[part].copy())
            labels.append(window_labels[part].copy())
            start = first + part.stop
        return np.concatenate(ids), np.concatenate(labels)

    def _windows(self, order: NDArray[np.int64]) -> tuple[list[NDArray[np.int64]], Any]:
        """The groups of each window, and where the windows end."""
        starts = range(0, len(order), self._per_window)
        windows = [order[i : i + self._per_window] for i in starts]
        return windows, np.cumsum([self._sizes[w].sum() for w in windows], dtype=np.int64)

    def _window(
        self, key: tuple[int, ...] | None, number: int, groups: Iterable[int]
    ) -> tuple[Ids, Labels]:
        name = (key, number)
        if self._in_memory is None or self._in_memory[0] != name:
            self._in_memory = None  # before the next one is read
            ids, labels = self._read(groups)
            if key is not None:
                order = np.random.default_rng([*key, number]).permutation(len(ids))
                ids, labels = ids[order], labels[order]
            self._in_memory = name, ids, labels
        return self._in_memory[1], self._in_memory[2]

    def _read(self, groups: Iterable[int]) -> tuple[Ids, Labels]:
        columns = [*self._fields, *self._labels]
        tables = []
        for group in groups:
            reader, number = self._groups[group]
            tables.append(reader.read_row_group(number, columns=columns))
        ids = np.concatenate([_matrix(t, self._fields, np.int32) for t in tables])
        labels = np.concatenate([_matrix(t, self._labels, np.bool_) for t in tables])
        return ids, labels


def _matrix(table: Any, names: list[str], kind: Any) -> NDArray[Any]:
    matrix = np.empty((table.num_rows, len(names)), kind)
    for i, name in enumerate(names):
        matrix[:, i] = table.column(name).to_numpy()
    return matrix
