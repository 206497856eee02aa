"""Finding a data set's files in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from mtlfast.data.compressed import ENDINGS
from mtlfast.data.tables.table_format import FilePart

__all__ = ["only_file", "table_files"]

_COMPRESSED = "|".join(re.escape(ending) for ending in ENDINGS if ending)


def only_file(folder: Path, stem: str) -> Path:
    """The one file ``stem``, ``stem.csv`` or either of them compressed; upper or lower case.

    Raises:
        ValueError: if there is none or more than one.
    """
    found = _matching(folder, re.escape(stem))
    if len(found) != 1:
        raise ValueError(
            f"path: expected one file {stem}.csv (or {', '.join(ENDINGS[1:])}) in {folder}, "
            f"found {[file.name for file in found] or 'none'}"
        )
    return found[0]


def table_files(folder: Path, prefix: str, example: str) -> dict[FilePart, tuple[Path, ...]]:
    """Processed tables, one per part: ``train.csv``, or ``{prefix}*train*.csv``; likewise ``test``,
    and ``val`` or ``dev`` where there is one.

    Args:
        prefix: a regular expression.
        example: a name that it matches, for messages.

    Raises:
        ValueError: if train or test are missing, or more than one file fits.
    """
    files: dict[FilePart, tuple[Path, ...]] = {}
    words: dict[FilePart, str] = {"train": "train", "validation": "val|dev", "test": "test"}
    for part, word in words.items():
        found = _matching(folder, rf"(?:(?:{prefix})[\w.]*)?(?:{word})(?:_\w+)?")
        if len(found) > 1 or (not found and part != "validation"):
            raise ValueError(
                f"path: expected one file {word}.csv or {example}_{word}.csv (or "
                f"{', '.join(ENDINGS[1:])}) in {folder}, "
                f"found {[file.name for file in found] or 'none'}"
            )
        if found:
            files[part] = (found[0],)
    return files


def _matching(folder: Path, stem: str) -> list[Path]:
    pattern = re.compile(rf"(?:{stem})(?:\.csv)?(?:{_COMPRESSED})?", re.IGNORECASE)
    names = sorted(folder.iterdir()) if folder.is_dir() else []
    return [file for file in names if file.is_file() and pattern.fullmatch(file.name)]
