"""Which task waits for which: dependencies of DTN's task-sensitive network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtlfast.errors import bad


def parse_dependencies(
    value: str | Mapping[int, Sequence[int]],
    num_tasks: int,
    parents: Sequence[int | None],
    names: Sequence[str] | None = None,
) -> tuple[frozenset[int], ...]:
    """The ancestors of every task.

    Args:
        value: "earlier" (every task depends on all before it), "parents" (the data's own tree),
            "none", pairs ``"cvr:cart,cvr:click"`` (dependent:precedent, by name or number), or a
            mapping from a task to those it depends on.
        num_tasks: ``T``.
        parents: the data's tree of tasks.
        names: names of the tasks, where they have any.

    Returns:
        Per task all tasks it depends on, directly or through others.

    Raises:
        ValueError: for unknown tasks or a cycle.
    """
    direct: dict[int, set[int]] = {task: set() for task in range(num_tasks)}
    if isinstance(value, Mapping):
        for task, precedents in value.items():
            for precedent in precedents:
                _add(direct, task, precedent)
    elif value == "earlier":
        direct = {task: set(range(task)) for task in range(num_tasks)}
    elif value == "parents":
        direct = {task: set() if p is None else {p} for task, p in enumerate(parents)}
    elif value not in ("none", ""):
        for pair in value.split(","):
            first, colon, second = (part.strip() for part in pair.partition(":"))
            if not colon:
                raise bad(
                    "dependencies",
                    "earlier, parents, none, or pairs dependent:precedent such as cvr:ctr",
                    repr(value),
                )
            _add(direct, _task(first, num_tasks, names), _task(second, num_tasks, names))
    return tuple(frozenset(_ancestors(task, direct, ())) for task in range(num_tasks))


def task_order(ancestors: Sequence[frozenset[int]]) -> list[int]:
    """The tasks so that every one comes after its ancestors."""
    return sorted(range(len(ancestors)), key=lambda task: (len(ancestors[task]), task))


def _add(direct: dict[int, set[int]], task: int, precedent: int) -> None:
    for number in (task, precedent):
        if number not in direct:
            raise bad("dependencies", f"tasks in [0, {len(direct)})", number)
    direct[task].add(precedent)


def _task(text: str, num_tasks: int, names: Sequence[str] | None) -> int:
    if names is not None and text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < num_tasks:
        return int(text)
    known = list(range(num_tasks)) if names is None else list(names)
    raise bad("dependencies", f"tasks among {known}", repr(text))


def _ancestors(task: int, direct: dict[int, set[int]], path: tuple[int, ...]) -> set[int]:
    if task in path:
        raise bad("dependencies", "no cycle", f"one through task {task}")
    found = set(direct[task])
    for precedent in direct[task]:
        found |= _ancestors(precedent, direct, (*path, task))
    return found
