"""Census-Income: both formats, ids of the training file alone, the halves, malformed rows."""

from __future__ import annotations

import gzip
import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from census_rows import person, text

from mtlfast.data import CensusSource, open_source
from mtlfast.data.census import COLUMNS, read_census

TRAIN = [person(i) for i in range(60)]
TEST = [person(i, education=f"education-{i % 3}") for i in range(41)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "census-income.data").write_text(text(TRAIN))
    (tmp_path / "census-income.test").write_text(text(TEST))
    return tmp_path


def test_fields_tasks_and_labels(folder):
    source = CensusSource(folder, part="both", min_count=1)
    spec = source.spec
    assert spec.num_fields == 39
    assert not {"instance_weight", "marital_stat", "income_50k"} & set(spec.fields)
    assert spec.tasks == ("income", "never_married")
    assert (spec.item_field, spec.behaviors, source.skipped) == (None, (), 0)
    assert (source.num_train_samples, source.num_test_samples) == (60, 41)
    assert spec.positive_rates == (15 / 60, 20 / 60)
    batch = source.test_batch(41, 0)
    assert batch.sequences is None
    assert batch.sparse.dtype == torch.int64
    assert batch.labels.tolist() == [[float(i % 4 == 0), float(i % 3 == 0)] for i in range(41)]
    assert bool((batch.sparse < torch.tensor(spec.vocab_sizes)).all())
    age = batch.sparse[:, spec.fields.index("age")]
    assert age.tolist() == [1 + i % 5 for i in range(41)]


def test_what_the_training_file_does_not_hold_is_unknown(folder):
    source = CensusSource(folder, part="both")
    at = source.spec.fields.index("education")
    assert source.spec.vocab_sizes[at] == 3
    ids = source.test_batch(41, 0).sparse[:, at]
    assert ids.tolist() == [(1, 2, 0)[i % 3] for i in range(41)]


def test_the_test_file_is_halved_by_income(folder):
    halves = [CensusSource(folder, part=part) for part in ("validation", "test")]
    batches = [half.test_batch(50, 0) for half in halves]
    assert [len(batch) for batch in batches] == [20, 21]
    assert [int(batch.labels[:, 0].sum()) for batch in batches] == [5, 6]
    again = CensusSource(folder, part="test", seed=5).test_batch(50, 0)
    assert torch.equal(again.sparse, batches[1].sparse)
    both = CensusSource(folder, part="both").test_batch(50, 0)
    joined = torch.cat([torch.cat((b.sparse, b.labels), 1) for b in batches])
    whole = torch.cat((both.sparse, both.labels), 1)
    assert sorted(joined.tolist()) == sorted(whole.tolist())


def test_rows_held_out_train_no_more(folder):
    source = CensusSource(folder, part="both")
    part = source.hold_out(4)
    assert (part.num_train_samples, part.num_test_samples) == (46, 14)
    assert int(part.test_batch(50, 0).labels[:, 0].sum()) == 3  # a quarter of 15, and 11 of 45
    rows = [
        torch.cat((batch.sparse, batch.labels), 1)
        for batch in (part.train_batch(50, 0, 0), part.test_batch(50, 0))
    ]
    whole = source.train_batch(60, 0, 0)
    assert sorted(torch.cat(rows).tolist()) == sorted(
        torch.cat((whole.sparse, whole.labels), 1).tolist()
    )
    again = CensusSource(folder, part="test", seed=3).hold_out(4)
    assert torch.equal(again.test_batch(50, 0).sparse, part.test_batch(50, 0).sparse)
    assert (source.num_train_samples, source.num_test_samples) == (60, 41)
    with pytest.raises(ValueError, match="parts: expected at least 2, found 1"):
        source.hold_out(1)


