"""FieldBags: the ids of fields that have several per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .jagged import JaggedSequences


class FieldBags(NamedTuple):
    """The ids of the ``G`` multi-valued fields of ``B`` rows, in the order of the fields.

    A pytree node, so that ``torch.compile`` and ``tree_map`` see its tensors.
    """

    ids: JaggedSequences
    """int64 ``[N]``: segment ``g*B + i`` holds what row ``i`` has of the ``g``-th such field."""
    weights: Tensor | None = None
    """float32 ``[N]``, what each id counts in a sum; 1 each when None."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> FieldBags:
        """The same bags with ``fn`` of every tensor."""
        ids = self.ids
        return FieldBags(
            JaggedSequences(fn(ids.values), fn(ids.offsets), ids.num_behaviors, ids.max_len),
            None if self.weights is None else fn(self.weights),
        )


torch.serialization.add_safe_globals([FieldBags])
