"""AliExpress' search log as a multi-task data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from mtlfast.data.compressed import OnError
from mtlfast.data.progress import MakeProgress, no_progress
from mtlfast.data.tables.aliexpress import aliexpress_format
from mtlfast.data.tables.cached_source import CachedTableSource, EvaluationPart
from mtlfast.data.tables.prepare import PrepareOptions

__all__ = ["AliExpressSource"]


class AliExpressSource(CachedTableSource):
    """Click and conversion of the impressions of a search engine, 16 + 63 fields.

    Conversion is a purchase after a click, among all impressions (CTCVR). The publisher splits
    training and test by time.

    Args:
        path: folder with one country's raw files ``NL_user_train.csv``, ``NL_item_train.csv``,
            ``NL_user_test.csv``, ``NL_item_test.csv``, or with the processed tables ``train.csv``
            and ``test.csv`` (also ``aliexpress_train*.csv``); any of them ``.gz``, ``.xz``,
            ``.zip``.
        country: which one, where the folder holds raw files of several.
        fields, part, seed, shuffle_rows, cache, progress: see :class:`CachedTableSource`.
        min_count, value_min_count, num_bins, sample_rows, on_error: see :class:`PrepareOptions`.

    Raises:
        ValueError: naming the file and line of a malformed row, or what is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        country: str | None = None,
        fields: Sequence[str] | None = None,
        part: EvaluationPart = "both",
        min_count: int = 1,
        value_min_count: int = 8,
        num_bins: int = 32,
        sample_rows: int = 200_000,
        on_error: OnError = "raise",
        seed: int = 0,
        shuffle_rows: int = 1 << 18,
        cache: str | Path | None = None,
        progress: MakeProgress = no_progress,
    ) -> None:
        options = PrepareOptions(min_count, value_min_count, num_bins, sample_rows, on_error)
        super().__init__(
            aliexpress_format(path, country),
            options,
            name="aliexpress",
            fields=fields,
            part=part,
            seed=seed,
            shuffle_rows=shuffle_rows,
            cache=cache,
            progress=progress,
        )
