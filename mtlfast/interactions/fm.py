"""FM, factorization machine."""

from __future__ import annotations

from torch import Tensor

from mtlfast.interactions.base import Interaction, per_module


def fm_vector(fields: Tensor) -> Tensor:
    """``0.5 * ((sum_f v_f)^2 - sum_f v_f^2)``: ``[..., N, d]`` to ``[..., d]``.

    The sum of its elements is the sum of the inner products of all pairs of fields
    (Rendle, ICDM 2010, Eq. 1).
    """
    return 0.5 * (fields.sum(dim=-2).square() - fields.square().sum(dim=-2))


class FactorizationMachine(Interaction):
    """:func:`fm_vector` of the fields, ``W = d``. No parameters.

    Args:
        num_fields: ``N``.
        embed_dim: ``d``.
        num_modules: ``G`` or None, see :class:`Interaction`.
    """

    def __init__(self, num_fields: int, embed_dim: int, *, num_modules: int | None = None) -> None:
        super().__init__(num_fields, embed_dim, embed_dim, num_modules)

    def interact(self, x: Tensor, ids: Tensor | None) -> Tensor:
        return per_module(fm_vector(x), self.num_groups)
