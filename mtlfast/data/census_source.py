"""Census-Income (KDD) as a multi-task data set."""

from __future__ import annotations

import os
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.bins import NumericBins
from mtlfast.data.census import COLUMNS, NUMERIC, CensusTable, OnError, census_files, read_census
from mtlfast.data.spec import DatasetSpec
from mtlfast.data.table_source import TableSource

__all__ = ["CensusSource", "EvaluationPart"]

EvaluationPart = Literal["test", "validation", "both"]
TASKS = ("income", "never_married")
_NOT_FIELDS = ("instance_weight", "marital_stat", "income_50k")
_SPLIT_SEED = 2018  # fixed, so that the halves are the same in every run


class CensusSource(TableSource):
    """Two tasks of the MMoE paper (Ma et al., KDD 2018) on 39 fields.

    * Tasks: income above 50,000; never married. Their columns and the survey's sampling weight are
      no fields.
    * The 32 columns of names or codes get ids by vocabularies of the training file; what it does
      not hold is unknown, id 0. The 7 columns of numbers go through :class:`NumericBins`, also of
      the training file alone.
    * All of ``census-income.data`` trains. ``census-income.test`` is halved once and for all,
      stratified by income, into validation and test.

    Args:
        path: folder with ``census-income.data`` and ``census-income.test`` (also ``.gz``, ``.xz``,
            ``.zip``), or ``train.parquet`` and ``test.parquet``.
        part: what the source offers as its test part: a half of the test file, or "both".
        min_count: how often a number must occur to have its own id.
        num_bins: bins for the other numbers of a column.
        on_error: raise on a malformed row, or skip and count it.
        seed: fixes the order of the training rows in each epoch.

    Raises:
        ValueError: naming the file and line of a malformed row, or what is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        part: EvaluationPart = "test",
        min_count: int = 8,
        num_bins: int = 32,
        on_error: OnError = "raise",
        seed: int = 0,
    ) -> None:
        if part not in ("test", "validation", "both"):
            raise ValueError(f"part: expected test, validation or both, found {part!r}")
        files = census_files(path)
        train, test = (read_census(file, on_error=on_error) for file in files)
        for file, table in zip(files, (train, test), strict=True):
            if not len(_labels(table)):
                raise ValueError(f"{file}: expected rows, found none")
        names = tuple(name for name in COLUMNS if name not in _NOT_FIELDS)
        train_ids, test_ids, sizes = [], [], []
        for name in names:
            encode = _numbers if name in NUMERIC else _names
            ids, others, size = encode(train, test, name, min_count, num_bins)
            train_ids.append(ids)
            test_ids.append(others)
            sizes.append(size)
        train_labels, test_labels = _labels(train), _labels(test)
        rows = _part(test_labels[:, 0], part)
        spec = DatasetSpec(
            name="census",
            fields=names,
            vocab_sizes=tuple(sizes),
            item_field=None,
            behaviors=(),
            max_lengths=(),
            tasks=TASKS,
            task_parents=(None, None),
            positive_rates=tuple(train_labels.mean(axis=0).tolist()),
        )
        super().__init__(
            spec,
            (np.stack(train_ids, axis=1), train_labels),
            (np.stack(test_ids, axis=1)[rows], test_labels[rows]),
            seed=seed,
            skipped=train.skipped + test.skipped,
        )

    @staticmethod
    def halves(income: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of validation and test among the whole test file, by its incomes."""
        return _part(income, "validation"), _part(income, "test")


def _names(
    train: CensusTable, test: CensusTable, name: str, min_count: int, num_bins: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Ids 1, 2, ... of the training texts in alphabetical order; 0 for all others."""
    ids = {text: i + 1 for i, text in enumerate(sorted(train.values[name]))}
    columns = [
        np.array([ids.get(text, 0) for text in table.values[name]], np.int32)[table.codes[name]]
        for table in (train, test)
    ]
    return columns[0], columns[1], len(ids) + 1


def _numbers(
    train: CensusTable, test: CensusTable, name: str, min_count: int, num_bins: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    bins = NumericBins(train.numbers(name), min_count, num_bins)
    columns = [bins(table.numbers(name)).astype(np.int32) for table in (train, test)]
    return columns[0], columns[1], len(bins)


def _labels(table: CensusTable) -> NDArray[np.bool_]:
    return np.stack(
        (table.equals("income_50k", "50000+."), table.equals("marital_stat", "Never married")),
        axis=1,
    )


def _part(income: NDArray[np.bool_], part: EvaluationPart) -> NDArray[np.int64]:
    """The rows of one half of the test file, in file order; every class is halved by itself."""
    if part == "both":
        return np.arange(len(income))
    rng = np.random.default_rng(_SPLIT_SEED)
    chosen = []
    for label in (False, True):
        rows = rng.permutation(np.flatnonzero(income == label))
        half = len(rows) // 2
        chosen.append(rows[:half] if part == "validation" else rows[half:])
    return np.sort(np.concatenate(chosen))
