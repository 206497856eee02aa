"""Reading a multi-behavior event log from parquet, with every bad row named.

One row is one event: ``user``, ``item`` (integer ids >= 0), ``behavior`` (a code in
``[0, M)``), ``ts`` (unix seconds), and any further columns known when the event happens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["EventLog", "log_files", "read_event_log"]

REQUIRED = ("user", "item", "behavior", "ts")
ROWS_PER_READ = 1 << 20

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Categories:
    """A column of names: ``names[codes[i]]`` is the value of row i, ``None`` where null.

    Attributes:
        codes: int64 ``[N]``.
        names: the distinct values.
    """

    codes: Ints
    names: list[str | None]


@dataclass(frozen=True)
class EventLog:
    """N events in file order.

    Attributes:
        user, item: int64 ``[N]``, the ids of the file.
        behavior: int64 ``[N]``, codes in ``[0, M)``.
        ts: int64 ``[N]``, unix seconds.
        context: further columns.
        skipped: number of bad rows left out (``on_error="skip"``).
    """

    user: Ints
    item: Ints
    behavior: Ints
    ts: Ints
    context: dict[str, Categories]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.ts)


def log_files(path: str | os.PathLike[str]) -> list[Path]:
    """The parquet files of a log: the file itself; of a folder ``events.parquet`` or else every
    ``*.parquet``, by name.

    Raises:
        ValueError: if there is nothing to read, saying where it looked.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"path: expected a parquet file or a folder of them, found no {path}")
    if (path / "events.parquet").is_file():
        return [path / "events.parquet"]
    files = sorted(path.glob("*.parquet"))
    if not files:
        raise ValueError(f"path: expected *.parquet files in the folder {path}, found none")
    return files


def read_event_log(
    path: str | os.PathLike[str],
    num_behaviors: int,
    *,
    context_columns: Sequence[str] = (),
    on_error: Literal["raise", "skip"] = "raise",
) -> EventLog:
    """Read and check an event log.

    Args:
        path: parquet file or folder, see :func:`log_files`.
        num_behaviors: M; behavior codes must lie in ``[0, M)``.
        context_columns: further columns to read, of any type; their values become strings.
        on_error: what to do with a row that has a null, negative, fractional or unknown value
            in one of the four required columns: raise, or skip and count it.

    Raises:
        ValueError: naming the file and the (0-based) row of the first bad row, or the file and
            its missing columns.
        ImportError: if pyarrow is not installed.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
    parquet = _import_parquet()
    numbers: dict[str, list[Ints]] = {c: [] for c in REQUIRED}
    context: dict[str, list[Any]] = {c: [] for c in context_columns}
    skipped = 0
    for file in log_files(path):
        with _open_parquet(parquet, file) as reader:
            _check_columns(file, reader.schema_arrow.names, context_columns)
            first_row = 0
            for records in reader.iter_batches(ROWS_PER_READ, columns=[*numbers, *context]):
                values = {c: _integers(file, c, records.column(c)) for c in REQUIRED}
                good = _good_rows(file, first_row, values, num_behaviors, on_error)
                skipped += len(good) - int(good.sum())
                first_row += len(good)
                for c in numbers:
                    numbers[c].append(values[c].numbers[good])
                for c in context:
                    context[c].append(_strings(records.column(c), good))
    joined = {c: np.concatenate([np.empty(0, np.int64), *parts]) for c, parts in numbers.items()}
    return EventLog(
        user=joined["user"],
        item=joined["item"],
        behavior=joined["behavior"],
        ts=joined["ts"],
        context={c: _categories(parts) for c, parts in context.items()},
        skipped=skipped,
    )


def _import_parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "reading parquet event logs needs pyarrow: pip install 'mtlfast[train]' "
            "(or pip install pyarrow)"
        ) from error
    return pyarrow.parquet


def _open_parquet(parquet: ModuleType, file: Path) -> Any:
    import pyarrow

    try:
        return parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{file}: expected a parquet file, found: {error}") from error


def _check_columns(file: Path, found: list[str], context_columns: Sequence[str]) -> None:
    missing = [c for c in (*REQUIRED, *context_columns) if c not in found]
    if missing:
        raise ValueError(
            f"{file}: missing columns {missing}; expected {[*REQUIRED, *context_columns]}, "
            f"found {found}"
        )


@dataclass(frozen=True)
class _Column:
    numbers: Ints  # undefined where invalid
    invalid: NDArray[np.bool_]  # null or not an integer
    raw: Any  # the arrow column, to quote a bad value


def _integers(file: Path, name: str, column: Any) -> _Column:
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    invalid = column.is_null().to_numpy(zero_copy_only=False)
    if pa.types.is_integer(kind):
        # Casting wraps uint64 beyond int64 to a negative number, which is then a bad row.
        numbers = column.cast(pa.int64(), safe=False).fill_null(-1).to_numpy(zero_copy_only=False)
        return _Column(numbers, invalid, column)
    if pa.types.is_floating(kind):
        floats = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
        # From 2^53 on, float64 no longer holds every integer: such an id may be a wrong one.
        whole = (np.abs(floats) < 2**53) & (np.floor(floats) == floats)
        return _Column(np.where(whole, floats, -1).astype(np.int64), ~whole, column)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        whole = pc.match_substring_regex(column, r"^-?\d{1,18}$").fill_null(False)
        text = pc.if_else(whole, column, "-1")
        return _Column(
            text.cast(pa.int64()).to_numpy(zero_copy_only=False),
            ~whole.to_numpy(zero_copy_only=False),
            column,
        )
    raise ValueError(f"{file}: {name}: expected a column of integers, found {kind}")


def _good_rows(
    file: Path,
    first_row: int,
    columns: dict[str, _Column],
    num_behaviors: int,
    on_error: str,
) -> NDArray[np.bool_]:
    bad = {c: column.invalid | (column.numbers < 0) for c, column in columns.items()}
    bad["behavior"] |= columns["behavior"].numbers >= num_behaviors
    any_bad = np.logical_or.reduce(list(bad.values()))
    if on_error == "raise" and any_bad.any():
        row = int(any_bad.argmax())
        expected = {
            "user": "an integer id >= 0",
            "item": "an integer id >= 0",
            "behavior": f"a code in [0, {num_behaviors})",
            "ts": "integer unix seconds >= 0",
        }
        name = next(c for c in REQUIRED if bad[c][row])
        value = columns[name].raw[row].as_py()
        raise ValueError(
            f"{file}, row {first_row + row} (0-based): {name}: expected {expected[name]}, "
            f"found {'null' if value is None else repr(value)}"
        )
    return ~any_bad


def _strings(column: Any, good: NDArray[np.bool_]) -> Any:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string()).filter(pa.array(good)).dictionary_encode()


def _categories(parts: list[Any]) -> Categories:
    import pyarrow as pa

    if not parts:
        return Categories(np.empty(0, np.int64), [])
    column = pa.chunked_array(parts).unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = column.chunk(0)
    names: list[str | None] = [*column.dictionary.to_pylist(), None]
    codes = column.indices.cast(pa.int64()).fill_null(len(names) - 1)
    return Categories(codes.to_numpy(zero_copy_only=False), names)
