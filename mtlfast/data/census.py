"""Reading Census-Income (KDD) in the publisher's raw format or as parquet.

Raw: no header, 42 columns, comma and blank between them, one person per line; plain, ``.gz``,
``.xz`` or the only file in a ``.zip``. Parquet: the same columns under the names of
:data:`COLUMNS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.compressed import ENDINGS, OnError, open_binary

__all__ = ["COLUMNS", "NUMERIC", "CensusTable", "census_files", "read_census"]

COLUMNS = (
    "age",
    "class_worker",
    "det_ind_code",
    "det_occ_code",
    "education",
    "wage_per_hour",
    "hs_college",
    "marital_stat",
    "major_ind_code",
    "major_occ_code",
    "race",
    "hisp_origin",
    "sex",
    "union_member",
    "unemp_reason",
    "full_or_part_emp",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "tax_filer_stat",
    "region_prev_res",
    "state_prev_res",
    "det_hh_fam_stat",
    "det_hh_summ",
    "instance_weight",
    "mig_chg_msa",
    "mig_chg_reg",
    "mig_move_reg",
    "mig_same",
    "mig_prev_sunbelt",
    "num_emp",
    "fam_under_18",
    "country_father",
    "country_mother",
    "country_self",
    "citizenship",
    "own_or_self",
    "vet_question",
    "vet_benefits",
    "weeks_worked",
    "year",
    "income_50k",
)
# Numbers; all other columns are names, or codes that stand for names.
NUMERIC = (
    "age",
    "wage_per_hour",
    "capital_gains",
    "capital_losses",
    "stock_dividends",
    "num_emp",
    "weeks_worked",
)
INCOMES = ("- 50000.", "50000+.")
_WEIGHT = "instance_weight"  # of the survey's sampling; not a feature
_ROWS_PER_READ = 1 << 14


@dataclass(frozen=True)
class CensusTable:
    """The rows of one file, column by column.

    Attributes:
        codes: per column int32 ``[N]``.
        values: per column the distinct texts; row ``i`` holds ``values[c][codes[c][i]]``.
        skipped: malformed rows left out (``on_error="skip"``).
    """

    codes: dict[str, NDArray[np.int32]]
    values: dict[str, list[str]]
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.codes["age"])

    def texts(self, column: str) -> NDArray[np.str_]:
        """The column as text."""
        return np.array(self.values[column], dtype=np.str_)[self.codes[column]]

    def numbers(self, column: str) -> NDArray[np.float64]:
        """A column of :data:`NUMERIC`."""
        return np.array([float(text) for text in self.values[column]])[self.codes[column]]

    def equals(self, column: str, text: str) -> NDArray[np.bool_]:
        """Where the column holds ``text``."""
        return np.array([value == text for value in self.values[column]])[self.codes[column]]


def census_files(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    """The training and the test file in a folder: the raw ones, or ``train``/``test.parquet``.

    Raises:
        ValueError: if they are not there, saying which were looked for.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"path: expected a folder with census-income.data, found no {folder}")
    found = []
    for raw, parquet in (
        ("census-income.data", "train.parquet"),
        ("census-income.test", "test.parquet"),
    ):
        names = [raw + ending for ending in ENDINGS] + [parquet]
        there = [folder / name for name in names if (folder / name).is_file()]
        if not there:
            raise ValueError(f"path: expected one of {names} in {folder}, found none")
        found.append(there[0])
    return found[0], found[1]


def read_census(path: str | os.PathLike[str], *, on_error: OnError = "raise") -> CensusTable:
    """Read and check one file.

    Args:
        path: raw (plain, ``.gz``, ``.xz``, ``.zip``) or parquet.
        on_error: what to do with a row that has a wrong number of columns, no number in a column
            of numbers, or an unknown income: raise, or skip and count it.

    Raises:
        ValueError: naming the file and the line (parquet: 0-based row) of the first bad row.
        ImportError: for parquet, if pyarrow is not installed.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error: expected 'raise' or 'skip', found {on_error!r}")
    path = Path(path)
    reader = _Reader(path, on_error)
    if path.suffix == ".parquet":
        for first, rows in _parquet_rows(path):
            reader.add(rows, first, "row")
    else:
        for first, rows in _raw_rows(path):
            reader.add(rows, first, "line")
    return reader.table()


class _Reader:
    """Turns rows of text into codes, chunk by chunk."""

    def __init__(self, path: Path, on_error: OnError) -> None:
        self.path = path
        self.on_error = on_error
        self.skipped = 0
        self._codes: dict[str, list[NDArray[np.int32]]] = {name: [] for name in COLUMNS}
        self._known: dict[str, dict[str, int]] = {name: {} for name in COLUMNS}
        self._numbers: dict[str, bool] = {}

    def add(self, rows: list[list[str]], first: int, unit: str) -> None:
        good = []
        for i, row in enumerate(rows):
            problem = self._problem(row)
            if not problem:
                good.append(row)
            elif self.on_error == "skip":
                self.skipped += 1
            else:
                raise ValueError(f"{self.path}, {unit} {first + i}: {problem}")
        for name, column in zip(COLUMNS, zip(*good, strict=True), strict=False):
            if name == _WEIGHT:
                continue
            known = self._known[name]
            codes = [known.setdefault(text, len(known)) for text in column]
            self._codes[name].append(np.array(codes, dtype=np.int32))

    def _problem(self, row: list[str]) -> str:
        if len(row) != len(COLUMNS):
            return f"expected {len(COLUMNS)} columns, found {len(row)}"
        for at in _NUMERIC_PLACES:
            if not self._is_number(row[at]):
                return f"{COLUMNS[at]}: expected a number, found {row[at]!r}"
        if row[-1] not in INCOMES:
            return f"income_50k: expected one of {INCOMES}, found {row[-1]!r}"
        return ""

    def _is_number(self, text: str) -> bool:
        known = self._numbers.get(text)
        if known is None:
            try:
                known = bool(np.isfinite(float(text)))
            except ValueError:
                known = False
            self._numbers[text] = known
        return known

    def table(self) -> CensusTable:
        columns = [name for name in COLUMNS if name != _WEIGHT]
        return CensusTable(
            {c: np.concatenate([np.empty(0, np.int32), *self._codes[c]]) for c in columns},
            {c: list(self._known[c]) for c in columns},
            self.skipped,
        )


_NUMERIC_PLACES = [COLUMNS.index(name) for name in NUMERIC]


def _raw_rows(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    """Chunks of rows with the number of their first line; columns without blanks around them."""
    first = 1
    with open_binary(path) as binary:
        file = TextIOWrapper(binary, encoding="utf-8", errors="replace")
        while lines := list(islice(file, _ROWS_PER_READ)):
            yield first, [[cell.strip() for cell in line.split(",")] for line in lines]
            first += len(lines)


def _parquet_rows(path: Path) -> Iterator[tuple[int, list[list[str]]]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            "reading parquet needs pyarrow: pip install 'mtlfast[train]' (or pip install pyarrow)"
        ) from error
    try:
        reader = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path}: expected a parquet file, found: {error}") from error
    with reader:
        names = reader.schema_arrow.names
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise ValueError(f"{path}: missing columns {missing}; found {names}")
        first = 0
        for records in reader.iter_batches(_ROWS_PER_READ, columns=list(COLUMNS)):
            columns = [
                ["" if v is None else str(v).strip() for v in records.column(name).to_pylist()]
                for name in COLUMNS
            ]
            yield first, [list(row) for row in zip(*columns, strict=True)]
            first += records.num_rows
