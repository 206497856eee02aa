"""Sparse fields of the generated data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mtlfast.data.synthetic.random_bits import U64, RandomBits, hash_bits
from mtlfast.data.synthetic.shapes import Shape

__all__ = ["SyntheticFields"]

Ints = NDArray[np.int64]

_FIELD_SALT = 3000
_MISSING_PER_256 = 3  # Tenrec: 1.3 % of the rows have no video_category
_EXTRA_SIZES = (3, 10, 50, 200, 1000)


class SyntheticFields:
    """User id, item id, attributes of both, and context.

    Tenrec has the published five. E-commerce has six; further ones, up to the published 116, are
    anonymous attributes of the user, the item or the moment in turn, and have no effect.

    Args:
        shape: which of the two.
        num_fields: number of fields, ``None`` for the default.
        num_users, num_items: without the row for unknown ids.

    Attributes:
        names, vocab_sizes: as in ``DatasetSpec``.
        effect_sizes: field -> vocabulary size, for the fields that labels depend on.
    """

    def __init__(
        self, shape: Shape, num_fields: int | None, num_users: int, num_items: int
    ) -> None:
        count = shape.num_fields if num_fields is None else num_fields
        if not shape.num_fields <= count <= shape.max_fields:
            raise ValueError(
                f"num_fields: expected {shape.num_fields} to {shape.max_fields} for {shape.name}, "
                f"found {count}"
            )
        tenrec = shape.max_fields == 5
        named: list[tuple[str, int, Callable[..., Ints]]] = [
            ("user_id", num_users, lambda user, item, category, bits: user),
            ("item_id", num_items, lambda user, item, category, bits: item),
        ]
        if tenrec:
            named.append(("video_category", 3, _video_category))
        else:
            # Coarser than what labels depend on: four latent categories look alike.
            named.append(("item_category", 8, lambda user, item, category, bits: 1 + category // 4))
            named.append(
                ("hour", 24, lambda user, item, category, bits: 1 + _below(bits, user, 24))
            )
        named.append(("gender", 3, lambda user, item, category, bits: 1 + _of(user, 0, 3)))
        named.append(("age", 8, lambda user, item, category, bits: 1 + _of(user, 1, 8)))
        self._named = named
        extra = [_EXTRA_SIZES[i % len(_EXTRA_SIZES)] for i in range(count - len(named))]
        self._extra_sizes = np.array(extra, dtype=np.int64)
        self.names = tuple(n for n, _, _ in named) + tuple(
            f"feature_{len(named) + i}" for i in range(len(extra))
        )
        self.vocab_sizes = tuple(1 + size for size in [*(s for _, s, _ in named), *extra])
        self.effect_sizes = {f: self.vocab_sizes[f] for f in range(2, len(named))}

    def __call__(self, user: Ints, item: Ints, category: Ints, bits: RandomBits) -> Ints:
        """Ids ``[B, F]`` for users, items and latent categories ``[B]``."""
        sparse = np.empty((len(user), len(self.names)), dtype=np.int64)
        for f, (_, _, ids) in enumerate(self._named):
            sparse[:, f] = ids(user, item, category, bits)
        extra = sparse[:, len(self._named) :]
        owners = (user, item, None)
        for kind, owner in enumerate(owners):
            sizes = self._extra_sizes[kind::3]
            if len(sizes) == 0:
                continue
            if owner is None:
                words = bits(len(user), len(sizes))
            else:
                words = hash_bits(owner[:, None], _FIELD_SALT + 2 + np.arange(len(sizes)))
            extra[:, kind::3] = 1 + _scale(words, sizes)
        return sparse


def _scale(words: U64, sizes: Ints | int) -> Ints:
    """Words -> integers in [0, size), by multiplication: no division."""
    return ((words >> np.uint64(40)).view(np.int64) * sizes) >> 24


def _of(owner: Ints, salt: int, size: int) -> Ints:
    return _scale(hash_bits(owner, _FIELD_SALT + salt), size)


def _below(bits: RandomBits, like: Ints, size: int) -> Ints:
    return _scale(bits(len(like)), size)


def _video_category(user: Ints, item: Ints, category: Ints, bits: RandomBits) -> Ints:
    missing = (hash_bits(item, _FIELD_SALT + 2) & np.uint64(255)) < _MISSING_PER_256
    return np.where(missing, 3, 1 + category % 2)
