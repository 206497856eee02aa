"""What models that mix interaction modules by gates have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Literal, NamedTuple, TypeVar, overload

from torch import Tensor

from mtlfast.bags import FieldBags
from mtlfast.jagged import JaggedSequences
from mtlfast.models.field_model import FieldModel

Output = TypeVar("Output", bound=NamedTuple)


class GatedModel(FieldModel, Generic[Output]):
    """A model on sparse fields that can show its gates and modules.

    ``Output`` is a named tuple of ``logits``, ``gates`` and ``modules``.
    """

    @overload
    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences | None = None,
        user_index: Tensor | None = None,
        bags: FieldBags | None = None,
        *,
        return_gates: Literal[False] = False,
        return_modules: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences | None = None,
        user_index: Tensor | None = None,
        bags: FieldBags | None = None,
        *,
        return_gates: bool = False,
        return_modules: bool = False,
    ) -> Tensor | Output: ...

    def forward(
        self,
        sparse: Tensor,
        sequences: JaggedSequences | None = None,
        user_index: Tensor | None = None,
        bags: FieldBags | None = None,
        *,
        return_gates: bool = False,
        return_modules: bool = False,
    ) -> Tensor | Output:
        """Logits ``[B, T]``, or the model's named tuple when any ``return_`` option is set.

        Args:
            sparse: int64 ids ``[B, F]``.
            sequences, user_index: not read; every model takes a batch in the same way.
            bags: all ids of the multi-valued fields; None in data without.
            return_gates: fill ``gates``.
            return_modules: fill ``modules``.
        """
        out: Any = self._compute(self.embedding(sparse, bags), sparse)
        if not (return_gates or return_modules):
            return out.logits
        gates = out.gates if return_gates else None
        return type(out)(out.logits, gates, out.modules if return_modules else None)

    def logits(self, fields: Tensor, ids: Tensor) -> Tensor:
        out: Any = self._compute(fields, ids)
        return out.logits

    @abstractmethod
    def _compute(self, fields: Tensor, ids: Tensor) -> Output:
        """Everything, from embeddings ``[B, F, d]`` and their ids ``[B, F]``."""
