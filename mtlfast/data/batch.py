"""One mini-batch: sparse fields, ragged histories, labels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mtlfast.bags import FieldBags
from mtlfast.jagged import JaggedSequences

__all__ = ["Batch"]


@dataclass
class Batch:
    """B candidates of U users; U == B unless ``user_index`` is given.

    Attributes:
        sparse: int64 ``[B, F]``, one id per field; 0 is padding or unknown.
        sequences: item ids (int64) of the M histories of U users, oldest first; ``None`` in data
            without behaviors.
        labels: float32 ``[B, T]``, 0 or 1.
        user_index: int64 ``[B]`` with values in ``[0, U)``: whose histories a candidate uses;
            ``None`` means candidate i uses the histories of user i.
        bags: all ids of the multi-valued fields, of which ``sparse`` has but one; ``None`` in data
            without such fields.

    A pytree node, so ``torch.compile``, ``torch.export`` and ``tree_map`` see its tensors.
    """

    sparse: Tensor
    sequences: JaggedSequences | None
    labels: Tensor
    user_index: Tensor | None = None
    bags: FieldBags | None = None

    def __len__(self) -> int:
        return self.sparse.shape[0]

    def inputs(self) -> tuple[Any, ...]:
        """What a model is called with: ``model(*batch.inputs())``.

        ``sparse, sequences, user_index``, and ``bags`` behind them where there are any.
        """
        inputs = (self.sparse, self.sequences, self.user_index)
        return inputs if self.bags is None else (*inputs, self.bags)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on ``device``."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, for asynchronous copies to a GPU."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, fn: Any) -> Batch:
        sequences = self.sequences
        return Batch(
            sparse=fn(self.sparse),
            sequences=None
            if sequences is None
            else JaggedSequences(
                fn(sequences.values),
                fn(sequences.offsets),
                sequences.num_behaviors,
                sequences.max_len,
            ),
            labels=fn(self.labels),
            user_index=None if self.user_index is None else fn(self.user_index),
            bags=None if self.bags is None else self.bags.map(fn),
        )


_NAMES = ("sparse", "sequences", "labels", "user_index", "bags")


def _flatten(batch: Batch) -> tuple[list[Any], None]:
    return [getattr(batch, name) for name in _NAMES], None


def _flatten_with_keys(batch: Batch) -> tuple[list[tuple[Any, Any]], None]:
    return [(pytree.GetAttrKey(name), getattr(batch, name)) for name in _NAMES], None


def _unflatten(children: Iterable[Any], context: None) -> Batch:
    return Batch(*children)


pytree.register_pytree_node(
    Batch,
    _flatten,
    _unflatten,
    flatten_with_keys_fn=_flatten_with_keys,
    serialized_type_name="mtlfast.data.Batch",
    to_dumpable_context=lambda context: None,
    from_dumpable_context=lambda context: None,
)

# Lets torch.load read a stored batch with weights_only=True.
torch.serialization.add_safe_globals([Batch])
