"""Result files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from benchmarks.cases import training_case
from benchmarks.store import Store, write_atomically


def make_row(backend: str = "fused", **fields):
    case = training_case("tenrec", 32)
    return {
        "case": case.to_dict(),
        "name": case.name,
        "mode": "forward",
        "threads": 2,
        "allocator": "tuned",
        "backend": backend,
        "status": "ok",
        "padding": 5.0,
        "fingerprint": "f",
    } | fields


def test_rows_survive_and_are_replaced_by_key(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.environment = {"date": "today"}
    store.put([make_row(seconds=1.0), make_row("ragged", seconds=9.0)])
    store.put([make_row(seconds=2.0, ratios={"ragged": 4.5})])
    again = Store(tmp_path)
    assert again.environment == {"date": "today"}
    assert [(row["backend"], row["seconds"]) for row in again.rows] == [
        ("fused", 2.0),
        ("ragged", 9.0),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]


def test_csv_has_a_column_per_baseline(tmp_path: Path) -> None:
    store = Store(tmp_path)
    rows = [make_row(seconds=2.0, ratios={"ragged": 4.5}), make_row("naive", status="unavailable")]
    store.put(rows)
    with (tmp_path / "results.csv").open() as file:
        first, second = csv.DictReader(file)
    assert first["ratio_to_ragged"] == "4.5"
    assert first["dtype"] == "float32"
    assert (second["status"], second["seconds"]) == ("unavailable", "")


def test_other_peoples_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"cannot read .*--out"):
        Store(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == [1, 2]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
