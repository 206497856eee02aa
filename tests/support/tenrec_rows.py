"""Small files in the format of Tenrec's QK-video and ctr_data_1M."""

from __future__ import annotations

import random
from pathlib import Path
from typing import NamedTuple

COLUMNS = (
    "user_id", "item_id", "click", "follow", "like", "share", "video_category", "watching_times",
    "gender", "age",
)  # fmt: skip
HISTORY = tuple(f"hist_{i}" for i in range(1, 11))


class Impression(NamedTuple):
    user: int
    item: int
    actions: tuple[int, int, int, int]
    category: str
    gender: int
    age: int


def impressions(users: int = 12, seed: int = 0, most: int = 70) -> list[Impression]:
    """Rows of users 3, 7, 11, ...; one of them has a single row."""
    rng = random.Random(seed)
    rows = []
    for u in range(users):
        user, gender, age = 3 + 4 * u, rng.randrange(3), rng.randrange(8)
        for _ in range(1 if u == 1 else rng.randrange(1, most)):
            item = rng.randrange(40)
            click = int(rng.random() < 0.4)
            others = [int(click and rng.random() < p) for p in (0.2, 0.4, 0.1)]
            category = r"\N" if item % 9 == 0 else str(item % 2)
            rows.append(Impression(user, item, (click, *others), category, gender, age))
    return rows


def line(row: Impression, history: tuple[int, ...] = ()) -> str:
    cells = (row.user, row.item, *row.actions, row.category, 2, row.gender, row.age, *history)
    return ",".join(map(str, cells))


def history_of(user: int) -> tuple[int, ...]:
    """Up to ten clicks from before the rows, padded with 0."""
    count = user % 11
    return tuple(100 + user + i for i in range(count)) + (0,) * (10 - count)


def write(folder: Path, rows: list[Impression], history: bool = False) -> Path:
    """``QK-video.csv``, or with ``history`` ``ctr_data_1M.csv``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("ctr_data_1M.csv" if history else "QK-video.csv")
    lines = [",".join(COLUMNS + (HISTORY if history else ()))]
    lines += [line(row, history_of(row.user) if history else ()) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path
