"""Joining the impressions of an event log with what came before and after them.

Everything is a binary search in sorted integer keys: no loop over users or events. Times are
compared as ranks, so that (group, time) packs into one int64 without overflow.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.event_log import EventLog

__all__ = ["EventIndex", "EventJoin"]

Ints = NDArray[np.int64]


class EventIndex:
    """Some events of a log, sorted by (group, time, row), for causal look-ups.

    The events of one group have consecutive positions, oldest first. Positions returned by the
    methods count from 0 over all groups.

    Args:
        group: int64 ``[n]``, e.g. the user, or the user-item pair; small non-negative numbers.
        rank: int64 ``[n]`` in ``[0, num_ranks)``, the order in time.
        rows: int64 ``[n]``, the rows of the log these events come from.
    """

    def __init__(self, group: Ints, rank: Ints, rows: Ints, num_ranks: int) -> None:
        self._stride = num_ranks + 1
        keys = group * self._stride + rank
        order = np.argsort(keys, kind="stable")
        self._keys: Ints = keys[order]
        self.rows: Ints = rows[order]

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, group: Ints) -> Ints:
        """Position of the first event of each group."""
        return np.searchsorted(self._keys, group * self._stride, side="left")

    def before(self, group: Ints, rank: Ints) -> Ints:
        """Position behind the last event of the group strictly before the time."""
        return np.searchsorted(self._keys, group * self._stride + rank, side="left")

    def until(self, group: Ints, rank: Ints) -> Ints:
        """Position behind the last event of the group at or before the time."""
        return np.searchsorted(self._keys, group * self._stride + rank, side="right")


class EventJoin:
    """A log with its users, items, user-item pairs and times numbered from 0.

    Args:
        log: N events.

    Attributes:
        rank: int64 ``[N]``, the number of distinct timestamps before each event.
        group: for ``"user"``, ``"item"`` and ``"pair"`` int64 ``[N]``.
    """

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self._times, self.rank = np.unique(log.ts, return_inverse=True)
        user = np.unique(log.user, return_inverse=True)[1]
        items, item = np.unique(log.item, return_inverse=True)
        pair = np.unique(user * len(items) + item, return_inverse=True)[1]
        self.group: dict[str, Ints] = {"user": user, "item": item, "pair": pair}
        self._cache: dict[tuple[str, int | None], EventIndex] = {}

    def last_rank(self, ts: Ints) -> Ints:
        """Rank of the last event of the log at or before each time; -1 where there is none."""
        return np.searchsorted(self._times, ts, side="right") - 1

    def index(self, owner: str, behavior: int | None = None) -> EventIndex:
        """The events of one behavior (all of them for ``None``), grouped by ``owner``."""
        key = (owner, behavior)
        if key not in self._cache:
            behaviors = self.log.behavior
            rows = np.arange(len(behaviors))
            if behavior is not None:
                rows = np.flatnonzero(behaviors == behavior)
            self._cache[key] = EventIndex(
                self.group[owner][rows], self.rank[rows], rows, len(self._times)
            )
        return self._cache[key]

    def happens_after(self, rows: Ints, behavior: int, last_ts: Ints) -> NDArray[np.bool_]:
        """Whether the same user does ``behavior`` to the same item strictly after each event of
        ``rows`` and at ``last_ts`` at the latest.
        """
        index = self.index("pair", behavior)
        pair, now = self.group["pair"][rows], self.rank[rows]
        end = np.maximum(self.last_rank(last_ts), now)
        return index.until(pair, end) > index.until(pair, now)
