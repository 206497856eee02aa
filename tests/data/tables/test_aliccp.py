"""Ali-CCP: what the raw files say row by row, both formats alike, malformed rows."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from aliccp_rows import common, common_row, own, skeleton_row, write_raw

from mtlfast.data import AliCCPSource, Batch, open_source
from mtlfast.data.tables.aliccp import FIELDS, MULTI_VALUED, VALUES, aliccp_format
from mtlfast.data.tables.table_format import MISSING, Reading, RowBlock


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def read(folder: Path, scratch: Path, **options: object) -> list[RowBlock]:
    return list(aliccp_format(folder).read("train", Reading(scratch, **options)))  # type: ignore[arg-type]


def expected_row(i: int, user: int) -> list[float]:
    """Ids, then values, by a plain loop over the features."""
    ids, values = {}, {}
    for field, feature, value in common(user) + own(i):
        ids[field], values[f"D{field}"] = feature, value
    return [ids.get(f, MISSING) for f in FIELDS] + [values.get(v, 0.0) for v in VALUES]


@pytest.mark.parametrize("block_bytes", [300, 2000, 1 << 20])
def test_rows_are_what_a_plain_loop_says(folder: Path, tmp_path: Path, block_bytes: int) -> None:
    blocks = read(folder, tmp_path / "scratch", block_bytes=block_bytes)
    assert len(blocks) > 1 or block_bytes > 2000
    columns = [np.concatenate([b.columns[n] for b in blocks]) for n in FIELDS + VALUES]
    found = [list(row) for row in zip(*columns, strict=True)]
    assert found == [expected_row(i, i % 12) for i in range(60)]
    labels = np.concatenate([block.labels for block in blocks])
    assert labels.tolist() == [[i % 4 == 0, i % 8 == 0] for i in range(60)]


def test_fields_tasks_and_ids(folder: Path) -> None:
    source = AliCCPSource(folder, min_count=1)
    spec = source.spec
    assert spec.fields == FIELDS + VALUES
    assert (spec.tasks, spec.task_parents) == (("click", "conversion"), (None, 0))
    assert (source.num_train_samples, source.num_test_samples) == (60, 30)
    assert spec.positive_rates == (15 / 60, 8 / 60)
    sizes = dict(zip(spec.fields, spec.vocab_sizes, strict=True))
    assert (sizes["101"], sizes["205"], sizes["210"], sizes["853"]) == (5, 5, 3, 2)
    ids = source.train_batch(60, 0, 0).sparse
    assert bool((ids < torch.tensor(spec.vocab_sizes)).all())
    assert int((ids[:, FIELDS.index("853")] == 0).sum()) == 48  # absent in 4 rows of 5


def test_presets(folder: Path) -> None:
    aitm = AliCCPSource(folder, preset="aitm")
    assert aitm.spec.fields == tuple(name for name in FIELDS if name not in MULTI_VALUED)
    assert aitm.spec.num_fields == 18
    sizes = dict(zip(aitm.spec.fields, aitm.spec.vocab_sizes, strict=True))
    assert sizes["853"] == 2  # 12 times
    assert sizes["129"] == 1  # 12 values 5 times each
    assert (
        AliCCPSource(folder, preset="aitm", min_count=13).spec.vocab_sizes[
            aitm.spec.fields.index("853")
        ]
        == 1
    )
    chosen = AliCCPSource(folder, fields=["205", "D508"])
    assert chosen.spec.fields == ("205", "D508")
    with pytest.raises(ValueError, match=r"preset: expected one of .* found 'x'"):
        AliCCPSource(folder, preset="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("pooling", ["sum", "weighted"])
def test_multi_valued_fields_keep_all_features(folder: Path, pooling: str) -> None:
    source = AliCCPSource(
        folder, preset="dtn", pooling=pooling, fields=["101", "205", *MULTI_VALUED]
    )  # type: ignore[arg-type]  # pooling comes as str
    spec = source.spec
    assert spec.multi_valued == tuple(range(2, 7))
    everything = [(f, k) for i in range(60) for f, k, _ in common(i % 12) + own(i)]
    vocabularies = {name: sorted({k for f, k in everything if f == name}) for name in spec.fields}
    assert spec.vocab_sizes == tuple(1 + len(ids) for ids in vocabularies.values())

    def lists(batch: Batch) -> list[list[list[tuple[int | None, float]]]]:
        """Per row and field all (feature, weight)."""
        assert batch.bags is not None
        ids, weights = batch.bags
        values = [1.0] * len(ids.values) if weights is None else weights.tolist()
        ends, size = ids.offsets.tolist(), len(batch)
        names = [(None, *vocabularies[name]) for name in MULTI_VALUED]
        pairs = list(zip(ids.values.tolist(), values, strict=True))
        return [
            [
                [(names[g][k], v) for k, v in pairs[ends[g * size + i] : ends[g * size + i + 1]]]
                for g in range(5)
            ]
            for i in range(size)
        ]

    def expected(i: int, user: int) -> list[list[tuple[int, float]]]:
        features = common(user) + own(i)
        return [
            [(k, v if pooling == "weighted" else 1.0) for f, k, v in features if f == name]
            for name in MULTI_VALUED
        ]

    train = source.train_batch(60, 0, 0)  # in random order
    assert sorted(lists(train)) == sorted(expected(i, i % 12) for i in range(60))
    test = source.test_batch(30, 0)  # one half after the other
    assert sorted(lists(test)) == sorted(expected(1000 + i, i % 12) for i in range(30))
    # The column in `sparse` has the last of them.
    last = [row[0][-1][0] for row in lists(train)]
    assert [vocabularies["210"][k - 1] for k in train.sparse[:, 2].tolist()] == last


def test_multi_valued_fields_have_a_cache_of_their_own(folder: Path) -> None:
    before = AliCCPSource(folder, min_count=1)
    with_lists = AliCCPSource(folder, min_count=1, pooling="sum")
    assert before.folder != with_lists.folder
    assert before.spec.multi_valued == ()
    assert before.train_batch(60, 0, 0).bags is None
    assert with_lists.folder == AliCCPSource(folder, min_count=1, pooling="weighted").folder
    shared = with_lists.spec.fields.index("205")
    assert torch.equal(
        before.test_batch(30, 0).sparse[:, shared], with_lists.test_batch(30, 0).sparse[:, shared]
    )
    (with_lists.folder / "bags-train-210.ids").unlink()
    assert AliCCPSource(folder, min_count=1, pooling="sum").train_batch(60, 0, 0).bags is not None


def test_ids_that_training_does_not_hold_are_unknown(folder: Path) -> None:
    path = folder / "sample_skeleton_test.csv"
    path.write_text(path.read_text().replace("205\x02900001\x03", "205\x02123456\x03"))
    source = AliCCPSource(folder, fields=["205"], min_count=1)
    assert source.spec.vocab_sizes == (5,)
    assert int((source.test_batch(30, 0).sparse == 0).sum()) == 8


def test_purchases_without_a_click_are_left_out(folder: Path) -> None:
    path = folder / "sample_skeleton_train.csv"
    path.write_text(path.read_text() + skeleton_row(1, 1, click=0, purchase=1) + "\n")
    source = AliCCPSource(folder)
    assert source.num_train_samples == 60
    assert source.left_out == {"rows with a purchase but no click": 1}
    assert source.skipped == 0


def test_unknown_fields_and_rows_without_features(folder: Path, tmp_path: Path) -> None:
    (folder / "sample_skeleton_train.csv").write_text(
        skeleton_row(0, 3).replace("301\x02", "999\x02") + "\n" + "7,0,0,00000003abababab,0,\n"
    )
    reading = Reading(tmp_path / "scratch")
    (block,) = aliccp_format(folder).read("train", reading)
    assert reading.left_out == {"features of unknown fields": 1}
    assert block.columns["301"].tolist() == [MISSING, MISSING]
    assert block.columns["205"].tolist() == [900_000, MISSING]
    assert block.columns["101"].tolist() == [1003, 1003]


ROW = skeleton_row(5, 5)


@pytest.mark.parametrize(
    ("kind", "line", "text"),
    [
        ("sample_skeleton", "1,2,3", "expected 6 columns, found 3"),
        ("sample_skeleton", skeleton_row(5, 99), "key: expected one of the common features, found"),
        ("sample_skeleton", skeleton_row(5, 5, click=2), "click: expected one of .0, 1., found 2"),
        ("sample_skeleton", ROW.replace("\x03", "", 1), "feat_list, feature 1: expected 3 columns"),
        (
            "sample_skeleton",
            ROW.replace("206\x02", "206\x02x"),
            "feat_list, feature 2: feature: expected an",
        ),
        (
            "sample_skeleton",
            ROW.replace("\x031.0", "\x03nan", 1),
            "feat_list, feature 1: value: expected a",
        ),
        (
            "sample_skeleton",
            ROW + "\x01",
            "feat_num: expected 12, the features in feat_list, found 11",
        ),
        ("common_features", common_row(3)[:-3], "feat_list, feature 21: value: expected a finite"),
        ("common_features", common_row(3) + ",1", "expected 3 columns, found 4"),
    ],
)
def test_malformed_rows_are_named_or_skipped(folder: Path, kind: str, line: str, text: str) -> None:
    whole = AliCCPSource(folder, min_count=1)
    path = folder / f"{kind}_train.csv"
    lines = path.read_text().splitlines()
    lines[4:4] = [line]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=f"{kind}_train.csv, line 5: {text}"):
        AliCCPSource(folder, min_count=1)
    skipping = AliCCPSource(folder, min_count=1, on_error="skip")
    assert (skipping.skipped, skipping.left_out) == (1, {})
    assert skipping.spec == whole.spec
    assert torch.equal(skipping.train_batch(60, 0, 0).sparse, whole.train_batch(60, 0, 0).sparse)


def test_processed_tables(folder: Path, tmp_path: Path) -> None:
    processed = tmp_path / "processed"
    processed.mkdir()
    rows = [expected_row(i, i % 12) for i in range(60)]
    names = ["click", "purchase", *FIELDS, *VALUES]
    text = [",".join(names)]
    for i, row in enumerate(rows):
        cells = [0 if value == MISSING else value for value in row]
        text.append(",".join(map(str, [int(i % 4 == 0), int(i % 8 == 0), *cells])))
    (processed / "ali_ccp_train.csv").write_text("\n".join(text))
    (processed / "ali_ccp_val.csv").write_text("\n".join(text[:6]))
    (processed / "ali_ccp_test.csv").write_text("\n".join(text[:4]))
    source = AliCCPSource(processed)
    raw = AliCCPSource(folder, min_count=1)
    assert source.spec.positive_rates == raw.spec.positive_rates
    present = raw.train_batch(60, 0, 0).sparse > 0
    # Where a row has a feature, equal features have equal ids in both.
    shift = (source.train_batch(60, 0, 0).sparse - raw.train_batch(60, 0, 0).sparse)[present]
    assert set(shift.tolist()) <= {0, 1}
    with pytest.raises(ValueError, match="pooling: expected last for aliccp-processed"):
        AliCCPSource(processed, preset="dtn")
    with pytest.raises(ValueError, match="pooling: expected last, sum or weighted, found 'mean'"):
        AliCCPSource(folder, pooling="mean")  # type: ignore[arg-type]  # wrong on purpose
    sizes = [
        AliCCPSource(processed, part=part).num_test_samples  # type: ignore[arg-type]
        for part in ("validation", "test", "both")
    ]
    assert sizes == [5, 3, 8]
    (processed / "ali_ccp_train.csv").write_text("click,purchase,shoe\n")
    with pytest.raises(ValueError, match=r"train.csv, line 1: expected a header of click,purchase"):
        AliCCPSource(processed)


def test_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    (folder / "common_features_test.csv").unlink()
    with pytest.raises(ValueError, match=r"expected one file common_features_test\.csv"):
        open_source(f"aliccp:{folder}")
    with pytest.raises(ValueError, match=r"expected one file train\.csv or ali_ccp_train\.csv"):
        open_source(f"aliccp:{tmp_path / 'absent'}")


def test_the_published_samples() -> None:
    root = os.environ.get("MTLFAST_DATA")
    if not root or not (Path(root) / "small-samples").is_dir():
        pytest.skip("MTLFAST_DATA names no folder with small-samples")
    folder = Path(root) / "small-samples"
    source = AliCCPSource(folder)
    assert source.spec.num_fields == 31
    assert (source.num_train_samples, source.num_test_samples) == (100, 100)
    assert AliCCPSource(folder, part="validation").num_test_samples == 50
    assert AliCCPSource(folder, preset="aitm").spec.num_fields == 18
    lines = (folder / "ali_ccp_train_sample.csv").read_text().splitlines()
    clicks = sum(int(line.split(",")[0]) for line in lines[1:])
    assert source.spec.positive_rates[0] == clicks / 100
    items = {line.split(",")[11] for line in lines[1:]}
    assert source.spec.vocab_sizes[source.spec.fields.index("205")] == 1 + len(items)
