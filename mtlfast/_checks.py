"""Checks of counts, widths and weights that modules and their configs share."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from mtlfast.errors import bad


def check_count(name: str, value: int) -> None:
    """Refuse what is no positive int."""
    if not _is_count(value):
        raise bad(name, "a positive int", repr(value))


def _is_count(value: object) -> bool:
    """NumPy's integers are welcome; True and 2.0 are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_units(name: str, units: Sequence[int], *, allow_empty: bool = False) -> None:
    """Refuse widths that are no positive ints."""
    if (not units and not allow_empty) or not all(map(_is_count, units)):
        raise bad(name, "positive layer widths", list(units))


def check_levels(name: str, levels: Sequence[Sequence[int]]) -> None:
    """Refuse no level, and levels without widths."""
    if not levels:
        raise bad(name, "at least one level", "none")
    for level, units in enumerate(levels):
        check_units(f"{name}[{level}]", units)


def check_dropout(dropout: float) -> None:
    """Refuse what is no probability below 1."""
    if not 0.0 <= dropout < 1.0:
        raise bad("dropout", "a probability in [0, 1)", dropout)


def check_weight(name: str, value: float) -> None:
    """Refuse negative weights and NaN."""
    if not value >= 0:
        raise bad(name, "at least 0", value)
