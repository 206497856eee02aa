"""A large table as a data set: parquet on disk, a window of it in memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from mtlfast.bags import FieldBags
from mtlfast.data.batch import Batch
from mtlfast.data.progress import MakeProgress, no_progress
from mtlfast.data.source import DataSource
from mtlfast.data.spec import DatasetSpec
from mtlfast.data.tables.bags import StoredBags, bag_column
from mtlfast.data.tables.cache import cached_folder, default_root, read_manifest
from mtlfast.data.tables.prepare import PrepareOptions, bags_path, label_column, prepare
from mtlfast.data.tables.stored_rows import Ids, Labels, StoredRows
from mtlfast.data.tables.table_format import TableFormat
from mtlfast.jagged import JaggedSequences

__all__ = ["CachedTableSource", "EvaluationPart", "Pooling"]

EvaluationPart = Literal["test", "validation", "both"]
Pooling = Literal["last", "sum", "weighted"]


class CachedTableSource(DataSource):
    """Impressions of sparse fields, read from a cache that is made when it is first needed.

    * Ids get rows 1, 2, ... of their tables by vocabularies of the training part; others are
      unknown, row 0. Numbers go through :class:`mtlfast.data.bins.NumericBins` of a sample of the
      training part.
    * The order of an epoch: row groups of 65,536 rows in random order, and the rows of
      ``shuffle_rows`` of them mixed, which is all that is in memory.

    Args:
        source: the published files.
        options: how to make ids of them; a cache of its own for each choice.
        name: of the data set, for its spec.
        fields: the fields to offer, in this order; all when None.
        pooling: of multi-valued fields: "last" keeps only the last id of a row, as if there were
            no others; "sum" and "weighted" give all of them in ``Batch.bags``, the latter with
            the publisher's values as weights. For these, ``options.multi_valued`` must be set.
        part: what the source offers as its test part: "test", "validation" or "both". Where the
            publisher has no validation part these are halves of the test part.
        seed: fixes the order of the training rows in each epoch.
        shuffle_rows: rows that are mixed, about.
        cache: folder for the caches of all data sets; see ``default_root`` when None.
        progress: shows how far reading is.

    Raises:
        ValueError: naming the file and line of a malformed row, or a wrong option.
    """

    def __init__(
        self,
        source: TableFormat,
        options: PrepareOptions,
        *,
        name: str,
        fields: Sequence[str] | None = None,
        pooling: Pooling = "last",
        part: EvaluationPart = "both",
        seed: int = 0,
        shuffle_rows: int = 1 << 18,
        cache: str | Path | None = None,
        progress: MakeProgress = no_progress,
    ) -> None:
        if part not in ("test", "validation", "both"):
            raise ValueError(f"part: expected test, validation or both, found {part!r}")
        if pooling not in ("last", "sum", "weighted"):
            raise ValueError(f"pooling: expected last, sum or weighted, found {pooling!r}")
        if pooling != "last" and not source.multi_valued:
            raise ValueError(f"pooling: expected last for {source.name}, found {pooling!r}")
        for option, value, least in (("seed", seed, 0), ("shuffle_rows", shuffle_rows, 1)):
            if value < least:
                raise ValueError(f"{option}: expected at least {least}, found {value}")
        chosen = source.fields if fields is None else tuple(fields)
        unknown = [field for field in chosen if field not in source.fields]
        if unknown or not chosen:
            raise ValueError(f"fields: expected some of {list(source.fields)}, found {unknown}")

        self.folder = cached_folder(
            default_root() if cache is None else Path(cache).expanduser(),
            source.name,
            [file for files in source.files.values() for file in files],
            options.identity(),
            partial(prepare, source=source, options=options, progress=progress),
        )
        manifest: dict[str, Any] = read_manifest(self.folder) or {}
        bag_fields = () if pooling == "last" else source.multi_valued
        self.seed = seed
        self.left_out = dict(manifest["left_out"])
        self.skipped = self.left_out.pop("malformed", 0)
        self.spec = DatasetSpec(
            name=name,
            fields=chosen,
            vocab_sizes=tuple(manifest["vocab_sizes"][field] for field in chosen),
            item_field=None,
            behaviors=(),
            max_lengths=(),
            tasks=source.tasks,
            task_parents=source.task_parents,
            positive_rates=tuple(manifest["positive_rates"]),
            multi_valued=tuple(f for f, name in enumerate(chosen) if name in bag_fields),
        )
        self._weighted = pooling == "weighted"
        self._bags = {
            part: [
                StoredBags(bags_path(self.folder, part, chosen[f])) for f in self.spec.multi_valued
            ]
            for part in ("train", "test")
        }
        test_parts = ("validation", "test") if part == "both" else (part,)
        self._train = self._rows(manifest, ("train",), shuffle_rows)
        self._test = self._rows(manifest, test_parts, 1)

    def _rows(self, manifest: dict[str, Any], parts: Sequence[str], window: int) -> StoredRows:
        files = [self.folder / f"{part}.parquet" for part in parts if manifest["rows"][part]]
        bags = [bag_column(self.spec.fields[f]) for f in self.spec.multi_valued]
        labels = list(map(label_column, self.spec.tasks))
        return StoredRows(files, [*self.spec.fields, *bags], labels, window)

    @property
    def num_train_samples(self) -> int:
        return len(self._train)

    @property
    def num_test_samples(self) -> int:
        return len(self._test)

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        rows = slice(step * batch_size, (step + 1) * batch_size)
        return self._batch("train", *self._train.shuffled(rows, (self.seed, epoch)))

    def test_batch(self, batch_size: int, step: int) -> Batch:
        return self._batch("test", *self._test[step * batch_size : (step + 1) * batch_size])

    def _batch(self, part: str, ids: Ids, labels: Labels) -> Batch:
        fields, numbers = np.split(ids, [self.spec.num_fields], axis=1)
        stores = self._bags[part]
        return Batch(
            sparse=torch.from_numpy(fields).long(),
            sequences=None,
            labels=torch.from_numpy(labels).float(),
            bags=self._field_bags(stores, numbers) if stores else None,
        )

    def _field_bags(self, stores: Sequence[StoredBags], numbers: Ids) -> FieldBags:
        found = [store[column] for store, column in zip(stores, numbers.T, strict=True)]
        ids = np.concatenate([bags.ids for bags in found]).astype(np.int64)
        lengths = np.stack([bags.lengths for bags in found])
        weights = None
        if self._weighted:
            weights = torch.from_numpy(np.concatenate([bags.weights for bags in found]))
        return FieldBags(
            JaggedSequences.from_lengths(torch.from_numpy(ids), torch.from_numpy(lengths)), weights
        )
