"""Tenrec QK-video as a multi-task, multi-behavior data set."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.data.batch import Batch
from mtlfast.data.compressed import OnError
from mtlfast.data.progress import MakeProgress, no_progress
from mtlfast.data.source import DataSource
from mtlfast.data.spec import DatasetSpec
from mtlfast.data.tables.cache import cached_folder, default_root, read_manifest
from mtlfast.data.tables.tenrec import (
    BEHAVIORS,
    FIELDS,
    MAX_LENGTHS,
    TASKS,
    StoredImpressions,
    TenrecOptions,
    prepare_tenrec,
    tenrec_file,
)
from mtlfast.jagged import JaggedSequences

__all__ = ["TenrecSource"]

_USERS_1M = 1_000_017  # the publisher's ctr_data_1M holds the users below
_GROUP = 1 << 14  # training rows that stay together in a shuffle

Ints = NDArray[np.int64]


class TenrecSource(DataSource):
    """Click, follow, like and share of videos, with five histories (DTRN, CIKM 2023, Table 3).

    * Rows of a user are in the order of time. The histories of a row are what this user clicked,
      followed, liked, shared and passed over ("negative") above it: the latest 50, 10, 20, 10 and
      50, oldest first. ``ctr_data_1M`` lacks the rows of each user's first clicks and names up to
      ten of these in columns; they come first among the clicks.
    * Fields: user, item, video category (missing is an id of its own), gender, age. Not the
      watching time, which is known only after the fact.
    * How DTRN made sequences and test part is not published. Here the test part is each user's last
      tenth of rows; vocabularies hold what is in the other rows.
    * The order of an epoch: groups of 16,384 rows in random order, and the rows of ``shuffle_rows``
      of them mixed.

    The first use reads the file into a cache of about 80 bytes per row, in bounded memory.

    Args:
        path: ``ctr_data_1M.csv`` or ``QK-video.csv`` (also ``.gz``, ``.xz``, ``.zip``), or a folder
            with one of them.
        below_user: leave out users with larger ids; by default what makes QK-video the one-million
            subset. None keeps all of them.
        min_item_count: items with fewer training rows are unknown.
        split: "last" as said above, or "random", a random tenth of all rows.
        on_error: raise on a malformed row, or skip and count it.
        seed: fixes the order of the training rows in each epoch.
        shuffle_rows: rows that are mixed, about.
        cache: folder for the caches of all data sets; see ``default_root`` when None.
        progress: shows how far reading is.

    Raises:
        ValueError: naming the file and line of a malformed row, or what is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        below_user: int | None = _USERS_1M,
        min_item_count: int = 1,
        split: Literal["last", "random"] = "last",
        on_error: OnError = "raise",
        seed: int = 0,
        shuffle_rows: int = 1 << 20,
        cache: str | Path | None = None,
        progress: MakeProgress = no_progress,
    ) -> None:
        for name, value, least in (("seed", seed, 0), ("shuffle_rows", shuffle_rows, 1)):
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, found {value}")
        options = TenrecOptions(below_user, min_item_count, split, on_error)
        file = tenrec_file(Path(path))
        self.folder = cached_folder(
            default_root() if cache is None else Path(cache).expanduser(),
            "tenrec",
            [file],
            options.identity(),
            partial(prepare_tenrec, file=file, options=options, progress=progress),
        )
        manifest: dict[str, Any] = read_manifest(self.folder) or {}
        self.seed = seed
        self.left_out = dict(manifest["left_out"])
        self.skipped = self.left_out.pop("malformed", 0)
        self.spec = DatasetSpec(
            name="tenrec",
            fields=FIELDS,
            vocab_sizes=tuple(manifest["vocab_sizes"]),
            item_field=FIELDS.index("item_id"),
            behaviors=BEHAVIORS,
            max_lengths=MAX_LENGTHS,
            tasks=TASKS,
            task_parents=(None,) * len(TASKS),
            positive_rates=tuple(manifest["positive_rates"]),
        )
        self._stored = StoredImpressions(self.folder)
        self._groups_per_window = max(1, shuffle_rows // _GROUP)
        self._window: tuple[tuple[int, int], Ints] | None = None

    @property
    def num_train_samples(self) -> int:
        return len(self._stored.train)

    @property
    def num_test_samples(self) -> int:
        return len(self._stored.test)

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        start, stop = step * batch_size, min((step + 1) * batch_size, self.num_train_samples)
        return self._batch(self._stored.train[self._shuffled(epoch, start, stop)])

    def test_batch(self, batch_size: int, step: int) -> Batch:
        return self._batch(self._stored.test[step * batch_size : (step + 1) * batch_size])

    def _shuffled(self, epoch: int, start: int, stop: int) -> Ints:
        """Places in the training part of an epoch's samples ``start`` to ``stop``."""
        count = self.num_train_samples
        groups = np.random.default_rng([self.seed, epoch]).permutation(-(-count // _GROUP))
        sizes = np.minimum(_GROUP, count - groups * _GROUP)
        per_window = self._groups_per_window
        ends = np.cumsum(np.add.reduceat(sizes, np.arange(0, len(sizes), per_window)))
        found = [np.empty(0, np.int64)]
        while start < stop:
            number = int(np.searchsorted(ends, start, side="right"))
            if self._window is None or self._window[0] != (epoch, number):
                chosen = groups[number * per_window : (number + 1) * per_window]
                places = [np.arange(g * _GROUP, min((g + 1) * _GROUP, count)) for g in chosen]
                rng = np.random.default_rng([self.seed, epoch, number])
                self._window = (epoch, number), rng.permutation(np.concatenate(places))
            window = self._window[1]
            first = int(ends[number]) - len(window)
            found.append(window[start - first : min(stop, int(ends[number])) - first])
            start = first + min(stop - first, len(window))
        return np.concatenate(found)

    def _batch(self, rows: NDArray[np.integer]) -> Batch:
        ids, labels, values, lengths = self._stored.rows(np.asarray(rows, np.int64))
        return Batch(
            sparse=torch.from_numpy(ids),
            sequences=JaggedSequences.from_lengths(
                torch.from_numpy(values), torch.from_numpy(lengths), max_len=self.spec.max_length
            ),
            labels=torch.from_numpy(labels.astype(np.float32)),
        )
