"""Result files: rows by key, written atomically after every job, so that nothing is ever lost."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]

_COLUMNS = (
    "name",
    "mode",
    "threads",
    "backend",
    "dtype",
    "allocator",
    "status",
    "seconds",
    "spread",
    "samples",
    "samples_per_s",
    "gflops",
    "of_peak",
    "of_fp32_peak",
    "gbs",
    "of_copy",
    "peak_bytes",
    "extra_bytes",
    "padding",
    "error",
    "max_error",
    "foreign_load",
    "date",
    "commit",
    "fingerprint",
)


def key_of(row: Row) -> str:
    """Identity of a measurement; measuring it again replaces the row."""
    parts = (row["name"], row["mode"], f"{row['threads']}t", row["allocator"], row["backend"])
    return "|".join(parts)


class Store:
    """The rows in ``folder/results.json``, and the same as ``results.csv``.

    Args:
        folder: created when missing.

    Raises:
        ValueError: the file is there and is not ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "results.json"
        self.environment: dict[str, Any] = {}
        self._rows: dict[str, Row] = {}
        if self.path.exists():
            try:
                content = json.loads(self.path.read_text(encoding="utf-8"))
                self.environment = content["environment"]
                self._rows = {key_of(row): row for row in content["rows"]}
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"results: cannot read {self.path} ({error}); move it away or choose another "
                    "folder with --out"
                ) from error

    @property
    def rows(self) -> list[Row]:
        """All rows in the order in which they were first measured."""
        return list(self._rows.values())

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def put(self, rows: Iterable[Row]) -> None:
        """Adds rows or replaces them, and writes everything."""
        for row in rows:
            self._rows[key_of(row)] = row
        self.write()

    def write(self) -> None:
        """Writes both files; each is complete at every moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"environment": self.environment, "rows": self.rows}
        write_atomically(self.path, json.dumps(content, indent=1, allow_nan=False) + "\n")
        write_atomically(self.folder / "results.csv", _as_csv(self.rows))


def _as_csv(rows: list[Row]) -> str:
    baselines = list(dict.fromkeys(name for row in rows for name in row.get("ratios", {})))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *(f"ratio_to_{name}" for name in baselines)])
    for row in rows:
        flat = row | {"dtype": row["case"]["dtype"]}
        ratios = row.get("ratios", {})
        cells = [flat.get(name) for name in _COLUMNS] + [ratios.get(name) for name in baselines]
        writer.writerow([_cell(value) for value in cells])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file in one step; readers see the old text or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
