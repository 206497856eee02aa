"""Typed options of the heads."""

from __future__ import annotations

import pytest

from mtlfast.heads import (
    AITM,
    ESMM,
    HEAD_CONFIGS,
    M2M,
    PLE,
    AITMConfig,
    HeadConfig,
    M2MConfig,
    MMoE,
    MMoEConfig,
    PLEConfig,
    ShareBottom,
    SingleTask,
    SmallHeadsConfig,
)

CLASSES = {
    "single_task": SingleTask,
    "share_bottom": ShareBottom,
    "mmoe": MMoE,
    "ple": PLE,
    "aitm": AITM,
    "esmm": ESMM,
    "m2m": M2M,
    "small_heads": MMoE,
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_head_builds_from_its_name(name):
    assert set(HEAD_CONFIGS) == set(CLASSES)
    head = HeadConfig.from_value(name, "head").build(12, 3)
    assert type(head) is CLASSES[name]
    assert (head.input_dim, head.num_tasks) == (12, 3)


def test_options_arrive():
    config = HeadConfig.from_value(
        {"name": "ple", "expert_units": [[7], [6, 5]], "num_task_experts": 2}, "head"
    )
    assert config == PLEConfig(expert_units=((7,), (6, 5)), num_task_experts=2)
    head = config.build(12, 3)
    assert [level.output_dim for level in head.levels] == [7, 5]
    assert head.levels[0].task_experts.num_networks == 6
    mmoe = MMoEConfig(num_experts=5, expert_units=(9,), tower_units=(2,), dropout=0.25).build(4, 2)
    assert mmoe.gate_weight.shape == (2, 5, 4)
    assert mmoe.towers.weight.shape == (2, 1, 2)
    assert mmoe.experts.dropout == mmoe.towers.hidden.dropout == 0.25


def test_the_tree_comes_from_the_config_or_else_from_the_data():
    assert AITMConfig().build(4, 3, (None, 0, 0)).parents == (None, 0, 0)
    assert AITMConfig(parents=(1, None, 1)).build(4, 3, (None, 0, 0)).parents == (1, None, 1)
    assert AITMConfig().build(4, 3).parents == (None, 0, 1)
    assert MMoEConfig().build(4, 3, (None, 0, 0)).num_tasks == 3


def test_the_scenario_comes_from_profile_and_context():
    sizes = (5000, 900, 3, 2000, 1001)  # the second is the item
    assert M2MConfig().on_fields(2, sizes, 1).columns == (4, 5, 8, 9)
    assert M2MConfig(scenario_fields=(3,)).on_fields(2, sizes, 1).columns == (6, 7)
    assert M2MConfig(columns=(1,)).on_fields(2, sizes, 1).columns == (1,)
    assert M2MConfig().on_fields(2, (5000, 900), 1).columns is None
    inner = SmallHeadsConfig(base=M2MConfig()).on_fields(2, sizes, 1).base
    assert inner.columns == (4, 5, 8, 9)
    head = M2MConfig().on_fields(2, sizes, 1).build(20, 3)
    assert head.scenario.in_features == 4
    with pytest.raises(ValueError, match="scenario_fields: expected some in"):
        M2MConfig(scenario_fields=(5,)).on_fields(2, sizes, 1)
    assert MMoEConfig().on_fields(2, sizes, 1) == MMoEConfig()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("nope", r"model\.head\.name: expected one of .*'mmoe'.* found 'nope'"),
        (3, r"model\.head: expected a head's name or a mapping"),
        ({"num_experts": 3}, r"model\.head: expected a head's name or a mapping"),
        ({"name": "mmoe", "experts": 3}, r"model\.head\.experts: unknown key, .*'num_experts'"),
        ({"name": "mmoe", "num_experts": "x"}, r"model\.head\.num_experts: expected int"),
        ({"name": "mmoe", "num_experts": 0}, r"model\.head\.num_experts: expected a positive int"),
        ({"name": "mmoe", "expert_units": [4, "a"]}, r"model\.head\.expert_units\[1\]: expected"),
        ({"name": "mmoe", "expert_units": 4}, r"model\.head\.expert_units: expected a list"),
        ({"name": "aitm", "parents": [None, 1]}, r"model\.head\.parents: expected"),
        ({"name": "ple", "expert_units": [4]}, r"model\.head\.expert_units\[0\]: expected a list"),
    ],
)
def test_errors_name_the_field(value, text):
    with pytest.raises(ValueError, match=text):
        HeadConfig.from_value(value, "model.head")
