"""Typed dataclasses from plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest

from mtlfast._config import from_mapping, to_mapping


@dataclass(frozen=True)
class Inner:
    name: ClassVar[str] = "inner"
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size: expected at least 0, found {self.size}")


@dataclass(frozen=True)
class Outer:
    text: str
    rate: float = 0.5
    flag: bool = False
    kind: Literal["a", "b"] = "a"
    width: int | None = None
    widths: tuple[int, ...] = ()
    pair: tuple[int, str] = (1, "x")
    nested: tuple[tuple[int | None, ...], ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_round_trip():
    plain = {
        "text": "t",
        "rate": 1e-3,
        "flag": True,
        "kind": "b",
        "width": 3,
        "widths": [1, 2],
        "pair": [2, "y"],
        "nested": [[1, None], []],
        "inner": {"size": 4},
    }
    config = from_mapping(Outer, plain)
    assert config == Outer(
        "t", 1e-3, True, "b", 3, (1, 2), (2, "y"), ((1, None), ()), inner=Inner(4)
    )
    assert to_mapping(config) == {**plain, "inner": {"name": "inner", "size": 4}}


def test_numbers_as_yaml_gives_them():
    assert from_mapping(Outer, {"text": "t", "rate": "1e-3"}).rate == 1e-3
    assert isinstance(from_mapping(Outer, {"text": "t", "rate": 2}).rate, float)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"text": 3}, r"run\.text: expected str, found 3"),
        ({"rate": "fast"}, r"run\.rate: expected float, found 'fast'"),
        ({"rate": True}, r"run\.rate: expected float, found True"),
        ({"flag": 1}, r"run\.flag: expected bool, found 1"),
        ({"kind": "c"}, r"run\.kind: expected one of \['a', 'b'\], found 'c'"),
        ({"width": True}, r"run\.width: expected int, found True"),
        ({"width": 2.5}, r"run\.width: expected int, found 2.5"),
        ({"widths": [1, "2"]}, r"run\.widths\[1\]: expected int, found '2'"),
        ({"pair": [1]}, r"run\.pair: expected 2 entries, found 1"),
        ({"nested": [3]}, r"run\.nested\[0\]: expected a list, found 3"),
        ({"inner": 3}, r"run\.inner: expected a mapping, found 3"),
        ({"inner": {"size": -1}}, r"run\.inner\.size: expected at least 0, found -1"),
        ({"raet": 1}, r"run\.raet: unknown key, did you mean 'rate'"),
    ],
)
def test_errors_name_the_field(change, text):
    with pytest.raises(ValueError, match=text):
        from_mapping(Outer, {"text": "t", **change}, "run")


def test_missing_and_wrong():
    with pytest.raises(ValueError, match=r"run: .*text"):
        from_mapping(Outer, {}, "run")
    with pytest.raises(ValueError, match="run: expected a mapping, found 3"):
        from_mapping(Outer, 3, "run")  # type: ignore[arg-type]
