"""MemoNet: against its parts, its initial scale, its key fields."""

from __future__ import annotations

import pytest
import torch

from mtlfast.models import MemoNet, MemoNetModelConfig, Sizes, build

SPEC = Sizes((9, 3000, 7, 5000), None, (), (None, 0), (0.3, 0.1))
IDS = torch.stack((torch.arange(2, 6), torch.arange(4), torch.zeros(4, dtype=torch.int64)), 1)
IDS = torch.cat((IDS, torch.arange(4)[:, None]), 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"orders": (2, 3), "restoring": "attentive", "shrinking": "softmax", "codeword_dim": 5},
        {"shrinking": "none", "num_key_fields": 2},
    ],
    ids=str,
)
def test_is_a_head_on_fields_and_memories(options):
    torch.manual_seed(0)
    model = build("memonet", SPEC, {"embed_dim": 4, "num_codewords": 50, **options}).double()
    fields = model.embedding(IDS) * 2.0
    memories = model.memory(IDS, fields)
    expected = model.head(torch.cat((fields.flatten(1), memories.flatten(1)), 1))
    assert expected.shape == (4, 2)
    torch.testing.assert_close(model(IDS), expected)
    model.loss(model(IDS), torch.ones(4, 2)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_embeddings_start_at_their_scale():
    model = MemoNet(SPEC, MemoNetModelConfig(embed_dim=16, num_codewords=9, init_std=0.01))
    std = float(model.embedding.table(3)[1:].std())
    assert abs(std * 4 / 0.01 - 1) < 0.05
    fields = model.embedding(IDS)
    assert torch.equal(fields[:, 2], torch.zeros(4, 16))  # id 0


def test_default_sizes_are_the_papers():
    config = MemoNetModelConfig()
    assert config.head.bottom_units == (400, 400)
    assert (config.embed_dim, config.num_codewords, config.num_hashes) == (10, 1_000_000, 2)


def test_key_fields_are_those_with_the_largest_vocabularies():
    model = MemoNet(SPEC, MemoNetModelConfig(num_codewords=9, num_key_fields=2))
    assert model.memory.key_fields == (1, 3)
    assert model.memory.num_crosses == (5,)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_codewords": 0}, "num_codewords"),
        ({"key_fields": [1], "num_key_fields": 1}, "num_key_fields: expected None where"),
        ({"num_key_fields": 5}, r"num_key_fields: expected from 1 to 4 fields, found 5"),
        ({"shrinking": "some"}, "shrinking: expected one of"),
        ({"codebook_init_std": -1.0}, "codebook_init_std: expected at least 0"),
    ],
    ids=str,
)
def test_wrong_options(options, text):
    with pytest.raises(ValueError, match=text):
        build("memonet", SPEC, options)
