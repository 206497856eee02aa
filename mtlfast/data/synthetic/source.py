"""Generated data in the published shapes, made on the fly."""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.data.batch import Batch
from mtlfast.data.source import DataSource
from mtlfast.data.spec import DatasetSpec
from mtlfast.data.synthetic.catalogue import MAX_ITEMS, Catalogue
from mtlfast.data.synthetic.fields import SyntheticFields
from mtlfast.data.synthetic.labels import LabelModel
from mtlfast.data.synthetic.lengths import LengthKind, LengthSampler
from mtlfast.data.synthetic.random_bits import RandomBits, hash_bits
from mtlfast.data.synthetic.shapes import Shape
from mtlfast.jagged import JaggedSequences

__all__ = ["SyntheticSource"]

Ints = NDArray[np.int64]

_NUM_CATEGORIES = 32
_ZIPF_EXPONENT = 1.1
_CALIBRATION_SAMPLES = 65_536
_STRUCTURE, _CALIBRATION, _TRAIN, _TEST = range(4)  # streams of one seed, disjoint
_PROFILE_SALT = 2000

# Of 256 history items, 96 come from the category all behaviors of taste (or all of distaste) of
# this user share, 96 from a category of this user and behavior, the rest from anywhere.
_SHARED_UNTIL, _PRIVATE_UNTIL = 96, 192
# Of 256 candidates, 80 come from the user's taste, 48 from distaste, 64 from a private category.
_TASTE_UNTIL, _DISTASTE_UNTIL, _ONE_PRIVATE_UNTIL = 80, 128, 192


class _Raw(NamedTuple):
    sparse: Ints
    values: Ints
    lengths: Ints
    category_counts: NDArray[np.float32]
    target_category: Ints
    user_index: Ints | None


