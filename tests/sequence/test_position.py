"""Positions count from the oldest token of every sequence."""

from __future__ import annotations

import math

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.sequence import JaggedPositionEncoding

LENGTHS = torch.tensor([[2, 0, 1], [0, 3, 0]])
BEHAVIOR = [0, 0, 0, 1, 1, 1]
POSITION = [0, 1, 0, 0, 1, 2]


def make_sequences(dim: int) -> JaggedSequences:
    return JaggedSequences.from_lengths(torch.randn(6, dim), LENGTHS)


def test_learned():
    module = JaggedPositionEncoding("learned", 2, 4, 3)
    sequences = make_sequences(3)
    found = module(sequences).values - sequences.values
    expected = module.weight[BEHAVIOR, POSITION]
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    used = torch.zeros(2, 4)
    for b, p in zip(BEHAVIOR, POSITION, strict=True):
        used[b, p] += 1
    assert torch.equal(module.weight.grad, used[:, :, None].expand(-1, -1, 3))


@pytest.mark.parametrize("dim", [4, 5])
def test_sinusoidal(dim):
    module = JaggedPositionEncoding("sinusoidal", 2, 3, dim)
    assert not list(module.parameters())
    assert not module.state_dict()
    sequences = make_sequences(dim)
    found = module(sequences).values - sequences.values
    for row, position in enumerate(POSITION):
        for column in range(dim):
            angle = position / 10000 ** (2 * (column // 2) / dim)
            expected = math.cos(angle) if column % 2 else math.sin(angle)
            assert abs(float(found[row, column]) - expected) < 1e-5


def test_no_tokens_and_no_users():
    module = JaggedPositionEncoding("learned", 2, 4, 3)
    for users in (0, 2):
        sequences = JaggedSequences.from_lengths(
            torch.zeros(0, 3), torch.zeros(2, users, dtype=torch.int64)
        )
        assert module(sequences).values.shape == (0, 3)


def test_errors():
    with pytest.raises(ValueError, match="kind: expected 'learned' or 'sinusoidal', found 'none'"):
        JaggedPositionEncoding("none", 1, 4, 2)  # type: ignore[arg-type]
    module = JaggedPositionEncoding("learned", 2, 2, 3)
    with pytest.raises(ValueError, match="max_len of at most 2"):
        module(make_sequences(3))
