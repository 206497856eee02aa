"""Small files in the raw and the processed format of the AliExpress search data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np

USER_IDS = (2, 3, 4, 5, 6, 7, 8, 32, 33)
ITEM_IDS = (19, 34, 35, 36, 40, 41, 42)
LABELS = ((0, 0), (1, 0), (1, 1))


def user_row(page: int) -> list[str]:
    """A search page: its number, ids and numbers that tell the column."""
    cells = [str(page)]
    for column in range(2, 34):
        value = 10 * column + page % 3
        cells.append(str(value) if column in USER_IDS else f"{value / 1000}")
    return cells


def item_row(page: int, i: int, label: int | None = None) -> list[str]:
    """The i-th impression."""
    cells = [str(page)]
    for column in range(2, 49):
        value = 1000 + 10 * column + i % 4
        cells.append(str(value) if column in ITEM_IDS else f"{value / 10000}")
    return [*cells, str(i % 3 if label is None else label)]


def processed_row(user: list[str], item: list[str]) -> list[str]:
    """The two joined, as the processed tables have them."""
    ids = [user[c - 1] for c in USER_IDS] + [item[c - 1] for c in ITEM_IDS]
    numbers = [c for i, c in enumerate(user, 1) if i > 1 and i not in USER_IDS]
    numbers += [c for i, c in enumerate(item, 1) if 1 < i < 49 and i not in ITEM_IDS]
    return [user[0], *ids, *numbers, *map(str, LABELS[int(item[48])])]


def text(rows: list[list[str]]) -> str:
    return "".join(",".join(row) + "\n" for row in rows)


def write_raw(folder: Path, pages: int = 20, seed: int = 0, country: str = "NL") -> None:
    """Four files; ``pages`` search pages with 3 impressions each in training, half in test."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for part, first, count in (("train", 100, pages), ("test", 500, pages // 2)):
        numbers = first + rng.permutation(count)
        users = [user_row(int(page)) for page in numbers]
        items = [item_row(first + i % count, i) for i in range(3 * count)]
        (folder / f"{country}_user_{part}.csv").write_text(text(users))
        (folder / f"{country}_item_{part}.csv").write_text(text(items))
