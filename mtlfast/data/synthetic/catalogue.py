"""Items: Zipf popularity, latent categories, and fast draws from both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.synthetic.random_bits import U64

__all__ = ["MAX_ITEMS", "Catalogue", "alias_table"]

Ints = NDArray[np.int64]

_CHOICE_BITS = 8  # left to the caller
_CATEGORY_BITS = 20
_ITEM_BITS = 36

MAX_ITEMS = (1 << (64 - _ITEM_BITS)) - 1  # an item index times a fraction fits into 64 bits


def alias_table(weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], Ints]:
    """Walker's alias table: draw ``i`` uniformly, keep it with ``keep[i]``, else take ``alias[i]``.

    Built without a loop: light and heavy entries, each in their order, meet where the running sums
    of what the light ones lack and what the heavy ones have too much cross.

    Args:
        weights: positive, ``[n]``, any scale.

    Returns:
        keep: probabilities ``[n]``; alias: int64 ``[n]``.
    """
    n = len(weights)
    share = weights * (n / weights.sum())
    is_heavy = share >= 1
    is_heavy[share.argmax()] = True  # rounding may leave all equal shares just below 1
    light, heavy = np.flatnonzero(~is_heavy), np.flatnonzero(is_heavy)
    keep = np.ones(n)
    alias = np.arange(n)
    lack = np.cumsum(1 - share[light])
    excess = np.cumsum(share[heavy] - 1)
    # A light entry is filled from the first heavy one not yet used up by the light ones before.
    # (The very sums that `last_fill` compares with below: a rounding apart, a tie would make the
    # two disagree on who filled whom.)
    lack_before = np.concatenate(([0.0], lack[:-1])) if len(light) else lack
    donor = np.searchsorted(excess, lack_before, side="left")
    keep[light] = share[light]
    alias[light] = heavy[np.minimum(donor, len(heavy) - 1)]
    # A used-up heavy entry is itself filled from the next one.
    last_fill = np.searchsorted(lack, excess, side="right")
    used_up = (last_fill < len(light)) & (np.arange(len(heavy)) < len(heavy) - 1)
    who = np.flatnonzero(used_up)
    keep[heavy[who]] = 1 + excess[who] - lack[last_fill[who]]
    alias[heavy[who]] = heavy[who + 1]
    return np.clip(keep, 0, 1), alias


class Catalogue:
    """Items 1..K with popularity rank^-exponent, spread over C latent categories.

    Items of one category have consecutive ids, with popularity in random order among them.

    Args:
        num_items: K.
        num_categories: C; at most K.
        exponent: of the Zipf law.
        rng: source of the assignment.
    """

    def __init__(
        self, num_items: int, num_categories: int, exponent: float, rng: np.random.Generator
    ) -> None:
        if not 1 <= num_items <= MAX_ITEMS:
            raise ValueError(f"num_items: expected 1 to {MAX_ITEMS}, found {num_items}")
        self.num_items = num_items
        self.num_categories = num_categories = min(num_categories, num_items)
        self.popularity = np.arange(1, num_items + 1, dtype=np.float64) ** -exponent
        self.popularity /= self.popularity.sum()

        # Every run of C popularity ranks has one item in each category.
        runs = -(-num_items // num_categories)
        category = rng.random((runs, num_categories)).argsort(axis=1).ravel()[:num_items]
        order = np.argsort(category + rng.random(num_items))
        self.popularity = self.popularity[order]
        self.category_of_index = category[order].astype(np.int16)

        self.size = np.bincount(category, minlength=num_categories)
        self.start = np.cumsum(self.size) - self.size
        mass = np.bincount(self.category_of_index, self.popularity, minlength=num_categories)
        keep, alias = alias_table(mass.astype(np.float64))
        self._category_keep = (keep * (1 << _CATEGORY_BITS)).astype(np.int64)
        self._category_alias = alias.astype(np.int16)

        self._item_keep = np.empty(num_items, dtype=np.uint32)
        self._item_alias = np.empty(num_items, dtype=np.int32)
        for c in range(num_categories):
            part = slice(self.start[c], self.start[c] + self.size[c])
            keep, alias = alias_table(self.popularity[part])
            self._item_keep[part] = np.minimum(keep * 2.0**32, 2.0**32 - 1)
            self._item_alias[part] = alias + self.start[c]

    def draw_category(self, bits: U64) -> NDArray[np.int16]:
        """A category for each word, as often as its items' popularity says. Uses bits 8-27."""
        mask = np.uint64((1 << _CATEGORY_BITS) - 1)
        part = ((bits >> np.uint64(_CHOICE_BITS)) & mask).view(np.int64)
        part *= self.num_categories
        index = part >> _CATEGORY_BITS
        keep = (part & ((1 << _CATEGORY_BITS) - 1)) < self._category_keep[index]
        return np.where(keep, index.astype(np.int16), self._category_alias[index])

    def draw_item(self, bits: U64, category: NDArray[np.int16]) -> Ints:
        """An item id of the category for each word, by popularity. Uses bits 28-63."""
        part = bits >> np.uint64(64 - _ITEM_BITS)
        part *= self.size[category].astype(np.uint64)
        index = (part >> np.uint64(_ITEM_BITS)).astype(np.int64)
        index += self.start[category]
        # The low bits of the product tell keeping from replacing; the top 32 of them are enough.
        fraction = (part >> np.uint64(_ITEM_BITS - 32)).astype(np.uint32)
        keep = fraction < self._item_keep[index]
        return np.where(keep, index, self._item_alias[index]) + 1
