"""Columns of numbers from blocks of comma-separated text, through pyarrow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.tables.blocks import Malformed

__all__ = ["Kind", "expect_codes", "import_csv", "labels", "numpy", "parse_columns"]

Kind = Literal["integer", "number", "bytes", "category"]
Column = NDArray[Any]


def import_csv() -> ModuleType:
    """``pyarrow.csv``.

    Raises:
        ImportError: saying what to install.
    """
    try:
        import pyarrow.csv
    except ImportError as error:
        raise ImportError(
            "reading CSV data needs pyarrow: pip install 'mtlfast[train]' (or pip install pyarrow)"
        ) from error
    return pyarrow.csv


def parse_columns(block: bytes, kinds: Mapping[str, Kind], lines: int | None = None) -> Any:
    """An arrow table of a block of lines without header or quotes.

    Args:
        block: whole lines, at least one.
        kinds: names and kinds of all columns, in order. "category" is a dictionary of bytes.
        lines: expected number of rows; counted where None.

    Raises:
        Malformed: for a wrong number of columns, or what is no (finite) number where one should be.
    """
    import pyarrow as pa

    csv = import_csv()
    types = {
        "integer": pa.int64(),
        "number": pa.float64(),
        "bytes": pa.binary(),
        "category": pa.dictionary(pa.int32(), pa.binary()),
    }
    if lines is None:
        lines = block.count(b"\n") + (not block.endswith(b"\n"))
    try:
        table = csv.read_csv(
            pa.py_buffer(block),
            read_options=csv.ReadOptions(column_names=list(kinds), block_size=1 << 22),
            parse_options=csv.ParseOptions(
                quote_char=False, double_quote=False, ignore_empty_lines=False
            ),
            convert_options=csv.ConvertOptions(
                column_types={name: types[kind] for name, kind in kinds.items()},
                null_values=[],
                check_utf8=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise Malformed(_problem(block, kinds, str(error))) from error
    if table.num_rows != lines:  # a carriage return inside a line
        raise Malformed(_problem(block, kinds, f"expected {lines} lines, found {table.num_rows}"))
    for name, kind in kinds.items():
        if kind == "number" and not np.isfinite(numpy(table, name)).all():
            raise Malformed(_problem(block, kinds, f"{name}: expected finite numbers"))
    return table


def numpy(table: Any, name: str) -> Column:
    """A column as one array."""
    column: Column = table.column(name).to_numpy()
    return column


def expect_codes(values: Column, name: str, allowed: tuple[int, ...]) -> None:
    """Check that a column holds nothing but ``allowed``.

    Raises:
        Malformed: naming the column and the first other value.
    """
    known = np.isin(values, allowed)
    if not known.all():
        wrong = values[np.argmin(known)]
        raise Malformed(f"{name}: expected one of {allowed}, found {wrong}")


def labels(table: Any, names: Sequence[str]) -> NDArray[np.bool_]:
    """Columns of 0 and 1 as ``[n, T]``.

    Raises:
        Malformed: naming the first other value.
    """
    columns = [numpy(table, name) for name in names]
    for name, column in zip(names, columns, strict=True):
        expect_codes(column, name, (0, 1))
    return np.stack([column == 1 for column in columns], axis=1)


def _problem(block: bytes, kinds: Mapping[str, Kind], otherwise: str) -> str:
    """What is wrong with a block of one line."""
    if block.count(b"\n", 0, -1):
        return otherwise  # it will be cut into its lines
    cells = block.decode("utf-8", "replace").rstrip("\r\n").split(",")
    if len(cells) != len(kinds):
        return f"expected {len(kinds)} columns, found {len(cells)}"
    for (name, kind), cell in zip(kinds.items(), cells, strict=True):
        if kind == "integer" and not _is_integer(cell):
            return f"{name}: expected an integer, found {cell!r}"
        if kind == "number" and not _is_finite(cell):
            return f"{name}: expected a finite number, found {cell!r}"
    return otherwise


def _is_integer(text: str) -> bool:
    digits = text.strip(" ").removeprefix("-")
    return digits.isascii() and digits.isdecimal() and len(digits) < 19


def _is_finite(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
