"""Ali-CCP (Tianchi 408), raw and processed.

Raw: ``sample_skeleton_{train,test}`` with one impression per line (sample id, click, purchase,
key, number of features, features) and ``common_features_{train,test}`` with the features that
many impressions share (key, number of features, features), joined by the key; no header.
Processed: one table per part with a header of ``click,purchase`` and some of :data:`FIELDS` and
:data:`VALUES`. All of them plain, ``.gz``, ``.xz`` or the only file in a ``.zip``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.compressed import open_binary
from mtlfast.data.tables.bags import Bags, StagedBags, bag_column
from mtlfast.data.tables.blocks import Malformed
from mtlfast.data.tables.csv_columns import Kind, labels, numpy, parse_columns
from mtlfast.data.tables.disk_join import KeyedRows
from mtlfast.data.tables.feature_lists import Features, parse_features
from mtlfast.data.tables.files import only_file, table_files
from mtlfast.data.tables.table_format import MISSING, FilePart, Reading, RowBlock, TableFormat

__all__ = ["FIELDS", "MULTI_VALUED", "VALUES", "aliccp_format"]

# Of the user: 101 to 150_14. Of the item: 205 to 216. Of both: 508 to 853. Context: 301.
FIELDS = (
    *("101", "121", "122", "124", "125", "126", "127", "128", "129"),
    *("205", "206", "207", "210", "216"),
    *("508", "509", "702", "853", "301"),
    *("109_14", "110_14", "127_14", "150_14"),
)
MULTI_VALUED = ("210", "109_14", "110_14", "127_14", "150_14")
_WITH_VALUE = ("109_14", "110_14", "127_14", "150_14", "508", "509", "702", "853")
VALUES = tuple(f"D{field}" for field in _WITH_VALUE)

_FIELD_NUMBERS = {name: i for i, name in enumerate(FIELDS)}
_VALUE_OF_FIELD = np.array(
    [_WITH_VALUE.index(name) if name in _WITH_VALUE else -1 for name in FIELDS], np.int64
)
_LABELS = ("click", "purchase")


def aliccp_format(path: str | os.PathLike[str]) -> TableFormat:
    """The data set in a folder, in whichever format it is there.

    Raises:
        ValueError: if the files are not there or more than one fits, saying what was looked for.
    """
    folder = Path(path)
    names = os.listdir(folder) if folder.is_dir() else []
    if any(name.lower().startswith("sample_skeleton") for name in names):
        return _Raw(folder)
    return _Processed(table_files(folder, r"ali_?ccp|ctr_cvr", "ali_ccp"))


class _Raw(TableFormat):
    name = "aliccp-raw"
    categorical = FIELDS
    numeric = VALUES
    multi_valued = MULTI_VALUED

    def __init__(self, folder: Path) -> None:
        self.files = {
            part: tuple(
                only_file(folder, f"{kind}_{part}")
                for kind in ("common_features", "sample_skeleton")
            )
            for part in ("train", "test")
        }

    def read(self, part: FilePart, reading: Reading) -> Iterator[RowBlock]:
        common_file, skeleton_file = self.files[part]
        common = KeyedRows(reading.scratch / f"common-{part}")
        for keys, features in reading.lines(_parse_common).read(common_file):
            reading.leave_out("features of unknown fields", int((features.field < 0).sum()))
            common.append(keys, _last_of_each(features, len(keys)))
            for name, staged in (reading.bags or {}).items():
                # Every user's list, empty ones too: numbered as the rows of `common`.
                staged.add(_bags_of(features, name, len(keys)))
        common.finish()

        join = _Join(common)
        for rows, features, users in reading.lines(join).read(skeleton_file):
            reading.leave_out("features of unknown fields", int((features.field < 0).sum()))
            for name, staged in (reading.bags or {}).items():
                rows.columns[bag_column(name)] = _number_bags(staged, features, name, users)
            wrong = rows.labels[:, 1] & ~rows.labels[:, 0]
            reading.leave_out("rows with a purchase but no click", int(wrong.sum()))
            yield rows.rows(~wrong) if wrong.any() else rows


_COMMON_KINDS: dict[str, Kind] = {"key": "bytes", "feat_num": "integer", "feat_list": "bytes"}
_SKELETON_KINDS: dict[str, Kind] = {
    "sample_id": "bytes",
    "click": "integer",
    "purchase": "integer",
    "key": "category",
    "feat_num": "integer",
    "feat_list": "bytes",
}


def _parse_common(block: bytes) -> tuple[NDArray[np.bytes_], Features]:
    table = parse_columns(block, _COMMON_KINDS)
    features = parse_features(table.column("feat_list"), numpy(table, "feat_num"), _FIELD_NUMBERS)
    return np.array(table.column("key").to_pylist(), np.bytes_), features


class _Join:
    """Parses a block of the skeleton and adds the common features."""

    def __init__(self, common: KeyedRows) -> None:
        self._common = common

    def __call__(self, block: bytes) -> tuple[RowBlock, Features, NDArray[np.int64]]:
        """The rows, their own features, and the row of each one's common features."""
        table = parse_columns(block, _SKELETON_KINDS)
        features = parse_features(
            table.column("feat_list"), numpy(table, "feat_num"), _FIELD_NUMBERS
        )
        own = _last_of_each(features, table.num_rows)
        row = self._common_rows(table.column("key").unify_dictionaries().combine_chunks())
        ids = np.where(own["ids"] == MISSING, self._common.column("ids", row), own["ids"])
        values = np.where(
            np.isnan(own["values"]), self._common.column("values", row), own["values"]
        )
        columns = [*ids.T, *np.nan_to_num(values.T)]
        return (
            RowBlock(dict(zip(FIELDS + VALUES, columns, strict=True)), labels(table, _LABELS)),
            features,
            row,
        )

    def _common_rows(self, keys: Any) -> NDArray[np.int64]:
        distinct = np.array(keys.dictionary.to_pylist(), np.bytes_)
        at, found = self._common.find(distinct)
        rows = np.full(len(distinct), -1, np.int64)
        rows[at] = found  # the last one, should a key be there twice
        if (rows < 0).any():
            missing = distinct[np.argmax(rows < 0)].decode("utf-8", "replace")
            raise Malformed(f"key: expected one of the common features, found {missing!r}")
        return rows[keys.indices.to_numpy()]


