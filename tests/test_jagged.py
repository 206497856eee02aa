"""JaggedSequences: constructors, exact round trips, errors, pytree, tracing."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import mtlfast
from mtlfast.jagged import JaggedSequences

LENGTHS = torch.tensor([[2, 0, 3], [0, 0, 0], [1, 4, 2]])


def example(index_dtype: torch.dtype = torch.int64) -> JaggedSequences:
    values = torch.randn(12, 5)
    return JaggedSequences.from_lengths(values, LENGTHS.to(index_dtype), max_len=6)


@dataclass
class FakeKeyedJaggedTensor:
    """The part of TorchRec's interface that is read, with its key-major layout."""

    _keys: list[str]
    _values: Tensor
    _offsets: Tensor

    def keys(self) -> list[str]:
        return self._keys

    def values(self) -> Tensor:
        return self._values

    def offsets(self) -> Tensor:
        return self._offsets


def test_is_exported_at_the_top() -> None:
    assert mtlfast.JaggedSequences is JaggedSequences


def test_from_lengths() -> None:
    sequences = example()
    assert sequences.offsets.tolist() == [0, 2, 2, 5, 5, 5, 5, 6, 10, 12]
    assert (sequences.num_behaviors, sequences.num_users, sequences.max_len) == (3, 3, 6)
    assert torch.equal(sequences.lengths(), LENGTHS)
    assert sequences.segment_ids().tolist() == [0, 0, 2, 2, 2, 6, 7, 7, 7, 7, 8, 8]
    assert sequences.positions().tolist() == [0, 1, 0, 1, 2, 0, 0, 1, 2, 3, 0, 1]
    assert JaggedSequences.from_lengths(torch.randn(12), LENGTHS).max_len == 4


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_offsets_keep_the_dtype_of_lengths(dtype: torch.dtype) -> None:
    assert example(dtype).offsets.dtype == dtype
    assert example(dtype).lengths().dtype == dtype


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16])
def test_padded_round_trip_is_exact(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    padded = [torch.randn(3, width, *shape).mul(100).to(dtype) for width in (3, 1, 4)]
    sequences = JaggedSequences.from_padded(padded, LENGTHS)
    assert sequences.max_len == 4
    again, lengths = sequences.to_padded(widths=[3, 1, 4])
    assert torch.equal(lengths, LENGTHS)
    for b, (block, before) in enumerate(zip(again, padded, strict=True)):
        assert block.shape == before.shape
        assert block.dtype == dtype
        for u, length in enumerate(LENGTHS[b].tolist()):
            assert torch.equal(block[u, :length], before[u, :length])
            assert not block[u, length:].any()
    third = JaggedSequences.from_padded(*sequences.to_padded())
    assert torch.equal(third.values, sequences.values)
    assert torch.equal(third.offsets, sequences.offsets)


def test_padding_value() -> None:
    padded, _ = example().to_padded(padding=-1)
    assert [block.shape for block in padded] == [(3, 6, 5)] * 3
    assert bool((padded[0][1] == -1).all())


def test_gradients_pass_through_padding_and_skip_it() -> None:
    padded = [torch.randn(3, width, 2, requires_grad=True) for width in (3, 2, 4)]
    sequences = JaggedSequences.from_padded(padded, LENGTHS)
    again, _ = sequences.with_values(sequences.values * 3).to_padded()
    sum(block.sum() for block in again).backward()
    for block, length in zip(padded, LENGTHS, strict=True):
        valid = torch.arange(block.shape[1]) < length[:, None]
        assert bool((block.grad[valid] == 3).all())
        assert not block.grad[~valid].any()


@pytest.mark.parametrize("num_users", [0, 1, 4])
def test_no_events_and_no_users(num_users: int) -> None:
    lengths = torch.zeros(2, num_users, dtype=torch.int64)
    sequences = JaggedSequences.from_lengths(torch.empty(0, 3), lengths)
    assert sequences.num_users == num_users
    assert sequences.max_len == 0
    padded, again = sequences.validate().to_padded()
    assert padded[0].shape == (num_users, 0, 3)
    assert again.shape == (2, num_users)
    assert JaggedSequences.from_padded(padded, again).values.shape == (0, 3)


def test_nested_round_trip() -> None:
    sequences = example()
    nested = sequences.to_nested()
    again = JaggedSequences.from_nested(nested)
    assert torch.equal(again.values, sequences.values)
    assert torch.equal(again.offsets, sequences.offsets)
    assert again.max_len == 4
    assert JaggedSequences.from_nested(nested, max_len=9).max_len == 9


def test_nested_with_holes_and_gradients() -> None:
    base = torch.randn(3, 4, 2, requires_grad=True)
    starts, lengths = torch.tensor([1, 0, 2]), torch.tensor([2, 4, 0])
    nested = torch.nested.narrow(base, 1, starts, lengths, layout=torch.jagged)
    sequences = JaggedSequences.from_nested([nested])
    assert torch.equal(sequences.values, torch.cat([base[0, 1:3], base[1]]))
    sequences.values.sum().backward()
    assert base.grad.sum(-1).tolist() == [[0, 2, 2, 0], [2, 2, 2, 2], [0, 0, 0, 0]]


def test_from_kjt_copies_nothing() -> None:
    sequences = example(torch.int32)
    kjt = FakeKeyedJaggedTensor(["watch", "click", "buy"], sequences.values, sequences.offsets)
    again = JaggedSequences.from_kjt(kjt)
    assert again.values is sequences.values
    assert again.offsets is sequences.offsets
    assert (again.num_behaviors, again.num_users, again.max_len) == (3, 3, 4)
    assert JaggedSequences.from_kjt(kjt, max_len=50).max_len == 50


def test_from_kjt_picks_and_orders_keys() -> None:
    sequences = example()
    kjt = FakeKeyedJaggedTensor(["watch", "click", "buy"], sequences.values, sequences.offsets)
    picked = JaggedSequences.from_kjt(kjt, keys=["buy", "watch"])
    assert torch.equal(picked.lengths(), LENGTHS[[2, 0]])
    assert torch.equal(picked.values, torch.cat([sequences.values[5:], sequences.values[:5]]))


def test_behavior_is_a_view() -> None:
    sequences = example()
    last = sequences.behavior(2)
    assert torch.equal(last.lengths(), LENGTHS[2:])
    assert last.values.data_ptr() == sequences.values[5:].data_ptr()


def test_with_values_to_and_repr() -> None:
    sequences = example()
    ids = sequences.with_values(torch.arange(12))
    assert ids.offsets is sequences.offsets
    assert ids.values.dtype == torch.int64
    half = sequences.to(dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.offsets.dtype == torch.int64
    assert half.max_len == 6
    assert repr(sequences).startswith("JaggedSequences(num_behaviors=3, num_users=3, max_len=6")


def test_conversions_read_nothing_back_from_the_device() -> None:
    """On the meta device there is nothing to read, so any host sync raises."""
    sequences = example().to("meta")
    padded, lengths = sequences.with_values(sequences.values * 2).to_padded()
    assert padded[0].shape == (3, 6, 5)
    assert lengths.shape == (3, 3)
    assert sequences.positions().shape == (12,)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: JaggedSequences([1], LENGTHS, 1, 1), "values: expected a tensor, found list"),
        (
            lambda: JaggedSequences(torch.tensor(1), torch.tensor([0]), 1, 1),
            "values: expected shape [N, ...], found a tensor without dimensions",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([0.0, 1.0]), 1, 1),
            "offsets: expected dtype int32 or int64, found a float32 tensor of shape [2] on cpu",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([[0, 1]]), 1, 1),
            "offsets: expected shape [M*U+1], found shape [1, 2]",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([], dtype=torch.int64), 1, 1),
            "offsets: expected shape [M*U+1], found shape [0]",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([0, 1]), 2, 1),
            "offsets: expected shape [M*U+1] with M = num_behaviors = 2, found shape [2]",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([0, 1]).to("meta"), 1, 1),
            "offsets: expected device cpu (that of values), found meta",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([0, 1]), 0, 1),
            "num_behaviors: expected at least 1, found 0",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([0, 1]), 1, 1.5),
            "max_len: expected an int, found float",
        ),
        (
            lambda: JaggedSequences(torch.ones(1), torch.tensor([0, 1]), 1, -1),
            "max_len: expected at least 0, found -1",
        ),
        (
            lambda: JaggedSequences.from_lengths(torch.ones(1), torch.ones(1)),
            "lengths: expected shape [M, U] with M >= 1, found shape [1]",
        ),
        (
            lambda: JaggedSequences.from_lengths(torch.ones(1), torch.ones(1, 1)),
            "lengths: expected dtype int32 or int64, found a float32 tensor of shape [1, 1] on cpu",
        ),
        (
            lambda: JaggedSequences.from_padded([torch.ones(3, 4)], LENGTHS),
            "padded: expected 3 tensors, one per row of lengths, found 1",
        ),
        (
            lambda: JaggedSequences.from_padded([torch.ones(2, 4)], LENGTHS[:1]),
            "padded[0]: expected shape [U = 3, L, ...], found shape [2, 4]",
        ),
        (
            lambda: JaggedSequences.from_padded([torch.ones(3, 2)], LENGTHS[:1]),
            "lengths: expected values in [0, 2], the width of padded[0], found lengths[0, 2] = 3",
        ),
        (
            lambda: JaggedSequences.from_padded([torch.ones(3, 2)], -LENGTHS[:1]),
            "lengths: expected values in [0, 2], the width of padded[0], found lengths[0, 0] = -2",
        ),
        (
            lambda: JaggedSequences.from_padded(
                [torch.ones(3, 4), torch.ones(3, 4, 2)], LENGTHS[:2]
            ),
            "padded[1]: expected row shape and dtype of a float32 tensor of shape [3, 4] on cpu, "
            "found a float32 tensor of shape [3, 4, 2] on cpu",
        ),
        (
            lambda: JaggedSequences.from_nested([]),
            "nested: expected at least one jagged nested tensor, found an empty list",
        ),
        (
            lambda: JaggedSequences.from_nested([torch.ones(3, 4)]),
            "nested[0]: expected a tensor of layout torch.jagged, "
            "found a float32 tensor of shape [3, 4] on cpu",
        ),
        (
            lambda: JaggedSequences.from_kjt(torch.ones(2)),
            "kjt: expected an object with keys(), values() and offsets(), "
            "found a float32 tensor of shape [2] on cpu",
        ),
        (
            lambda: JaggedSequences.from_kjt(
                FakeKeyedJaggedTensor(["a"], torch.ones(1), torch.tensor([0, 1])), keys=["b"]
            ),
            "keys: expected some of ['a'], found ['b']",
        ),
        (
            lambda: example().with_values(torch.ones(3)),
            "values: expected shape [N = 12, ...], found shape [3]",
        ),
        (lambda: example().behavior(3), "b: expected a behavior in [0, 3), found 3"),
        (
            lambda: example().to_padded(widths=[1, 2]),
            "widths: expected 3 widths, one per behavior, found 2",
        ),
        (
            lambda: example().to_padded(widths=[3, 0, 3]),
            "widths[2]: expected at least 4, found 3",
        ),
        (
            lambda: JaggedSequences(torch.ones(3), torch.tensor([1, 3]), 1, 3).validate(),
            "offsets: expected offsets[0] == 0, found 1",
        ),
        (
            lambda: JaggedSequences(torch.ones(3), torch.tensor([0, 2, 1, 3]), 1, 3).validate(),
            "offsets: expected non-decreasing values, found offsets[2] = 1 after offsets[1] = 2",
        ),
        (
            lambda: JaggedSequences(torch.ones(3), torch.tensor([0, 2]), 1, 3).validate(),
            "offsets: expected offsets[-1] == len(values) = 3, found 2",
        ),
        (
            lambda: JaggedSequences(torch.ones(3), torch.tensor([0, 0, 1, 3, 3]), 2, 1).validate(),
            "max_len: expected an upper bound of every sequence length, found max_len = 1 and a "
            "sequence of length 2 (behavior 1, user 0)",
        ),
    ],
)
def test_errors_name_argument_expected_and_found(build: Callable[[], object], text: str) -> None:
    with pytest.raises(ValueError) as error:
        build()
    assert str(error.value) == text


