"""RelaImp: how much more of the way above guessing a model goes than another."""

from __future__ import annotations

from mtlfast.errors import bad

__all__ = ["relaimp"]


def relaimp(auc: float, base: float) -> float:
    """``((auc - 0.5) / (base - 0.5) - 1) * 100``, in percent (DTN, arXiv 2408.11611, Eq. 8).

    Args:
        auc: of the model, in ``[0, 1]``.
        base: of the model it is compared with, above 0.5: of a base that only guesses there is
            nothing to gain in percent.

    Raises:
        ValueError: naming the argument that is out of range.
    """
    if not 0 <= auc <= 1:
        raise bad("auc", "a number from 0 to 1", auc)
    if not 0.5 < base <= 1:
        raise bad("base", "an AUC above 0.5 and at most 1", base)
    return ((auc - 0.5) / (base - 0.5) - 1) * 100
