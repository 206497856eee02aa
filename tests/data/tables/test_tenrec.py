"""Tenrec: histories and labels against loops over the rows, the split, malformed rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tenrec_rows import history_of, impressions, line, write

from mtlfast.data import Batch, TenrecSource, open_source
from mtlfast.data.tables import tenrec
from mtlfast.data.tables.tenrec import BEHAVIORS, FIELDS, MAX_LENGTHS

ROWS = impressions()


def split(rows):
    """Positions of training and test rows: of every user the last tenth, at least one of two."""
    train, test = [], []
    for user in dict.fromkeys(row.user for row in rows):
        mine = [i for i, row in enumerate(rows) if row.user == user]
        held = max(len(mine) // 10, 1) if len(mine) > 1 else 0
        train += mine[: len(mine) - held]
        test += mine[len(mine) - held :]
    return train, test


def expected(rows, history):
    """Per row (values of the fields, labels, histories of item ids), with ids as tables have them.

    Unknown ids are 0.
    """
    train, _ = split(rows)
    values = [
        (r.user, r.item, -1 if r.category == r"\N" else int(r.category), r.gender, r.age)
        for r in rows
    ]
    tables = [sorted({values[i][f] for i in train}) for f in range(5)]
    code = [{v: k for k, v in enumerate(table, 1)} for table in tables]
    found = []
    lists, last = [], None
    for row, value in zip(rows, values, strict=True):
        if row.user != last:
            lists = [[] for _ in BEHAVIORS]
            lists[0] += [k for k in history_of(row.user) if k] if history else []
            last = row.user
        items = [
            [code[1].get(k, 0) for k in kept[-n:]]
            for kept, n in zip(lists, MAX_LENGTHS, strict=True)
        ]
        found.append(
            ([c.get(v, 0) for c, v in zip(code, value, strict=True)], list(row.actions), items)
        )
        for b, done in enumerate((*row.actions, 1 - row.actions[0])):
            if done:
                lists[b].append(row.item)
    return found, [len(table) + 1 for table in tables]


def read(batch: Batch):
    assert batch.sequences is not None
    ends, n = batch.sequences.offsets.tolist(), len(batch)
    values = batch.sequences.values.tolist()
    return [
        (
            batch.sparse[i].tolist(),
            batch.labels[i].int().tolist(),
            [values[ends[b * n + i] : ends[b * n + i + 1]] for b in range(len(BEHAVIORS))],
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("history", [False, True])
@pytest.mark.parametrize("block_bytes", [400, 1 << 20])
def test_rows_are_what_plain_loops_say(tmp_path: Path, monkeypatch, history, block_bytes) -> None:
    rows = impressions(most=220) if block_bytes > 400 else ROWS  # beyond the longest histories
    prepare = tenrec.prepare_tenrec
    monkeypatch.setattr(
        "mtlfast.data.tenrec_source.prepare_tenrec",
        lambda folder, **k: prepare(folder, **k, block_bytes=block_bytes),
    )
    source = TenrecSource(write(tmp_path, rows, history))
    found, sizes = expected(rows, history)
    train, test = split(rows)
    assert source.spec.vocab_sizes == tuple(sizes)
    assert (source.num_train_samples, source.num_test_samples) == (len(train), len(test))
    assert read(source.test_batch(len(test), 0)) == [found[i] for i in test]
    assert sorted(read(source.train_batch(len(train), 0, 0))) == sorted(found[i] for i in train)
    rates = np.mean([found[i][1] for i in train], axis=0)
    assert source.spec.positive_rates == pytest.approx(rates)
    longest = [max(len(row[2][b]) for row in found) for b in range(len(BEHAVIORS))]
    assert block_bytes == 400 or longest[0] == 50 == longest[4]


def test_spec(tmp_path: Path) -> None:
    spec = open_source(f"tenrec:{write(tmp_path, ROWS)}").spec
    assert (spec.fields, spec.behaviors, spec.max_lengths) == (FIELDS, BEHAVIORS, MAX_LENGTHS)
    assert (spec.tasks, spec.item_field) == (("click", "follow", "like", "share"), 1)
    assert spec.task_parents == (None,) * 4


def test_epochs_are_shuffled_and_repeat(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("mtlfast.data.tenrec_source._GROUP", 16)
    path = write(tmp_path, ROWS)
    small, large = TenrecSource(path, shuffle_rows=40), TenrecSource(path, seed=1)
    count = small.num_train_samples

    def order(source: TenrecSource, epoch: int, size: int) -> list[object]:
        batches = [source.train_batch(size, epoch, i) for i in range(-(-count // size))]
        return [row for batch in batches for row in read(batch)]

    orders = [order(small, 0, 7), order(small, 1, 7), order(large, 0, 7)]
    for found in orders:
        assert len(found) == count
        assert sorted(found) == sorted(orders[0])  # type: ignore[type-var]  # tuples of plain numbers
    assert orders[0] != orders[1] != orders[2]
    assert order(small, 0, 50) == orders[0]  # whatever the size of the batches
    again = TenrecSource(path, shuffle_rows=40)
    assert read(again.train_batch(7, 0, 5)) == orders[0][35:42]


def test_options(tmp_path: Path) -> None:
    path = write(tmp_path, ROWS)
    below = TenrecSource(path, below_user=20)
    kept = [row for row in ROWS if row.user < 20]
    assert below.num_train_samples + below.num_test_samples == len(kept)
    assert below.left_out == {"rows of users from 20 on": len(ROWS) - len(kept)}
    train, _ = split(ROWS)
    counts = np.bincount([ROWS[i].item for i in train], minlength=40)
    rare = TenrecSource(path, min_item_count=8)
    assert rare.spec.vocab_sizes[1] == 1 + int((counts >= 8).sum()) < 41
    random = TenrecSource(path, split="random")
    share = random.num_test_samples / len(ROWS)
    assert 0.05 < share < 0.16
    assert random.num_train_samples + random.num_test_samples == len(ROWS)
    for options, text in (
        ({"below_user": 0}, "below_user: expected at least 1"),
        ({"min_item_count": 0}, "min_item_count: expected at least 1"),
        ({"split": "first"}, "split: expected 'last' or 'random', found 'first'"),
        ({"on_error": "x"}, "on_error: expected"),
        ({"seed": -1}, "seed: expected at least 0"),
    ):
        with pytest.raises(ValueError, match=text):
            TenrecSource(path, **options)  # type: ignore[arg-type]  # wrong on purpose


def test_the_click_table_is_preferred_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path, ROWS)
    assert TenrecSource(tmp_path).num_train_samples == len(split(ROWS)[0])
    write(tmp_path, ROWS[:30], history=True)
    assert TenrecSource(tmp_path).num_train_samples == len(split(ROWS[:30])[0])
    with pytest.raises(ValueError, match=r"expected ctr_data_1M\.csv or QK-video\.csv"):
        TenrecSource(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2,3", "expected 10 columns, found 3"),
        (line(ROWS[4]._replace(actions=(2, 0, 0, 0))), "click: expected one of .0, 1., found 2"),
        (
            line(ROWS[4]._replace(category="x")),
            r"video_category: expected an integer or \\N, found",
        ),
        (line(ROWS[4]._replace(item=-5)), "item_id: expected an id of at least 0, found -5"),
        (line(ROWS[4]).replace(",", ",y", 1), "item_id: expected an integer, found"),
    ],
)
def test_malformed_rows_are_named_or_skipped(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, ROWS)
    whole = TenrecSource(path, below_user=None)
    lines = path.read_text().splitlines()
    lines[4:4] = [text]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=f"QK-video.csv, line 5: {message}"):
        TenrecSource(path)
    skipping = TenrecSource(path, on_error="skip")
    assert (skipping.skipped, skipping.left_out) == (1, {})
    a, b = skipping.train_batch(50, 0, 0), whole.train_batch(50, 0, 0)
    assert torch.equal(a.sparse, b.sparse)


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "QK-video.csv"
    path.write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match="line 1: expected a header with user_id,item_id,click"):
        TenrecSource(path)
    write(tmp_path, [])
    with pytest.raises(ValueError, match="expected impressions, found none"):
        TenrecSource(path)
    write(tmp_path, [ROWS[0], *[row for row in ROWS if row.user != ROWS[0].user], ROWS[0]])
    with pytest.raises(ValueError, match=f"found those of user {ROWS[0].user} in several places"):
        TenrecSource(path)
