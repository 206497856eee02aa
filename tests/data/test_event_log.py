"""Reading event logs: types, several files, and every kind of bad row."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtlfast.data import event_log
from mtlfast.data.event_log import read_event_log

Writer = Callable[..., Path]


def columns(**changes: Any) -> dict[str, Any]:
    return {
        "user": [3, 1, 3, 1],
        "item": [7, 7, 8, 9],
        "behavior": [0, 1, 0, 0],
        "ts": [100, 90, 90, 80],
        **changes,
    }


def test_reads_columns_in_file_order(write_log: Writer) -> None:
    log = read_event_log(write_log(columns()), 2)
    assert len(log) == 4
    assert log.skipped == 0
    np.testing.assert_array_equal(log.user, [3, 1, 3, 1])
    np.testing.assert_array_equal(log.ts, [100, 90, 90, 80])
    assert log.item.dtype == log.behavior.dtype == np.int64


@pytest.mark.parametrize("kind", ["int8", "uint64", "float32", "float64", "string"])
def test_any_type_that_holds_integers_will_do(write_log: Writer, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    values = [3, 1, 3, 1]
    user = pa.array([str(v) for v in values]) if kind == "string" else pa.array(values, kind)
    log = read_event_log(write_log(columns(user=user)), 2)
    np.testing.assert_array_equal(log.user, values)


def test_context_columns_keep_nulls_apart(write_log: Writer) -> None:
    pa = pytest.importorskip("pyarrow")
    country = pa.array(["BR", None, "US", "BR"]).dictionary_encode()
    path = write_log(columns(country=country, level=[5, 6, 5, None]))
    log = read_event_log(path, 2, context_columns=("country", "level"))
    names, codes = log.context["country"].names, log.context["country"].codes
    assert [names[c] for c in codes] == ["BR", None, "US", "BR"]
    names, codes = log.context["level"].names, log.context["level"].codes
    assert [names[c] for c in codes] == ["5", "6", "5", None]


def test_folders_are_read_whole_by_name(write_log: Writer) -> None:
    write_log(columns(item=[1, 1, 1, 1], c=["x", "y", "x", "x"]), "b.parquet")
    path = write_log(columns(item=[2, 2, 2, 2], c=["z", "y", None, "x"]), "a.parquet")
    log = read_event_log(path.parent, 2, context_columns=("c",))
    np.testing.assert_array_equal(log.item, [2] * 4 + [1] * 4)
    names, codes = log.context["c"].names, log.context["c"].codes
    assert [names[c] for c in codes] == ["z", "y", None, "x", "x", "y", "x", "x"]


def test_events_parquet_stands_for_its_folder(write_log: Writer) -> None:
    write_log({"user": [1]}, "other.parquet")
    path = write_log(columns())
    assert len(read_event_log(path.parent, 2)) == 4


BAD_ROWS = [
    ({"user": [3, -1, 3, 1]}, "user: expected an integer id >= 0, found -1"),
    ({"user": [3, None, 3, 1]}, "user: expected an integer id >= 0, found null"),
    ({"item": [1.0, 2.5, 1.0, 1.0]}, "item: expected an integer id >= 0, found 2.5"),
    ({"item": [1.0, float("nan"), 1.0, 1.0]}, "item: expected an integer id >= 0, found nan"),
    ({"item": [1.0, 2.0**60, 1.0, 1.0]}, "item: expected an integer id >= 0, found 1.15"),
    ({"behavior": [0, 2, 0, 1]}, r"behavior: expected a code in \[0, 2\), found 2"),
    ({"behavior": [0, -1, 0, 1]}, r"behavior: expected a code in \[0, 2\), found -1"),
    ({"ts": [1.0, 1.5, 2.0, 3.0]}, "ts: expected integer unix seconds >= 0, found 1.5"),
    ({"ts": ["1", "noon", "2", "3"]}, "ts: expected integer unix seconds >= 0, found 'noon'"),
    ({"ts": ["1", "", "2", "3"]}, "ts: expected integer unix seconds >= 0, found ''"),
    ({"ts": ["1", "9" * 30, "2", "3"]}, "ts: expected integer unix seconds >= 0, found '999"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS)
def test_bad_rows_name_file_and_row(
    write_log: Writer, changes: dict[str, Any], message: str
) -> None:
    path = write_log(columns(**changes), "log.parquet")
    with pytest.raises(ValueError, match=rf"log\.parquet, row 1 \(0-based\): {message}"):
        read_event_log(path, 2)


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS)
def test_bad_rows_can_be_skipped_and_are_counted(
    write_log: Writer, changes: dict[str, Any], message: str
) -> None:
    path = write_log(columns(**changes, country=["a", "b", "c", "d"]))
    log = read_event_log(path, 2, context_columns=("country",), on_error="skip")
    assert log.skipped == 1
    assert len(log) == 3
    names = log.context["country"].names
    assert [names[c] for c in log.context["country"].codes] == ["a", "c", "d"]


def test_unsigned_ids_beyond_int64_are_bad(write_log: Writer) -> None:
    pa = pytest.importorskip("pyarrow")
    path = write_log(columns(user=pa.array([1, 2, 2**63, 3], pa.uint64())))
    with pytest.raises(ValueError, match=r"row 2.*user: .* found 9223372036854775808"):
        read_event_log(path, 2)


def test_row_numbers_count_from_the_start_of_each_file(
    write_log: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "ROWS_PER_READ", 3)
    write_log(columns(), "a.parquet")
    path = write_log(columns(ts=[1, 2, 3, -4]), "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet, row 3 \(0-based\): ts: .*found -4"):
        read_event_log(path.parent, 2)


def test_missing_columns_name_file_missing_and_found(write_log: Writer) -> None:
    path = write_log({"user": [1], "item": [2], "when": [3]}, "log.parquet")
    with pytest.raises(
        ValueError,
        match=r"log\.parquet: missing columns \['behavior', 'ts', 'country'\].*"
        r"found \['user', 'item', 'when'\]",
    ):
        read_event_log(path, 2, context_columns=("country",))


def test_impossible_column_type(write_log: Writer) -> None:
    pa = pytest.importorskip("pyarrow")
    path = write_log(columns(ts=pa.array([1, 2, 3, 4], pa.timestamp("s"))))
    with pytest.raises(ValueError, match="ts: expected a column of integers, found timestamp"):
        read_event_log(path, 2)


def test_files_that_are_not_there_or_not_parquet(tmp_path: Path, write_log: Writer) -> None:
    with pytest.raises(ValueError, match=r"found no .*nothing"):
        read_event_log(tmp_path / "nothing", 2)
    with pytest.raises(ValueError, match=r"\*\.parquet files in the folder .*found none"):
        read_event_log(tmp_path, 2)
    (tmp_path / "x.parquet").write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match=r"x\.parquet: expected a parquet file"):
        read_event_log(tmp_path, 2)
    with pytest.raises(ValueError, match="on_error: expected 'raise' or 'skip', found 'ignore'"):
        read_event_log(tmp_path, 2, on_error="ignore")  # type: ignore[arg-type]


def test_empty_log(write_log: Writer) -> None:
    pa = pytest.importorskip("pyarrow")
    empty = pa.array([], pa.int64())
    log = read_event_log(write_log(dict.fromkeys(columns(), empty)), 2)
    assert len(log) == 0


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install 'mtlfast"):
        read_event_log(tmp_path, 2)