class SyntheticSource(DataSource):
    """Random multi-behavior, multi-task data with something to learn.

    Items have latent categories and Zipf(1.1) popularity; each user has categories of taste and
    distaste, visible only through the items of the histories; labels depend on how the target item
    matches them, see ``labels.py``. Every batch is a function of (seed, part, epoch, step,
    batch size): nothing is stored, and every epoch brings new impressions.

    Args:
        shape: ``TENREC`` or ``ECOMMERCE``.
        seed: fixes items, users, tasks, and the streams of batches.
        lengths: see ``LengthSampler``.
        candidates_per_user: K >= 1. With K > 1 a batch of B candidates has ceil(B / K) users and
            a ``user_index``; consecutive candidates share a user.
        num_fields: number of sparse fields, from 5 (6 for E-commerce) to 116 (E-commerce only).
        num_users, num_items: vocabulary sizes without the row for unknown ids; the published ones
            by default (one million users for E-commerce).
        train_samples, test_samples: impressions per epoch and in the test part.

    Raises:
        ValueError: for an impossible option, naming it.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        seed: int = 0,
        lengths: LengthKind = "geometric",
        candidates_per_user: int = 1,
        num_fields: int | None = None,
        num_users: int | None = None,
        num_items: int | None = None,
        train_samples: int = 1 << 20,
        test_samples: int = 1 << 17,
    ) -> None:
        self.shape = shape
        self.seed = _in_range("seed", seed, 0)
        self.candidates_per_user = _in_range("candidates_per_user", candidates_per_user, 1)
        self._num_users = _in_range(
            "num_users", shape.num_users if num_users is None else num_users, 1
        )
        self._num_items = _in_range(
            "num_items", shape.num_items if num_items is None else num_items, 1, MAX_ITEMS
        )
        self._train_samples = _in_range("train_samples", train_samples, 1)
        self._test_samples = _in_range("test_samples", test_samples, 1)
        self._lengths = LengthSampler(shape, lengths)
        self._fields = SyntheticFields(shape, num_fields, self._num_users, self._num_items)
        self.spec = DatasetSpec(
            name=shape.name,
            fields=self._fields.names,
            vocab_sizes=self._fields.vocab_sizes,
            item_field=self._fields.names.index("item_id"),
            behaviors=shape.behaviors,
            max_lengths=shape.max_lengths,
            tasks=shape.tasks,
            task_parents=shape.task_parents,
            positive_rates=shape.positive_rates,
        )

    @property
    def num_train_samples(self) -> int:
        return self._train_samples

    @property
    def num_test_samples(self) -> int:
        return self._test_samples

    def train_batch(self, batch_size: int, epoch: int, step: int) -> Batch:
        size = min(batch_size, self._train_samples - step * batch_size)
        return self._batch(RandomBits((self.seed, _TRAIN, epoch, step)), size)

    def test_batch(self, batch_size: int, step: int) -> Batch:
        size = min(batch_size, self._test_samples - step * batch_size)
        return self._batch(RandomBits((self.seed, _TEST, step)), size)

    @cached_property
    def _rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, _STRUCTURE])

    @cached_property
    def _catalogue(self) -> Catalogue:
        return Catalogue(self._num_items, _NUM_CATEGORIES, _ZIPF_EXPONENT, self._rng)

    @cached_property
    def _labels(self) -> LabelModel:
        num_categories = self._catalogue.num_categories
        model = LabelModel(self.shape, num_categories, self._fields.effect_sizes, self._rng)
        bits = RandomBits((self.seed, _CALIBRATION))
        draws = (self._draw(bits, 2048) for _ in range(0, _CALIBRATION_SAMPLES, 2048))
        model.calibrate(np.concatenate([self._terms(model, raw) for raw in draws], axis=1))
        return model

    def _batch(self, bits: RandomBits, batch_size: int) -> Batch:
        labels = self._labels
        raw = self._draw(bits, batch_size)
        offsets = np.zeros(raw.lengths.size + 1, dtype=np.int64)
        np.cumsum(raw.lengths.ravel(), out=offsets[1:])
        return Batch(
            sparse=torch.from_numpy(raw.sparse),
            sequences=JaggedSequences(
                torch.from_numpy(raw.values),
                torch.from_numpy(offsets),
                self.spec.num_behaviors,
                self.spec.max_length,
            ),
            labels=torch.from_numpy(labels.draw(self._terms(labels, raw), bits)),
            user_index=None if raw.user_index is None else torch.from_numpy(raw.user_index),
        )

    @staticmethod
    def _terms(model: LabelModel, raw: _Raw) -> NDArray[np.float32]:
        return model.terms(
            raw.category_counts,
            raw.sparse[:, 1],
            raw.target_category,
            raw.sparse,
            slice(None) if raw.user_index is None else raw.user_index,
        )

    def _draw(self, bits: RandomBits, batch_size: int) -> _Raw:
        catalogue, num_behaviors = self._catalogue, self.spec.num_behaviors
        per_user = self.candidates_per_user
        num_users = -(-batch_size // per_user)
        user_index = None if per_user == 1 else np.arange(batch_size) // per_user

        user = 1 + (bits(num_users) % np.uint64(self._num_users)).view(np.int64)
        # Latent profile [2 + M, U]: taste, distaste, one private category per behavior.
        salts = _PROFILE_SALT + np.arange(2 + num_behaviors)[:, None]
        profile = catalogue.draw_category(hash_bits(user[None], salts))

        lengths = self._lengths(bits, num_users)
        segment = np.repeat(np.arange(lengths.size), lengths.ravel())
        word = bits(len(segment))
        choice = word.astype(np.uint8)  # the lowest 8 bits
        shared = np.where(np.array(self.shape.likes)[:, None], profile[0], profile[1])
        preferred = np.stack([shared, profile[2:]]).ravel()
        category = preferred[segment + lengths.size * (choice >= _SHARED_UNTIL)]
        anywhere = np.flatnonzero(choice >= _PRIVATE_UNTIL)
        category[anywhere] = catalogue.draw_category(word[anywhere])
        values = catalogue.draw_item(word, category)
        bins = lengths.size * catalogue.num_categories
        counts = np.bincount(segment * catalogue.num_categories + category, minlength=bins)

        word = bits(batch_size)
        choice = word.astype(np.uint8)
        mine = profile if user_index is None else profile[:, user_index]
        behavior = 2 + (bits(batch_size) % np.uint64(num_behaviors)).astype(np.int64)
        target_category = np.select(
            [choice < _TASTE_UNTIL, choice < _DISTASTE_UNTIL, choice < _ONE_PRIVATE_UNTIL],
            [mine[0], mine[1], mine[behavior, np.arange(batch_size)]],
            catalogue.draw_category(word),
        ).astype(np.int64)
        item = catalogue.draw_item(word, target_category)
        return _Raw(
            sparse=self._fields(
                user if user_index is None else user[user_index], item, target_category, bits
            ),
            values=values,
            lengths=lengths,
            category_counts=counts.reshape(num_behaviors, num_users, -1).astype(np.float32),
            target_category=target_category,
            user_index=user_index,
        )


def _in_range(name: str, value: int, least: int, most: int | None = None) -> int:
    if value < least or (most is not None and value > most):
        expected = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {expected}, found {value}")
    return value
