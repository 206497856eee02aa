"""Columns of numbers: exact values, and a reason for every refusal."""

from __future__ import annotations

import numpy as np
import pytest

from mtlfast.data.tables.blocks import Malformed
from mtlfast.data.tables.csv_columns import expect_codes, labels, numpy, parse_columns

KINDS = {"id": "integer", "price": "number", "note": "bytes"}


def test_values_are_exact() -> None:
    table = parse_columns(b'1,0.1,a"b\n-9007199254740993,1e-5,\xff\r\n7,3,\n', KINDS)
    assert numpy(table, "id").tolist() == [1, -9007199254740993, 7]
    assert numpy(table, "price").tolist() == [0.1, 1e-5, 3.0]
    assert table.column("note").to_pylist() == [b'a"b', b"\xff", b""]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"1,2", "expected 3 columns, found 2"),
        (b"", "expected 3 columns, found 1"),
        (b"1,2,3,4", "expected 3 columns, found 4"),
        (b"x,2,3", "id: expected an integer, found 'x'"),
        (b"1.0,2,3", "id: expected an integer, found '1.0'"),
        (b",2,3", "id: expected an integer, found ''"),
        (b"99999999999999999999,2,3", "id: expected an integer, found '99999999999999999999'"),
        (b"1,,3", "price: expected a finite number, found ''"),
        (b"1,nan,3", "price: expected a finite number, found 'nan'"),
        (b"1,inf,3", "price: expected a finite number, found 'inf'"),
        (b"1,2,3\r4,5,6", "expected 3 columns, found 5"),
    ],
)
def test_reasons(line: bytes, text: str) -> None:
    for end in (b"", b"\n"):
        with pytest.raises(Malformed) as error:
            parse_columns(line + end, KINDS)
        assert text in str(error.value)
    with pytest.raises(Malformed):  # among good lines it is refused as well
        parse_columns(b"1,2,3\n" + line + b"\n4,5,6\n", KINDS)


def test_labels() -> None:
    table = parse_columns(b"0,1\n1,1\n", {"a": "integer", "b": "integer"})
    assert labels(table, ("a", "b")).tolist() == [[False, True], [True, True]]
    expect_codes(np.array([0, 2]), "c", (0, 1, 2))
    with pytest.raises(Malformed, match=r"b: expected one of \(0, 1\), found 3"):
        labels(parse_columns(b"0,3\n", {"a": "integer", "b": "integer"}), ("a", "b"))
