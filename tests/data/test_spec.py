"""DatasetSpec: checks and round trips."""

import dataclasses
import json
from typing import Any

import pytest

from mtlfast.data import DatasetSpec


def make(**changes: Any) -> DatasetSpec:
    spec = DatasetSpec(
        name="toy",
        fields=("user", "item", "hour"),
        vocab_sizes=(10, 20, 25),
        item_field=1,
        behaviors=("view", "buy"),
        max_lengths=(50, 5),
        tasks=("buy", "again"),
        task_parents=(None, 0),
        positive_rates=(0.1, 0.01),
    )
    return dataclasses.replace(spec, **changes)


def test_counts() -> None:
    spec = make()
    assert (spec.num_fields, spec.num_behaviors, spec.num_tasks) == (3, 2, 2)
    assert spec.item_vocab_size == 20
    assert spec.max_length == 50


def test_round_trip_through_json() -> None:
    spec = make()
    assert DatasetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_sizes": (1, 2)}, r"vocab_sizes: expected one entry per entry of fields \(3\)"),
        ({"max_lengths": (1,)}, "max_lengths: expected one entry per entry of behaviors"),
        ({"positive_rates": (0.5,)}, "positive_rates"),
        ({"item_field": 3}, r"item_field: expected an index in \[0, 3\), found 3"),
        ({"vocab_sizes": (1, 0, 2)}, "vocab_sizes: expected sizes of at least 1"),
        ({"max_lengths": (0, 1)}, "max_lengths: expected at least 1"),
        ({"tasks": ("a", "a")}, "tasks: expected distinct names"),
        ({"task_parents": (1, 0)}, "task_parents: expected a tree, found a cycle"),
        ({"task_parents": (0, None)}, "cycle"),
        ({"task_parents": (None, 2)}, "task_parents: expected indices"),
    ],
)
def test_impossible_specs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="unexpected"):
        DatasetSpec.from_dict({**make().to_dict(), "color": "red"})
