"""Sparse fields of an impression, all of them known when it happens.

Counts and times since an earlier event look only at events strictly before the impression, and
are put into buckets by powers of two, so that an embedding table can hold them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.impressions import EventIndex, EventJoin
from mtlfast.data.vocabulary import Vocabulary

__all__ = ["FieldBuilder"]

Ints = NDArray[np.int64]

_COUNT_BUCKETS = 12  # the last one holds 2^10 and more
_TIME_BUCKETS = 28  # the last one holds 2^26 seconds (two years) and more
_RATE_BUCKETS = 10
_RATE_UNIT = 256  # rates are told apart down to 1 / 256
_OWNERS = ("user", "item", "pair")


class FieldBuilder:
    """Computes fields by name.

    ``user``, ``item``
        ids, by vocabularies of the events before the cut.
    any column of ``log.context``
        likewise; null is a value of its own.
    ``hour``, ``weekday``
        of the impression, in UTC.
    ``{user,item,pair}_{behavior}_count``
        earlier events of that behavior by this user, on this item, by this user on this item.
    ``{user,item,pair}_{behavior}_rate``
        that count per earlier impression.
    ``{user,item,pair}_gap``
        time since the latest earlier event of this user, item or pair.
    ``{user,item,pair}_age``
        time since its first event.

    Args:
        join: the events.
        rows: rows of the impressions in the log, int64 ``[I]``.
        behaviors: names of the behavior codes.
        impression: which of them is the impression.
        known: bool ``[N]``, the events that vocabularies may see.
    """

    def __init__(
        self,
        join: EventJoin,
        rows: Ints,
        behaviors: tuple[str, ...],
        impression: str,
        known: NDArray[np.bool_],
    ) -> None:
        self.join = join
        self.log = log = join.log
        self.rows = rows
        self.behaviors = behaviors
        self.impression = impression
        self.known = known
        self.user_vocabulary = Vocabulary(log.user[known])
        self.item_vocabulary = Vocabulary(log.item[known])
        self._makers = self._all_makers()

    def names(self) -> list[str]:
        """Every field there is."""
        return list(self._makers)

    def default_names(self) -> list[str]:
        """Ids, context, time, and the counts and times that say most about what users do next."""
        return [
            "user",
            "item",
            *self.log.context,
            "hour",
            "weekday",
            *(f"user_{b}_count" for b in self.behaviors),
            f"item_{self.impression}_count",
            f"pair_{self.impression}_count",
            "user_gap",
            "item_gap",
            "pair_gap",
            "item_age",
        ]

    def __call__(self, name: str) -> tuple[Ints, int]:
        """Ids ``[I]`` and the vocabulary size of a field.

        Raises:
            ValueError: if there is no such field, saying which there are.
        """
        if name not in self._makers:
            raise ValueError(f"fields: expected names from {self.names()}, found {name!r}")
        return self._makers[name]()

    def _all_makers(self) -> dict[str, Callable[[], tuple[Ints, int]]]:
        log = self.log
        makers: dict[str, Callable[[], tuple[Ints, int]]] = {
            "user": lambda: (self.user_vocabulary(log.user[self.rows]), len(self.user_vocabulary)),
            "item": lambda: (self.item_vocabulary(log.item[self.rows]), len(self.item_vocabulary)),
        }
        for column in log.context:
            makers[column] = partial(self._context, column)
        makers["hour"] = lambda: (1 + log.ts[self.rows] // 3600 % 24, 25)
        # Day 0 of the epoch was a Thursday.
        makers["weekday"] = lambda: (1 + (log.ts[self.rows] // 86400 + 3) % 7, 8)
        for owner in _OWNERS:
            for behavior in self.behaviors:
                makers[f"{owner}_{behavior}_count"] = partial(self._count_field, owner, behavior)
                makers[f"{owner}_{behavior}_rate"] = partial(self._rate_field, owner, behavior)
            makers[f"{owner}_gap"] = partial(self._gap, owner)
            makers[f"{owner}_age"] = partial(self._age, owner)
        return makers

    def _context(self, column: str) -> tuple[Ints, int]:
        codes = self.log.context[column].codes
        vocabulary = Vocabulary(codes[self.known])
        return vocabulary(codes[self.rows]), len(vocabulary)

    def _count_field(self, owner: str, behavior: str) -> tuple[Ints, int]:
        return _log_bucket(self._count(owner, behavior), _COUNT_BUCKETS), 1 + _COUNT_BUCKETS

    def _rate_field(self, owner: str, behavior: str) -> tuple[Ints, int]:
        shown = self._count(owner, self.impression)
        rate = self._count(owner, behavior) * _RATE_UNIT // np.maximum(shown, 1)
        bucket = np.where(shown == 0, 1, 1 + _log_bucket(rate, _RATE_BUCKETS))
        return bucket, 2 + _RATE_BUCKETS

    def _gap(self, owner: str) -> tuple[Ints, int]:
        index, first, end = self._earlier(owner, None)
        return self._since(index, end - 1, end > first)

    def _age(self, owner: str) -> tuple[Ints, int]:
        index, first, end = self._earlier(owner, None)
        return self._since(index, first, end > first)

    def _since(
        self, index: EventIndex, position: Ints, exists: NDArray[np.bool_]
    ) -> tuple[Ints, int]:
        event = index.rows[np.where(exists, position, 0)]
        seconds = self.log.ts[self.rows] - self.log.ts[event]
        return _log_bucket(np.where(exists, seconds, 0), _TIME_BUCKETS), 1 + _TIME_BUCKETS

    def _count(self, owner: str, behavior: str) -> Ints:
        _, first, end = self._earlier(owner, self.behaviors.index(behavior))
        return end - first

    def _earlier(self, owner: str, behavior: int | None) -> tuple[EventIndex, Ints, Ints]:
        """The owner's events strictly before each impression: positions [first, end)."""
        index = self.join.index(owner, behavior)
        group = self.join.group[owner][self.rows]
        return index, index.first(group), index.before(group, self.join.rank[self.rows])


def _log_bucket(values: Ints, buckets: int) -> Ints:
    """0 -> 1, and v >= 1 -> 2 + floor(log2(v)), at most ``buckets``. Row 0 stays for unknown."""
    exponent = np.frexp(values.astype(np.float64))[1].astype(np.int64)  # 0 -> 0, 1 -> 1, 2 -> 2
    return np.minimum(1 + exponent, buckets)
