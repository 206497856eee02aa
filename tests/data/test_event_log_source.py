"""Impressions of event logs: nothing from the future, checked against plain loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtlfast.data import Batch, EventLog, EventLogConfig, EventLogSource, read_event_log
from mtlfast.data.event_log import Categories

CUT = 1_483_228_800


def make_log(events: list[tuple[int, int, int, int]], country: list[int] | None = None) -> EventLog:
    table = np.array(events, dtype=np.int64).reshape(-1, 4)
    codes = np.array(country if country is not None else [0] * len(table), dtype=np.int64)
    context = {"country": Categories(codes, ["a", "b", None])}
    user, item, behavior, ts = table.T
    return EventLog(user, item, behavior, ts, context)


def make_config(cut: int, **changes: object) -> EventLogConfig:
    values = {"cut": cut, "label_window": 5, "max_length": 3, "context_columns": ("country",)}
    return EventLogConfig(**{**values, **changes})  # type: ignore[arg-type]


class Naive:
    """The definition, with loops."""

    def __init__(self, log: EventLog, config: EventLogConfig) -> None:
        self.events = list(
            zip(
                log.user.tolist(),
                log.item.tolist(),
                log.behavior.tolist(),
                log.ts.tolist(),
                strict=True,
            )
        )
        self.config = config
        known = [event for event in self.events if event[3] < config.cut]
        self.item_row = {item: 1 + k for k, item in enumerate(sorted({e[1] for e in known}))}
        self.user_row = {user: 1 + k for k, user in enumerate(sorted({e[0] for e in known}))}

    def history(self, row: int, behavior: int) -> list[int]:
        user, _, _, now = self.events[row]
        past = [e for e in self.events if e[0] == user and e[2] == behavior and e[3] < now]
        past.sort(key=lambda event: event[3])  # stable: ties stay in file order
        return [self.item_row.get(e[1], 0) for e in past[-self.config.max_length :]]

    def labels(self, row: int) -> list[float]:
        user, item, _, now = self.events[row]
        end = now + self.config.label_window
        if now < self.config.cut:
            end = min(end, self.config.cut - 1)
        wanted = [self.config.behaviors.index(task) for task in self.config.tasks]
        return [
            float(any(e[:3] == (user, item, b) and now < e[3] <= end for e in self.events))
            for b in wanted
        ]

    def earlier(self, row: int, owner: str, behavior: int | None = None) -> list[int]:
        user, item, _, now = self.events[row]
        return sorted(
            e[3]
            for e in self.events
            if e[3] < now
            and (owner == "item" or e[0] == user)
            and (owner == "user" or e[1] == item)
            and (behavior is None or e[2] == behavior)
        )


def bucket(value: int, most: int) -> int:
    return min(1 + value.bit_length(), most)


def rows_and_batches(source: EventLogSource, size: int) -> list[tuple[list[int], Batch]]:
    order = source.train_rows[source.train_order(0)]
    parts = [(order, source.train_batches(size)), (source.test_rows, source.test_batches(size))]
    return [
        (rows[k * size : (k + 1) * size].tolist(), batch)
        for rows, stream in parts
        for k, batch in enumerate(stream)
    ]


def histories(batch: Batch, sample: int) -> list[list[int]]:
    offsets = batch.sequences.offsets.tolist()
    segments = range(sample, batch.sequences.num_behaviors * len(batch), len(batch))
    return [batch.sequences.values[offsets[s] : offsets[s + 1]].tolist() for s in segments]


@st.composite
def logs(draw: st.DrawFn) -> tuple[EventLog, EventLogConfig]:
    """Small logs with few users, items and seconds: many ties, repeats and unknown ids."""
    event = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 4), st.integers(0, 15))
    events = draw(st.lists(event, min_size=1, max_size=50))
    views = [ts for _, _, behavior, ts in events if behavior == 0]
    if not views:
        events.append((0, 0, 0, 3))
        views = [3]
    cut = draw(st.integers(min(views) + 1, 17))
    country = draw(st.lists(st.integers(0, 2), min_size=len(events), max_size=len(events)))
    window = draw(st.integers(1, 20))
    return make_log(events, country), make_config(cut, label_window=window)


@settings(max_examples=150, deadline=None)
@given(logs(), st.integers(1, 7))
def test_batches_are_what_plain_loops_say(case: tuple[EventLog, EventLogConfig], size: int) -> None:
    log, config = case
    source, naive = EventLogSource(log, config), Naive(log, config)
    fields = source.spec.fields
    seen = []
    for rows, batch in rows_and_batches(source, size):
        batch.sequences.validate()
        assert len(batch) == len(rows)
        assert batch.user_index is None
        seen += rows
        for sample, row in enumerate(rows):
            assert histories(batch, sample) == [naive.history(row, b) for b in range(5)]
            assert batch.labels[sample].tolist() == naive.labels(row)
            ids = dict(zip(fields, batch.sparse[sample].tolist(), strict=True))
            assert ids["item"] == naive.item_row.get(int(log.item[row]), 0)
            assert ids["user"] == naive.user_row.get(int(log.user[row]), 0)
            assert ids["user_like_count"] == bucket(len(naive.earlier(row, "user", 1)), 12)
            assert ids["item_view_count"] == bucket(len(naive.earlier(row, "item", 0)), 12)
            assert ids["pair_view_count"] == bucket(len(naive.earlier(row, "pair", 0)), 12)
            for owner in ("user", "item", "pair"):
                past = naive.earlier(row, owner)
                gap = int(log.ts[row]) - past[-1] if past else 0
                assert ids[f"{owner}_gap"] == bucket(gap, 28)
            past = naive.earlier(row, "item")
            assert ids["item_age"] == bucket(int(log.ts[row]) - past[0] if past else 0, 28)
    assert sorted(seen) == np.flatnonzero(log.behavior == 0).tolist()


@settings(max_examples=100, deadline=None)
@given(logs(), st.data())
def test_inputs_ignore_everything_at_or_after_the_impression(
    case: tuple[EventLog, EventLogConfig], data: st.DataObject
) -> None:
    log, config = case
    views = log.behavior == 0
    later = np.flatnonzero(views & (log.ts > log.ts[views].min())).tolist()
    assume(later)
    row = data.draw(st.sampled_from(later))
    now = int(log.ts[row])
    shuffle = data.draw(st.permutations(range(len(log))))
    item = np.where(log.ts < now, log.item, log.item[shuffle])
    behavior = np.where(log.ts < now, log.behavior, log.behavior[shuffle])
    item[row], behavior[row] = log.item[row], 0
    ts = np.where((log.ts > now) & (item % 2 == 0), log.ts + 3, log.ts)
    config = make_config(cut=now, fields=all_fields(config))
    before = EventLogSource(log, config)
    after = EventLogSource(EventLog(log.user, item, behavior, ts, log.context), config)
    assert inputs(before, row) == inputs(after, row)


def all_fields(config: EventLogConfig) -> list[str]:
    owners = ("user", "item", "pair")
    names = [f"{o}_{b}_{k}" for o in owners for b in config.behaviors for k in ("count", "rate")]
    names += [f"{o}_{k}" for o in owners for k in ("gap", "age")]
    return ["user", "item", "country", "hour", "weekday", *names]


def inputs(source: EventLogSource, row: int) -> tuple[list[int], list[list[int]]]:
    sample = source.test_rows.tolist().index(row)
    batch = source.test_batch(1, sample)
    return batch.sparse[0].tolist(), histories(batch, 0)


def test_events_of_the_same_second_are_neither_history_nor_label() -> None:
    events = [(0, 1, 0, 10), (0, 1, 0, 10), (0, 1, 1, 10), (0, 1, 2, 11), (0, 1, 3, 16)]
    source = EventLogSource(make_log(events), make_config(cut=20))
    batch = source.train_batch(10, 0, 0)
    assert len(batch.sequences.values) == 0
    # like at the same second, bookmark a second later, follow after the window of 5 s
    assert batch.labels.tolist() == [[0, 1, 0, 0]] * 2


def test_train_labels_do_not_look_across_the_cut() -> None:
    events = [(0, 1, 0, 9), (0, 1, 1, 10), (0, 1, 0, 10), (0, 1, 1, 11)]
    source = EventLogSource(make_log(events), make_config(cut=10))
    assert source.train_batch(9, 0, 0).labels.tolist() == [[0, 0, 0, 0]]
    assert source.test_batch(9, 0).labels.tolist() == [[1, 0, 0, 0]]
    assert source.spec.positive_rates == (0, 0, 0, 0)


def test_context_unseen_in_training_is_unknown_and_null_is_a_value() -> None:
    events = [(0, 1, 0, 1), (0, 1, 0, 2), (0, 1, 0, 11), (0, 1, 0, 12)]
    source = EventLogSource(make_log(events, country=[0, 2, 1, 2]), make_config(cut=10))
    column = source.spec.fields.index("country")
    assert source.spec.vocab_sizes[column] == 3
    assert source.test_batch(2, 0).sparse[:, column].tolist() == [0, 2]


def test_hour_and_weekday() -> None:
    # 2017-01-01 was a Sunday.
    source = EventLogSource(make_log([(0, 0, 0, CUT + 13 * 3600)]), make_config(CUT + 86_400))
    ids = dict(zip(source.spec.fields, source.train_batch(1, 0, 0).sparse[0].tolist(), strict=True))
    assert ids["hour"] == 1 + 13
    assert ids["weekday"] == 7


def test_epochs_are_different_permutations_fixed_by_the_seed() -> None:
    events = [(k % 7, k % 11, k % 5, k) for k in range(500)]
    log, config = make_log(events), make_config(cut=400)
    source, same, other = (EventLogSource(log, config, seed=s) for s in (1, 1, 2))
    order = source.train_order(0)
    assert sorted(order) == list(range(80))
    assert (order == same.train_order(0)).all()
    assert (order != source.train_order(1)).any()
    assert (order != other.train_order(0)).any()
    whole = list(source.train_batches(16, epoch=1))
    assert [len(batch) for batch in whole] == [16] * 5
    same.train_batch(16, 0, 0)
    for got, expected in zip(same.train_batches(16, 1, start_step=2), whole[2:], strict=True):
        assert torch.equal(got.sparse, expected.sparse)
        assert torch.equal(got.sequences.values, expected.sequences.values)


def test_behaviors_and_tasks_are_configurable() -> None:
    events = [(0, 1, 1, 1), (0, 1, 1, 2), (0, 1, 0, 3)]
    config = make_config(
        cut=10, behaviors=("buy", "cart"), impression="cart", tasks=("buy",), fields=("item",)
    )
    source = EventLogSource(make_log(events), config)
    assert source.spec.behaviors == ("buy", "cart")
    assert source.spec.fields == ("item",)
    batch = source.train_batch(2, 0, 0)
    assert batch.labels.tolist() == [[1], [1]]
    assert sorted(batch.sequences.lengths()[0].tolist()) == [0, 0]
    assert sorted(batch.sequences.lengths()[1].tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ("share",)}, r"behaviors: expected to contain \['share'\]"),
        ({"impression": "show"}, r"behaviors: expected to contain \['show'\]"),
        ({"tasks": ("view",)}, "tasks: expected other behaviors than 'view'"),
        ({"label_window": 0}, "label_window: expected at least 1 s, found 0"),
        ({"max_length": 0}, "max_length: expected at least 1, found 0"),
        ({"fields": ("user",)}, "fields: expected to contain 'item'"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(cut=10, **changes)


def test_unknown_fields_and_useless_cuts_are_refused() -> None:
    log = make_log([(0, 0, 0, 5)])
    with pytest.raises(
        ValueError, match=r"fields: expected names from .*'user_gap'.*found 'color'"
    ):
        EventLogSource(log, make_config(cut=10, fields=("item", "color")))
    with pytest.raises(ValueError, match=r"cut: .*first 'view' event \(5\), found 5"):
        EventLogSource(log, make_config(cut=5))
    with pytest.raises(ValueError, match="there is none"):
        EventLogSource(make_log([(0, 0, 1, 5)]), make_config(cut=10))
    with pytest.raises(ValueError, match="seed: expected at least 0"):
        EventLogSource(log, make_config(cut=10), seed=-1)


def test_real_data_has_no_event_at_or_after_its_impression(deskdrop_folder: Path) -> None:
    config = EventLogConfig(cut=CUT)
    log = read_event_log(deskdrop_folder, 5, context_columns=config.context_columns)
    source = EventLogSource(log, config)
    assert source.num_train_samples == 56_229
    assert source.num_test_samples == 4_857

    # Every user's events of each behavior in order of time, from plain Python.
    known = np.unique(log.item[log.ts < CUT])
    row_of_item = {item: 1 + k for k, item in enumerate(known.tolist())}
    events: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for k in np.argsort(log.ts, kind="stable").tolist():
        key = (int(log.user[k]), int(log.behavior[k]))
        row = row_of_item.get(int(log.item[k]), 0)
        events.setdefault(key, []).append((int(log.ts[k]), row))
    checked = 0
    for rows, batch in rows_and_batches(source, 4096):
        for sample in range(0, len(rows), 29):
            user, now = int(log.user[rows[sample]]), int(log.ts[rows[sample]])
            for b, found in enumerate(histories(batch, sample)):
                past = [row for ts, row in events.get((user, b), []) if ts < now]
                assert found == past[-50:]
                checked += len(found)
    assert checked > 50_000


def test_real_data_labels(deskdrop_folder: Path) -> None:
    config = EventLogConfig(cut=CUT)
    log = read_event_log(deskdrop_folder, 5, context_columns=config.context_columns)
    source = EventLogSource(log, config)
    times: dict[tuple[int, int, int], list[int]] = {}
    for k in range(len(log)):
        key = (int(log.user[k]), int(log.item[k]), int(log.behavior[k]))
        times.setdefault(key, []).append(int(log.ts[k]))
    for rows, batch in rows_and_batches(source, 4096):
        for sample in range(0, len(rows), 11):
            row = rows[sample]
            now = int(log.ts[row])
            end = min(now + 86_400, CUT - 1) if now < CUT else now + 86_400
            user, item = int(log.user[row]), int(log.item[row])
            after = [times.get((user, item, b), []) for b in (1, 2, 3, 4)]
            expected = [float(any(now < t <= end for t in ts)) for ts in after]
            assert batch.labels[sample].tolist() == expected
