"""The one table of all fields and tokens."""

from __future__ import annotations

import copy

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.nn import FeatureEmbedding

SIZES, ITEM, M, D = (5, 9, 4), 1, 2, 3


def make(**options) -> FeatureEmbedding:
    torch.manual_seed(0)
    return FeatureEmbedding(SIZES, D, item_field=ITEM, num_behaviors=M, **options)


def make_inputs() -> tuple[torch.Tensor, JaggedSequences]:
    sparse = torch.tensor([[1, 3, 0], [4, 0, 3], [0, 8, 1]])
    tokens = torch.tensor([3, 0, 8, 2, 3, 1])
    return sparse, JaggedSequences.from_lengths(tokens, torch.tensor([[2, 0, 1], [0, 3, 0]]))


@pytest.mark.parametrize("share", [True, False])
def test_equals_one_lookup_per_table(share):
    module = make(share_item_table=share)
    sparse, sequences = make_inputs()
    out = module(sparse, sequences)
    for field in range(3):
        expected = module.table(field)[sparse[:, field]]
        assert torch.equal(out.fields[:, field], expected)
    assert torch.equal(out.target, out.fields[:, ITEM])
    behavior_of_token = [0, 0, 0, 1, 1, 1]
    for i, (token, b) in enumerate(zip(sequences.values, behavior_of_token, strict=True)):
        assert torch.equal(out.sequences.values[i], module.sequence_table(b)[token])
    assert torch.equal(out.sequences.offsets, sequences.offsets)


def test_tables_are_shared_or_not():
    shared, separate = make(), make(share_item_table=False)
    assert shared.weight.shape == (18, D)
    assert shared.sequence_table(1).data_ptr() == shared.table(ITEM).data_ptr()
    assert separate.weight.shape == (18 + 2 * 9, D)
    starts = {separate.table(ITEM).data_ptr()} | {
        separate.sequence_table(b).data_ptr() for b in range(M)
    }
    assert len(starts) == 3


def test_initial_weights():
    torch.manual_seed(0)
    module = FeatureEmbedding((2000, 50), 8, item_field=0, num_behaviors=1, init_std=0.02)
    for field in range(2):
        assert torch.equal(module.table(field)[0], torch.zeros(8))
    assert abs(float(module.table(0)[1:].detach().std()) - 0.02) < 0.001


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("sparse_grad", [True, False])
def test_row_zero_gets_no_gradient_and_the_others_theirs(share, sparse_grad):
    module = make(share_item_table=share, sparse_grad=sparse_grad)
    sparse, sequences = make_inputs()
    out = module(sparse, sequences)
    (out.fields.sum() + 10.0 * out.sequences.values.sum() + 100.0 * out.target.sum()).backward()
    grad = module.weight.grad
    assert grad.is_sparse == sparse_grad
    grad = grad.to_dense() if sparse_grad else grad
    expected = torch.zeros(module.weight.shape[0])
    starts = [0, 5, 14]
    for row in sparse.tolist():
        for field, i in enumerate(row):
            if i:
                expected[starts[field] + i] += 101.0 if field == ITEM else 1.0
    for token, behavior in zip(sequences.values.tolist(), [0, 0, 0, 1, 1, 1], strict=True):
        if token:
            expected[(5 if share else 18 + 9 * behavior) + token] += 10.0
    assert torch.equal(grad, expected[:, None].expand(-1, D))


def test_sparse_and_dense_gradients_agree():
    dense, sparse = make(), make(sparse_grad=True)
    weight = torch.randn(6, D)
    grads = []
    for module in (dense, sparse):
        out = module(*make_inputs())
        ((out.sequences.values * weight).sum() + out.fields.pow(2).sum()).backward()
        grads.append(module.weight.grad)
    torch.testing.assert_close(grads[1].to_dense(), grads[0])


def test_int32_ids_and_no_tokens():
    module = make()
    sparse, sequences = make_inputs()
    expected = module(sparse, sequences)
    found = module(sparse.int(), sequences.with_values(sequences.values.int()))
    assert torch.equal(found.fields, expected.fields)
    assert torch.equal(found.sequences.values, expected.sequences.values)
    none = JaggedSequences.from_lengths(
        torch.zeros(0, dtype=torch.int64), torch.zeros(M, 3, dtype=torch.int64)
    )
    assert module(sparse, none).sequences.values.shape == (0, D)
    empty = JaggedSequences.from_lengths(
        torch.zeros(0, dtype=torch.int64), torch.zeros(M, 0, dtype=torch.int64)
    )
    assert module(sparse[:0], empty).fields.shape == (0, 3, D)
    assert make(share_item_table=False)(sparse[:0], empty).fields.shape == (0, 3, D)


@pytest.mark.parametrize(
    ("row", "field", "value", "text"),
    [
        (1, 0, 5, r"sparse: expected ids in \[0, 5\) in field 0, found sparse\[1, 0\] = 5"),
        (2, 2, -1, r"sparse: expected ids in \[0, 4\) in field 2, found sparse\[2, 2\] = -1"),
        (0, 1, 1 << 40, r"found sparse\[0, 1\] = 1099511627776"),
    ],
)
def test_field_ids_out_of_range(row, field, value, text):
    sparse, sequences = make_inputs()
    sparse[row, field] = value
    with pytest.raises(ValueError, match=text):
        make()(sparse, sequences)


@pytest.mark.parametrize("value", [9, -1, 1 << 40])
def test_token_ids_out_of_range(value):
    sparse, sequences = make_inputs()
    sequences.values[4] = value
    text = rf"sequences: expected item ids in \[0, 9\), found values\[4\] = {value}"
    with pytest.raises(ValueError, match=text):
        make()(sparse, sequences)


def test_ids_out_of_range_count_as_unknown_where_they_cannot_be_read():
    module = make()
    sparse, sequences = make_inputs()
    expected = module(sparse.where(sparse != 4, 0), sequences)
    sparse[1, 0] = 77
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    assert torch.equal(compiled(sparse, sequences).fields, expected.fields)


def test_shapes_are_checked():
    module = make()
    sparse, sequences = make_inputs()
    with pytest.raises(ValueError, match=r"sparse: expected shape \[B, 3\], found \[3, 2\]"):
        module(sparse[:, :2], sequences)
    with pytest.raises(ValueError, match=r"sequences: expected item ids of shape \[N\]"):
        module(sparse, sequences.with_values(sequences.values.float()))
    one = JaggedSequences(sequences.values, sequences.offsets, 1, 3)
    with pytest.raises(ValueError, match="sequences: expected 2 behaviors, found 1"):
        module(sparse, one)


@pytest.mark.parametrize(
    ("sizes", "options", "text"),
    [
        ((), {}, "vocab_sizes: expected at least one field"),
        ((3, 0), {}, "vocab_sizes: expected at least one field of positive size"),
        ((3,), {"item_field": 1}, r"item_field: expected a field in \[0, 1\), found 1"),
        ((3,), {"num_behaviors": 0}, "num_behaviors: expected a positive int, found 0"),
    ],
)
def test_wrong_options_are_named(sizes, options, text):
    with pytest.raises(ValueError, match=text):
        FeatureEmbedding(sizes, 4, **{"item_field": 0, "num_behaviors": 1, **options})


def test_checkpoint_is_one_table_and_copies_work():
    module = make(share_item_table=False)
    assert list(module.state_dict()) == ["weight"]
    clone = copy.deepcopy(module)
    inputs = make_inputs()
    assert torch.equal(clone(*inputs).fields, module(*inputs).fields)
