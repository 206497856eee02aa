"""Trees of tasks."""

from __future__ import annotations

from collections.abc import Sequence

from mtlfast.errors import bad


def tree_levels(parents: Sequence[int | None]) -> list[list[int]]:
    """Tasks by depth: roots first, then their children, and so on.

    Raises:
        ValueError: for a parent out of range or a cycle.
    """
    for task, parent in enumerate(parents):
        if parent is not None and (not 0 <= parent < len(parents) or parent == task):
            raise bad(
                "parents",
                f"None or another task in [0, {len(parents)})",
                f"parents[{task}] = {parent}",
            )
    levels = [[task for task, parent in enumerate(parents) if parent is None]]
    while levels[-1]:
        above = set(levels[-1])
        levels.append([task for task, parent in enumerate(parents) if parent in above])
    levels.pop()
    if sum(map(len, levels)) != len(parents):
        raise bad("parents", "a tree", f"a cycle in {list(parents)}")
    return levels
