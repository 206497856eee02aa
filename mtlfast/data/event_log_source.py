"""Impressions of a real event log, with causal histories and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast._ranges import gather_ranges
from mtlfast.data.batch import Batch
from mtlfast.data.event_fields import FieldBuilder
from mtlfast.data.event_log import EventLog
from mtlfast.data.impressions import EventJoin
from mtlfast.data.source import DataSource
from mtlfast.data.spec import DatasetSpec
from mtlfast.jagged import JaggedSequences

__all__ = ["EventLogConfig", "EventLogSource"]

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class EventLogConfig:
    """How to read an event log as a multi-task data set.

    Attributes:
        cut: unix seconds; impressions before it train, those from it on test.
        behaviors: names of the behavior codes 0, 1, ... of the file. Each is a history.
        impression: the behavior whose events are the impressions.
        tasks: behaviors to predict: does this user do it to this item after the impression?
        label_window: seconds after the impression in which it counts.
        max_length: longest history, in events.
        context_columns: further columns of the file, known at impression time.
        fields: names of the sparse fields, see ``FieldBuilder``; must contain ``"item"``.
            ``None`` takes all that ``FieldBuilder.default_names`` lists.
        task_parents: the funnel, as in ``DatasetSpec``; ``None`` if there is none.

    Raises:
        ValueError: naming the option.
    """

    cut: int
    behaviors: tuple[str, ...] = ("view", "like", "bookmark", "follow", "comment")
    impression: str = "view"
    tasks: tuple[str, ...] = ("like", "bookmark", "follow", "comment")
    label_window: int = 86_400
    max_length: int = 50
    context_columns: tuple[str, ...] = ("country", "region")
    fields: Sequence[str] | None = None
    task_parents: tuple[int | None, ...] | None = None

    def __post_init__(self) -> None:
        unknown = [name for name in (self.impression, *self.tasks) if name not in self.behaviors]
        if unknown:
            raise ValueError(f"behaviors: expected to contain {unknown}, found {self.behaviors}")
        if self.impression in self.tasks:
            raise ValueError(f"tasks: expected other behaviors than {self.impression!r}")
        if self.label_window < 1:
            raise ValueError(f"label_window: expected at least 1 s, found {self.label_window}")
        if self.max_length < 1:
            raise ValueError(f"max_length: expected at least 1, found {self.max_length}")
        if self.fields is not None and "item" not in self.fields:
            raise ValueError(f"fields: expected to contain 'item', found {list(self.fields)}")


class EventLogSource(DataSource):
    """A multi-task data set from one table of events.

    * An impression is an event of ``config.impression``.
    * Its history of a behavior is this user's latest ``max_length`` events of it *strictly before*
      the impression's second, oldest first; events of one second keep the order of the file.
    * Its label of a task is 1 if the same user does that to the same item *strictly after* the
      impression and within ``label_window``. Labels of training impressions see only events before
      the cut, as a model trained at that moment would; so the last window before the cut has some
      positives missing.
    * Vocabularies hold what occurs before the cut. Other ids become 0, also inside histories
      (where the event keeps its place).

    Histories are ranges of one array per behavior, materialized batch by batch.

    Args:
        log: the events, in any order.
        config: see there.
        seed: fixes the order of the training impressions in each epoch.
        name: for the spec.

    Attributes:
        train_rows, test_rows: rows of the impressions in the log, ordered by time.

    Raises:
        ValueError: if no impression lies before the cut.
    """

    def __init__(
        self, log: EventLog, config: EventLogConfig, *, seed: int = 0, name: str = "events"
    ) -> None:
        if seed < 0:
            raise ValueError(f"seed: expected at least 0, found {seed}")
        self.config = config
        self.seed = seed
        self.skipped = log.skipped
        self._order: tuple[int, Ints] | None = None

        rows = np.flatnonzero(log.behavior == config.behaviors.index(config.impression))
        rows = rows[np.argsort(log.ts[rows], kind="stable")]
        num_train = int(np.searchsorted(log.ts[rows], config.cut, side="left"))
        if num_train == 0:
            raise ValueError(
                f"cut: expected a time after the first {config.impression!r} event "
                f"({log.ts[rows[0]] if len(rows) else 'there is none'}), found {config.cut}"
            )
        self.train_rows, self.test_rows = rows[:num_train], rows[num_train:]

        join = EventJoin(log)
        builder = FieldBuilder(join, rows, config.behaviors, config.impression, log.ts < config.cut)
        names = tuple(builder.default_names() if config.fields is None else config.fields)
        columns, vocab_sizes = zip(*(builder(name) for name in names), strict=True)
        self._sparse = np.stack([column.astype(np.int32) for column in columns], axis=1)
        self._labels = _labels(join, rows, num_train, config)
        self._items, self._starts, self._ends = _histories(
            join, rows, builder.item_vocabulary(log.item), config
        )
        num_tasks = len(config.tasks)
        self.spec = DatasetSpec(
            name=name,
            fields=names,
            vocab_sizes=vocab_sizes,
            item_field=names.index("item"),
            behaviors=config.behaviors,
            max_lengths=(config.max_length,) * len(config.behaviors),
            tasks=config.tasks,
            task_parents=config.task_parents or (None,) * num_tasks,
            positive_rates=tuple(self._labels[:num_train].mean(axis=0).tolist()),
        )

    @property
    def num_train_samples(self) -> int:
        return len(self.train_rows)

    @property
    def num_test_samples(self) -> int:
        return len(self.test_rows)

    def train_order(self, epoch: int) -> Ints:
        """Positions in ``train_rows`` in the order of an epoch, fixed by the seed."""
        if self._order is None or self._order[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            self._order = epoch, rng.permutation(self.num_train_samples)
        return self._order[1]

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        return self._batch(self.train_order(epoch)[step * batch_size : (step + 1) * batch_size])

    def test_batch(self, batch_size: int, step: int) -> Batch:
        start = self.num_train_samples + step * batch_size
        stop = min(start + batch_size, len(self._labels))
        return self._batch(np.arange(start, stop))

    def _batch(self, samples: Ints) -> Batch:
        values, offsets = gather_ranges(
            self._items, self._starts[:, samples].ravel(), self._ends[:, samples].ravel()
        )
        return Batch(
            sparse=torch.from_numpy(self._sparse[samples].astype(np.int64)),
            sequences=JaggedSequences(
                torch.from_numpy(values),
                torch.from_numpy(offsets),
                self.spec.num_behaviors,
                self.spec.max_length,
            ),
            labels=torch.from_numpy(self._labels[samples].astype(np.float32)),
        )


def _labels(
    join: EventJoin, rows: Ints, num_train: int, config: EventLogConfig
) -> NDArray[np.bool_]:
    last_ts = join.log.ts[rows] + config.label_window
    last_ts[:num_train] = np.minimum(last_ts[:num_train], config.cut - 1)
    behaviors = [config.behaviors.index(task) for task in config.tasks]
    return np.stack([join.happens_after(rows, b, last_ts) for b in behaviors], axis=1)


def _histories(
    join: EventJoin, rows: Ints, item_ids: Ints, config: EventLogConfig
) -> tuple[Ints, Ints, Ints]:
    """Item ids of all behaviors in one array, and the range of each history in it, ``[M, I]``."""
    user, rank = join.group["user"][rows], join.rank[rows]
    items, starts, ends = [], [], []
    base = 0
    for behavior in range(len(config.behaviors)):
        index = join.index("user", behavior)
        end = index.before(user, rank)
        starts.append(base + np.maximum(index.first(user), end - config.max_length))
        ends.append(base + end)
        items.append(item_ids[index.rows])
        base += len(index)
    return np.concatenate(items), np.stack(starts), np.stack(ends)