def test_pytree_copy_pickle_and_weights_only_load() -> None:
    sequences = example()
    leaves, spec = pytree.tree_flatten({"history": sequences})
    assert len(leaves) == 3
    doubled = pytree.tree_map_only(Tensor, lambda tensor: tensor * 2, sequences)
    assert torch.equal(doubled.values, sequences.values * 2)
    again = pytree.treespec_loads(pytree.treespec_dumps(spec))
    assert pytree.tree_unflatten(leaves, again)["history"].values is sequences.values
    file = io.BytesIO()
    torch.save(sequences, file)
    file.seek(0)
    for other in (
        copy.deepcopy(sequences),
        pickle.loads(pickle.dumps(sequences)),
        torch.load(file, weights_only=True),
    ):
        assert torch.equal(other.values, sequences.values)
        assert torch.equal(other.offsets, sequences.offsets)
        assert (other.num_behaviors, other.max_len) == (3, 6)


def test_compiles_whole_with_dynamic_shapes() -> None:
    def embed(sequences: JaggedSequences, weight: Tensor) -> tuple[JaggedSequences, Tensor]:
        embedded = sequences.with_values(sequences.values @ weight)
        return embedded, sequences.positions() + embedded.lengths().sum()

    compiled = torch.compile(embed, fullgraph=True, dynamic=True, backend="aot_eager")
    weight = torch.randn(5, 2)
    for count in (4, 7, 9):
        sequences = JaggedSequences.from_lengths(
            torch.randn(count, 5), torch.tensor([[count - 3, 3]]), max_len=count + 1
        )
        expected, numbers = embed(sequences, weight)
        found, found_numbers = compiled(sequences, weight)
        torch.testing.assert_close(found.values, expected.values)
        assert torch.equal(found_numbers, numbers)
        assert found.max_len == expected.max_len


def test_exports_with_another_bound_on_the_length() -> None:
    class Embed(torch.nn.Module):
        def forward(self, sequences: JaggedSequences) -> JaggedSequences:
            return sequences.with_values(sequences.values * 2)

    dynamic = torch.export.Dim.AUTO
    program = torch.export.export(
        Embed(), (example(),), dynamic_shapes=([{0: dynamic}, {0: dynamic}, dynamic],)
    )
    other = JaggedSequences.from_lengths(torch.randn(9, 5), torch.full((3, 3), 1), max_len=77)
    found = program.module()(other)
    assert found.max_len == 77
    assert torch.equal(found.values, other.values * 2)


def test_a_wrong_shape_is_a_value_error_while_tracing() -> None:
    def wrong(values: Tensor, offsets: Tensor) -> Tensor:
        return JaggedSequences(values, offsets, 2, 3).values

    compiled = torch.compile(wrong, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match="offsets: expected shape"):
        compiled(torch.ones(3), torch.tensor([0, 3]))
