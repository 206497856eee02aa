"""Ali-CCP's lists of features: ``field \\x02 feature \\x03 value``, separated by ``\\x01``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.tables.blocks import Malformed
from mtlfast.data.tables.csv_columns import Kind, numpy, parse_columns

__all__ = ["Features", "parse_features"]

_AS_CSV = bytes.maketrans(b"\x01\x02\x03", b"\n,,")
_KINDS: dict[str, Kind] = {"field": "category", "feature": "integer", "value": "number"}

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Features:
    """The features of ``n`` rows one after the other, ``N`` in all.

    Attributes:
        row: int64 ``[N]``, ascending.
        field: int64 ``[N]``, as numbered by the caller; -1 for fields it does not know.
        feature: int64 ``[N]``.
        value: float64 ``[N]``.
    """

    row: Ints
    field: Ints
    feature: Ints
    value: NDArray[np.float64]


def parse_features(lists: Any, counts: Ints, fields: Mapping[str, int]) -> Features:
    """Parse a column.

    Args:
        lists: arrow column of bytes ``[n]``.
        counts: how many features each row says it has.
        fields: number of each field.

    Raises:
        Malformed: for a count that does not hold, or an entry that is no feature.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    found = pc.count_substring(lists, b"\x01").to_numpy().astype(np.int64)
    found += pc.binary_length(lists).to_numpy() > 0
    if not np.array_equal(found, counts):
        at = int(np.argmax(found != counts))
        raise Malformed(
            f"feat_num: expected {found[at]}, the features in feat_list, found {counts[at]}"
        )
    if not counts.any():
        nothing = np.empty(0, np.int64)
        return Features(nothing, nothing, nothing, np.empty(0))
    filled = lists.filter(pa.array(counts > 0))
    whole = pa.ListArray.from_arrays(pa.array([0, len(filled)], pa.int32()), filled)
    text = pc.binary_join(whole, b"\x01")[0].as_py().translate(_AS_CSV)
    try:
        table = parse_columns(text, _KINDS, int(counts.sum()))
    except Malformed as error:
        raise _first_wrong(text, error) if len(lists) == 1 else error from error
    names = table.column("field").unify_dictionaries().combine_chunks()
    texts = [name.decode("utf-8", "replace") for name in names.dictionary.to_pylist()]
    known = [fields.get(text, -1) for text in texts]
    return Features(
        np.repeat(np.arange(len(counts)), counts),
        np.array(known, np.int64)[names.indices.to_numpy()],
        numpy(table, "feature"),
        numpy(table, "value"),
    )


def _first_wrong(text: bytes, otherwise: Malformed) -> Malformed:
    for number, entry in enumerate(text.split(b"\n"), 1):
        try:
            parse_columns(entry + b"\n", _KINDS)
        except Malformed as error:
            return Malformed(f"feat_list, feature {number}: {error}")
    return otherwise