def test_epochs_are_shuffled_and_repeat(folder):
    source, again = CensusSource(folder), CensusSource(folder)
    first, second = source.train_order(0), source.train_order(1)
    assert sorted(first) == sorted(second) == list(range(60))
    assert not np.array_equal(first, second)
    batches = list(again.train_batches(25, epoch=1))
    assert [len(batch) for batch in batches] == [25, 25, 10]
    assert torch.equal(batches[1].sparse, source.train_batch(25, 1, 1).sparse)


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_compressed_files_are_the_same(folder, ending):
    plain = CensusSource(folder, part="both")
    opener = {".gz": gzip.open, ".xz": lzma.open}[ending]
    for name in ("census-income.data", "census-income.test"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with opener(folder / (name + ending), "wb") as file:
            file.write(content)
    assert same(CensusSource(folder, part="both"), plain)
    whole = (folder / f"census-income.data{ending}").read_bytes()
    (folder / f"census-income.data{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"data{ending}: expected a whole compressed file"):
        CensusSource(folder)


def same(a: CensusSource, b: CensusSource) -> bool:
    return a.spec == b.spec and all(
        torch.equal(x.sparse, y.sparse) and torch.equal(x.labels, y.labels)
        for x, y in zip(
            (*a.train_batches(30), *a.test_batches(30)),
            (*b.train_batches(30), *b.test_batches(30)),
            strict=True,
        )
    )


def test_parquet_is_the_same(folder, tmp_path):
    pa = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    other = tmp_path / "parquet"
    other.mkdir()
    for name, rows in (("train", TRAIN), ("test", TEST)):
        columns = {c: [row[c] for row in rows] for c in COLUMNS}
        columns["age"] = [int(value) for value in columns["age"]]
        columns["year"] = [int(value) for value in columns["year"]]
        parquet.write_table(pa.table(columns), other / f"{name}.parquet")
    assert same(CensusSource(other), CensusSource(folder))
    bad = {c: [row[c] for row in TRAIN] for c in COLUMNS if c != "age"}
    parquet.write_table(pa.table(bad), other / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet: missing columns \['age'\]"):
        CensusSource(other)
    parquet.write_table(
        pa.table({**bad, "age": ["1"] * 7 + [None] + ["1"] * 52}), other / "train.parquet"
    )
    with pytest.raises(
        ValueError, match=r"train\.parquet, row 7: age: expected a number, found ''"
    ):
        CensusSource(other)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1, 2, 3", "expected 42 columns, found 3"),
        ("", "expected 42 columns, found 1"),
        (text([person(1)]).strip() + ", more", "expected 42 columns, found 43"),
        (text([person(1, age="old")]).strip(), "age: expected a number, found 'old'"),
        (text([person(1, weeks_worked="nan")]).strip(), "weeks_worked: expected a number"),
        (text([person(1, income_50k="rich")]).strip(), "income_50k: expected one of .* 'rich'"),
    ],
)
def test_malformed_rows_are_named_or_skipped_and_counted(folder, line, problem):
    lines = (folder / "census-income.data").read_text().splitlines()
    lines[12:12] = [line]
    (folder / "bad").mkdir()
    (folder / "bad" / "census-income.data").write_text("\n".join([*lines, "x"]) + "\n")
    (folder / "bad" / "census-income.test").write_text(text(TEST))
    with pytest.raises(ValueError, match=f"census-income.data, line 13: {problem}"):
        CensusSource(folder / "bad")
    skipping = CensusSource(folder / "bad", on_error="skip")
    assert skipping.skipped == 2
    assert same(skipping, CensusSource(folder))


@pytest.mark.parametrize("empty", ["data", "test"])
def test_a_file_without_rows_is_named(folder, empty):
    (folder / f"census-income.{empty}").write_text("")
    with pytest.raises(ValueError, match=rf"census-income\.{empty}: expected rows, found none"):
        CensusSource(folder)


def test_missing_files_and_wrong_options_are_named(folder, tmp_path, monkeypatch):
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match=r"expected one of \['census-income.data', "):
        open_source(f"census:{tmp_path / 'none'}")
    with pytest.raises(ValueError, match=r"found no .*absent"):
        open_source(f"census:{tmp_path / 'absent'}")
    with pytest.raises(ValueError, match="part: expected test, validation or both"):
        open_source(f"census:{folder}", part="x")
    with pytest.raises(ValueError, match=r"options: expected some of .*part.*found \['prat'\]"):
        open_source(f"census:{folder}", prat="test")
    with pytest.raises(ValueError, match="on_error: expected 'raise' or 'skip'"):
        read_census(folder / "census-income.data", on_error="x")
    monkeypatch.delenv("MTLFAST_DATA", raising=False)
    with pytest.raises(ValueError, match="expected census:PATH, or census with"):
        open_source("census")


def test_the_published_files():
    root = os.environ.get("MTLFAST_DATA")
    if not root:
        pytest.skip("MTLFAST_DATA is not set: no folder with real data")
    if not (Path(root) / "census-income-kdd").is_dir():
        pytest.skip(f"MTLFAST_DATA: no census-income-kdd in {root}")
    source = open_source("census")
    assert (source.num_train_samples, source.num_test_samples) == (199_523, 49_881)
    assert source.spec.positive_rates == pytest.approx((12_382 / 199_523, 86_485 / 199_523))
    labels = torch.cat([batch.labels for batch in source.test_batches(10_000)])
    assert int(labels[:, 0].sum()) == 3093
    sizes = dict(zip(source.spec.fields, source.spec.vocab_sizes, strict=True))
    assert (sizes["education"], sizes["country_self"], sizes["sex"]) == (18, 44, 3)
    assert sizes["capital_gains"] < 1 + 132 + 32
