"""The AliExpress search data set (Tianchi 74690), raw and processed.

Raw: per country ``{cc}_user_{train,test}`` with one search page per line and
``{cc}_item_{train,test}`` with one impression per line, joined by the search id in their first
columns; no header. Processed: one table with the header of :data:`HEADER`, as MTReclib and
torch-rechub write it. All of them plain, ``.gz``, ``.xz`` or the only file in a ``.zip``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.tables.blocks import LineReader
from mtlfast.data.tables.csv_columns import Kind, expect_codes, labels, numpy, parse_columns
from mtlfast.data.tables.disk_join import KeyedRows
from mtlfast.data.tables.files import only_file, table_files
from mtlfast.data.tables.table_format import FilePart, Reading, RowBlock, TableFormat

__all__ = ["HEADER", "aliexpress_format"]

# Columns of the raw files, counted from 1 as their description does; column 1 is the search id.
_USER_COLUMNS, _ITEM_COLUMNS = 33, 49
_USER_IDS = (2, 3, 4, 5, 6, 7, 8, 32, 33)
_ITEM_IDS = (19, 34, 35, 36, 40, 41, 42)
_USER_NUMBERS = tuple(range(9, 32))
_ITEM_NUMBERS = tuple(c for c in range(2, _ITEM_COLUMNS) if c not in _ITEM_IDS)
_LABEL = _ITEM_COLUMNS  # 0 nothing, 1 click, 2 purchase

CATEGORICAL = tuple(f"categorical_{i}" for i in range(1, 17))
NUMERIC = tuple(f"numerical_{i}" for i in range(1, 64))
HEADER = ("search_id", *CATEGORICAL, *NUMERIC, "click", "conversion")


def aliexpress_format(path: str | os.PathLike[str], country: str | None = None) -> TableFormat:
    """The data set in a folder, in whichever format it is there.

    Args:
        path: the folder.
        country: which one, such as "NL", where the folder holds raw files of several.

    Raises:
        ValueError: if the files are not there or more than one fits, saying what was looked for.
    """
    folder = Path(path)
    raw = _countries(folder)
    if not raw and country is None:
        return _Processed(table_files(folder, "aliexpress", "aliexpress"))
    if not raw or (country is not None and country.lower() not in raw):
        raise ValueError(
            f"country: expected one of {sorted(raw)} in {folder}, found {country!r}"
            if raw
            else f"country: expected raw files such as {country}_user_train.csv in {folder}"
        )
    if country is None and len(raw) > 1:
        raise ValueError(f"country: expected one of {sorted(raw)} in {folder}, found none chosen")
    return _Raw(folder, next(iter(raw)) if country is None else country.lower())


def _countries(folder: Path) -> set[str]:
    """The countries with raw files, in lower case."""
    pattern = re.compile(r"(\w+)_(?:user|item)_(?:train|test)(?:\.csv)?(?:\.gz|\.xz|\.zip)?", re.I)
    names = os.listdir(folder) if folder.is_dir() else []
    return {found[1].lower() for name in names if (found := pattern.fullmatch(name))}


class _Raw(TableFormat):
    name = "aliexpress-raw"
    categorical = CATEGORICAL
    numeric = NUMERIC

    def __init__(self, folder: Path, country: str) -> None:
        self.files = {
            part: tuple(only_file(folder, f"{country}_{side}_{part}") for side in ("user", "item"))
            for part in ("train", "test")
        }

    def read(self, part: FilePart, reading: Reading) -> Iterator[RowBlock]:
        users, items = self.files[part]
        pages = KeyedRows(reading.scratch / f"pages-{part}")
        kinds = _raw_kinds(_USER_COLUMNS, _USER_IDS, None)
        reader: LineReader[Any] = reading.lines(lambda block: parse_columns(block, kinds))
        for table in reader.read(users):
            pages.append(
                numpy(table, "column 1"),
                {
                    "ids": _matrix(table, _USER_IDS, np.dtype(np.int64)),
                    "numbers": _matrix(table, _USER_NUMBERS, np.dtype(np.float64)),
                },
            )
        pages.finish()

        reader = reading.lines(_parse_items)
        for table in reader.read(items):
            rows, page = pages.find(numpy(table, "column 1"))
            reading.leave_out("rows without a search page", table.num_rows - len(np.unique(rows)))
            ids = [
                *pages.column("ids", page).T,
                *(numpy(table, f"column {c}")[rows] for c in _ITEM_IDS),
            ]
            numbers = [
                *pages.column("numbers", page).T,
                *(numpy(table, f"column {c}")[rows] for c in _ITEM_NUMBERS),
            ]
            label = numpy(table, f"column {_LABEL}")[rows]
            yield RowBlock(
                dict(zip(self.fields, [*ids, *numbers], strict=True)),
                np.stack((label >= 1, label == 2), axis=1),
            )


def _raw_kinds(columns: int, ids: tuple[int, ...], label: int | None) -> dict[str, Kind]:
    whole = (1, *ids, label)
    return {f"column {c}": "integer" if c in whole else "number" for c in range(1, columns + 1)}


_ITEM_KINDS = _raw_kinds(_ITEM_COLUMNS, _ITEM_IDS, _LABEL)


def _parse_items(block: bytes) -> Any:
    table = parse_columns(block, _ITEM_KINDS)
    expect_codes(numpy(table, f"column {_LABEL}"), f"column {_LABEL} (label)", (0, 1, 2))
    return table


def _matrix(table: Any, columns: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    return np.stack([numpy(table, f"column {c}").astype(kind) for c in columns], axis=1)


class _Processed(TableFormat):
    name = "aliexpress-processed"
    categorical = CATEGORICAL
    numeric = NUMERIC

    def __init__(self, files: dict[FilePart, tuple[Path, ...]]) -> None:
        self.files = files

    def read(self, part: FilePart, reading: Reading) -> Iterator[RowBlock]:
        reader: LineReader[RowBlock] = reading.lines(_parse_rows, header=",".join(HEADER))
        for file in self.files[part]:
            yield from reader.read(file)


_ROW_KINDS: dict[str, Kind] = {name: "number" if name in NUMERIC else "integer" for name in HEADER}


def _parse_rows(block: bytes) -> RowBlock:
    table = parse_columns(block, _ROW_KINDS)
    return RowBlock(
        {name: numpy(table, name) for name in CATEGORICAL + NUMERIC},
        labels(table, ("click", "conversion")),
    )
