"""Ids and bins of a table's fields, fitted on its training rows as they stream by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.bins import NumericBins, RowSample
from mtlfast.data.tables.table_format import MISSING
from mtlfast.data.vocabulary import IdCounts, Vocabulary

__all__ = ["EncoderFit", "Encoders"]

Encoder = Vocabulary | NumericBins


class EncoderFit:
    """Sees the training rows once, block by block.

    In memory: every distinct id with its count, and ``sample_rows`` values per numeric field.

    Args:
        categorical: names of the fields with ids.
        numeric: names of the fields with numbers.
        sample_rows: training rows whose numbers decide the bins; all rows where there are fewer.
    """

    def __init__(
        self, categorical: Sequence[str], numeric: Sequence[str], sample_rows: int
    ) -> None:
        self._counts = {name: IdCounts() for name in categorical}
        self._sample = RowSample(tuple(numeric), sample_rows)

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Look at some rows."""
        for name, counts in self._counts.items():
            ids = columns[name]
            counts.add(ids[ids != MISSING])
        self._sample.add(columns)

    def add_ids(self, field: str, ids: NDArray[np.int64]) -> None:
        """Look at ids of a field that has several per row."""
        self._counts.setdefault(field, IdCounts()).add(ids)

    def finish(self, min_count: int, value_min_count: int, num_bins: int) -> Encoders:
        """The encoders.

        Args:
            min_count: ids seen less often are unknown.
            value_min_count, num_bins: see :class:`NumericBins`; the former counts in the sample.
        """
        encoders: dict[str, Encoder] = {
            name: counts.vocabulary(min_count) for name, counts in self._counts.items()
        }
        for name, values in self._sample.columns().items():
            encoders[name] = NumericBins(values, value_min_count, num_bins)
        return Encoders(encoders)


class Encoders:
    """Turns what the publisher wrote into rows of embedding tables.

    Args:
        encoders: per field a vocabulary or bins.
    """

    def __init__(self, encoders: Mapping[str, Encoder]) -> None:
        self._encoders = dict(encoders)

    def vocabulary(self, field: str) -> Vocabulary:
        """That of a field with ids."""
        encoder = self._encoders[field]
        if not isinstance(encoder, Vocabulary):
            raise TypeError(f"{field}: expected a field with ids, found one with numbers")
        return encoder

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each field's table, row 0 included."""
        return {name: len(encoder) for name, encoder in self._encoders.items()}

    def __call__(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int32]]:
        """int32 rows, 0 for what training has not seen."""
        return {
            name: encoder(columns[name]).astype(np.int32)
            for name, encoder in self._encoders.items()
        }

    def save(self, path: Path) -> None:
        """Write, as ``.npz``, the ids (``<field>``) or ``<field>/values`` and ``<field>/edges``."""
        arrays: dict[str, NDArray[Any]] = {}
        for name, encoder in self._encoders.items():
            if isinstance(encoder, Vocabulary):
                arrays[name] = encoder.ids
            else:
                arrays[f"{name}/values"] = encoder.values
                arrays[f"{name}/edges"] = encoder.edges
        save: Callable[..., None] = np.savez
        save(path, **arrays)
