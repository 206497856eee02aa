"""Ali-CCP as a multi-task data set."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mtlfast.data.compressed import OnError
from mtlfast.data.progress import MakeProgress, no_progress
from mtlfast.data.tables.aliccp import FIELDS, MULTI_VALUED, aliccp_format
from mtlfast.data.tables.cached_source import CachedTableSource, EvaluationPart, Pooling
from mtlfast.data.tables.prepare import PrepareOptions

__all__ = ["AliCCPSource", "Preset"]

Preset = Literal["rechub", "aitm", "dtn"]
# Fields (all there are for None), how often an id must occur, and how several become one.
_PRESETS: dict[str, tuple[tuple[str, ...] | None, int, Pooling]] = {
    "rechub": (None, 10, "last"),
    "aitm": (tuple(name for name in FIELDS if name not in MULTI_VALUED), 11, "last"),
    "dtn": (FIELDS, 1, "sum"),
}


class AliCCPSource(CachedTableSource):
    """Click, and purchase after it, of display ads in a shop.

    Purchases without a click are left out, as everybody does. The publisher splits training and
    test by time.

    Args:
        path: folder with the raw files ``sample_skeleton_train.csv``, ``common_features_train.csv``
            and the same two for ``test``, or with processed tables such as
            ``ali_ccp_train.csv``, ``ali_ccp_val.csv``, ``ali_ccp_test.csv``; any of them ``.gz``,
            ``.xz``, ``.zip``.
        preset: whose choice of fields. "rechub": torch-rechub's, all 23 ids that occur 10 times and
            8 values, here in bins. "aitm": AITM's, the 18 ids with one feature per row that occur
            more than 10 times. "dtn": that of DTN's published code, all 23 ids, with all features
            of a row; of raw files only.
        fields: other fields than the preset's.
        min_count: another count than the preset's; 1 for processed tables, whose ids were counted
            when they were made.
        pooling: another than the preset's for fields with several features in one row: "last" (all
            presets but dtn), "sum" (dtn), or "weighted", a sum in which each counts as much as the
            value that the publisher gives it. The latter two need raw files.
        part, seed, shuffle_rows, cache, progress: see :class:`CachedTableSource`.
        value_min_count, num_bins, sample_rows, on_error: see :class:`PrepareOptions`.

    Raises:
        ValueError: naming the file and line of a malformed row, or what is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        preset: Preset = "rechub",
        fields: Sequence[str] | None = None,
        pooling: Pooling | None = None,
        part: EvaluationPart = "both",
        min_count: int | None = None,
        value_min_count: int = 8,
        num_bins: int = 32,
        sample_rows: int = 200_000,
        on_error: OnError = "raise",
        seed: int = 0,
        shuffle_rows: int = 1 << 18,
        cache: str | Path | None = None,
        progress: MakeProgress = no_progress,
    ) -> None:
        if preset not in _PRESETS:
            raise ValueError(f"preset: expected one of {list(_PRESETS)}, found {preset!r}")
        chosen, preset_count, preset_pooling = _PRESETS[preset]
        pooling = preset_pooling if pooling is None else pooling
        source = aliccp_format(path)
        if min_count is None:
            min_count = preset_count if source.name == "aliccp-raw" else 1
        if chosen is not None:
            chosen = tuple(name for name in chosen if name in source.fields)
        super().__init__(
            source,
            PrepareOptions(
                min_count, value_min_count, num_bins, sample_rows, on_error, pooling != "last"
            ),
            name="aliccp",
            fields=chosen if fields is None else fields,
            pooling=pooling,
            part=part,
            seed=seed,
            shuffle_rows=shuffle_rows,
            cache=cache,
            progress=progress,
        )