def _last_of_each(features: Features, rows: int) -> dict[str, NDArray[Any]]:
    """Per row and field the last feature and its value: ``ids`` [n, F] and ``values`` [n, V].

    :data:`MISSING` and NaN stand for what a row does not have.
    """
    ids = np.full((rows, len(FIELDS)), MISSING, np.int64)
    values = np.full((rows, len(VALUES)), np.nan)
    known = np.flatnonzero(features.field >= 0)
    # Of several assignments to one place NumPy keeps the last.
    ids[features.row[known], features.field[known]] = features.feature[known]
    place = _VALUE_OF_FIELD[features.field[known]]
    with_value = known[place >= 0]
    values[features.row[with_value], place[place >= 0]] = features.value[with_value]
    return {"ids": ids, "values": values}


def _bags_of(features: Features, name: str, rows: int) -> Bags:
    """All features of one field, row by row."""
    chosen = np.flatnonzero(features.field == _FIELD_NUMBERS[name])
    lengths = np.bincount(features.row[chosen], minlength=rows).astype(np.int64)
    return Bags(lengths, features.feature[chosen], features.value[chosen])


def _number_bags(
    staged: StagedBags, features: Features, name: str, users: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Numbers of the rows' lists: their own, which are staged here, or else their user's."""
    own = _bags_of(features, name, len(users))
    filled = own.lengths > 0
    first = staged.add(Bags(own.lengths[filled], own.ids, own.weights))
    numbers = users.copy()
    numbers[filled] = first + np.arange(int(filled.sum()))
    return numbers


class _Processed(TableFormat):
    name = "aliccp-processed"

    def __init__(self, files: dict[FilePart, tuple[Path, ...]]) -> None:
        self.files = files
        train = files["train"][0]
        with open_binary(train) as file:
            header = file.readline(1 << 16).decode("utf-8", "replace").strip("\ufeff\r\n")
        self._header = names = header.split(",")
        unknown = [name for name in names if name not in (*_LABELS, *FIELDS, *VALUES)]
        if unknown or names[:2] != list(_LABELS) or len(set(names)) != len(names):
            raise ValueError(
                f"{train}, line 1: expected a header of {','.join(_LABELS)} and some of "
                f"{list(FIELDS + VALUES)}, found {header!r}"
            )
        self.categorical = tuple(name for name in names if name in FIELDS)
        self.numeric = tuple(name for name in names if name in VALUES)

    def read(self, part: FilePart, reading: Reading) -> Iterator[RowBlock]:
        reader = reading.lines(self._parse, header=",".join(self._header))
        for file in self.files[part]:
            yield from reader.read(file)

    def _parse(self, block: bytes) -> RowBlock:
        kinds: dict[str, Kind] = {
            name: "number" if name in VALUES else "integer" for name in self._header
        }
        table = parse_columns(block, kinds)
        return RowBlock({name: numpy(table, name) for name in self.fields}, labels(table, _LABELS))
