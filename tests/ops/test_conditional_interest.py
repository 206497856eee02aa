"""The fused CPU op against the definition: accuracy, properties, bits, NaN.

Nothing here skips where the C++ op is missing: ``backend="cpu"`` then raises, and the tests fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tolerance
import torch
from interest_cases import FLOATING, Case, fuzz, make, nan_like, subsets
from leaves import dense, expanded
from torch import Tensor

from mtlfast import _extension, ops, reference

LENGTHS = [[3, 0, 5, 1, 0], [0, 0, 0, 0, 0], [2, 17, 0, 1, 33]]


def fused(case: Case) -> Tensor:
    return case.call(ops.conditional_interest, backend="cpu")


def plain(case: Case) -> Tensor:
    return case.call(reference.conditional_interest)


def upstream_of(case: Case, out: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)


def check_tolerance(case: Case, backward: bool = True) -> None:
    exact_case = case.to(torch.float64)
    out, in_dtype, exact = fused(case), plain(case), plain(exact_case)
    assert out.dtype == in_dtype.dtype
    tolerance.check("out", out, in_dtype, exact, tolerance.FORWARD)
    if not backward:
        return
    upstream = upstream_of(case, out)
    found = case.gradients(out, upstream)
    in_dtype_grads = case.gradients(in_dtype, upstream)
    for name, truth in exact_case.gradients(exact, upstream.double()).items():
        assert found[name].dtype == case.tensors[name].dtype, name
        tolerance.check(name, found[name], in_dtype_grads[name], truth, tolerance.BACKWARD)


# ---- accuracy ----


@pytest.mark.parametrize("seed", range(20))
def test_fuzzed_shapes_float32(seed: int) -> None:
    check_tolerance(fuzz(seed, kinks=False))


@pytest.mark.parametrize("seed", range(100, 108))
def test_fuzzed_shapes_bfloat16(seed: int) -> None:
    check_tolerance(fuzz(seed, torch.bfloat16, kinks=False))


@pytest.mark.parametrize("seed", range(200, 240))
def test_fuzzed_shapes_forward_with_kinks(seed: int) -> None:
    with torch.no_grad():
        check_tolerance(fuzz(seed), backward=False)


@pytest.mark.parametrize("seed", range(300, 305))
def test_fuzzed_gradients_near_kinks(seed: int) -> None:
    """Where a hidden unit lands on the other side of zero, a whole row of gradients differs."""
    case = fuzz(seed)
    exact_case = case.to(torch.float64)
    out, exact = fused(case), plain(exact_case)
    upstream = upstream_of(case, out)
    truth = exact_case.gradients(exact, upstream.double())
    found = case.gradients(out, upstream)
    for name, gradient in found.items():
        norm = torch.linalg.vector_norm(truth[name])
        assert tolerance.error(gradient, truth[name]) <= 2e-2 * float(norm) + 1e-6, name
    rows = truth["values"]
    if len(rows):
        errors = torch.linalg.vector_norm(found["values"] - rows, dim=1)
        scale = torch.linalg.vector_norm(rows) / len(rows) ** 0.5
        assert (errors > 1e-4 * scale).double().mean() < 0.02


@pytest.mark.parametrize("d", [8, 16, 24, 32, 56, 64, 96, 128, 136, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kind_of_width(d: int, dtype: torch.dtype) -> None:
    case = make(LENGTHS, d=d, d_f=2 * d, num_tasks=4, dtype=dtype, seed=d, kinks=False)
    check_tolerance(case)


# Tasks that share a pass of the encoder's FFN: all, some with fewer in the last pass, one.
@pytest.mark.parametrize("lengths", [[2] * 9, [38] * 2 + [9] * 4, [260, 3, 0, 150]])
@pytest.mark.parametrize("d", [72, 136])
def test_batches_of_wide_tokens(d: int, lengths: list[int]) -> None:
    check_tolerance(make([lengths], d=d, d_f=600, num_tasks=5, num_heads=4, kinks=False))


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("heads", [1, 3, 24])
def test_every_number_of_tasks_and_heads(num_tasks: int, heads: int) -> None:
    case = make(
        LENGTHS, d=24, d_f=40, num_tasks=num_tasks, num_heads=heads, seed=num_tasks, kinks=False
    )
    check_tolerance(case)


@pytest.mark.parametrize(
    ("num_users", "num_candidates"), [(1, 1), (1, 33), (1, 512), (7, 100), (40, 3), (3, 0)]
)
@pytest.mark.parametrize("d", [16, 64])
def test_shared_users(num_users: int, num_candidates: int, d: int) -> None:
    """Few candidates per user take the absorbed keys, many the projected ones."""
    generator = torch.Generator().manual_seed(num_users)
    lengths = torch.randint(0, 40, (3, num_users), generator=generator)
    lengths[1] = 0
    case = make(lengths, d=d, d_f=4 * d, num_heads=4, num_candidates=num_candidates, kinks=False)
    check_tolerance(case)


# Candidates of one user in parts, of one that has none, and of one whose sequences are empty.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lengths", [[[30], [0]], [[5, 0, 12], [0, 0, 150]]])
def test_users_with_many_candidates(lengths: list[list[int]], dtype: torch.dtype) -> None:
    case = make(lengths, d=24, num_tasks=2, num_candidates=1700, dtype=dtype, kinks=False)
    check_tolerance(case)


def busy_and_idle_users(**options: Any) -> Case:
    """Users with few candidates between those with many, in no order."""
    lengths = [[37, 5, 0, 1, 130, 2], [0, 40, 3, 17, 1, 9]]
    counts = torch.tensor([150, 16, 15, 20, 70, 2])
    case = make(lengths, num_candidates=int(counts.sum()), **options)
    users = torch.arange(len(counts)).repeat_interleave(counts)
    order = torch.randperm(len(users), generator=torch.Generator().manual_seed(3))
    return replace(case, user_index=users[order])


# Heads of every kind of width, groups of several blocks of candidates, tasks that share a pass.
@pytest.mark.parametrize(
    ("d", "heads", "num_tasks"),
    [
        *((16, 2, 4), (24, 3, 2), (32, 2, 1), (32, 2, 4), (32, 1, 2), (40, 5, 9)),
        *((64, 4, 4), (64, 2, 1), (96, 4, 5), (136, 4, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_busy_and_idle_users(d: int, heads: int, num_tasks: int, dtype: torch.dtype) -> None:
    case = busy_and_idle_users(
        d=d, d_f=2 * d, num_heads=heads, num_tasks=num_tasks, dtype=dtype, kinks=False
    )
    check_tolerance(case)


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 500, 2048])
def test_every_kind_of_length(length: int) -> None:
    check_tolerance(make([[length, 0, 1]], d=16, d_f=16, num_tasks=1, kinks=False))


def test_sharp_softmax() -> None:
    case = make(LENGTHS, d=32, kinks=False)
    with torch.no_grad():
        for name in ("encoder.q_proj", "encoder.k_proj", "decoder.q_proj", "decoder.k_proj"):
            case.tensors[name] *= 6
    check_tolerance(case)


@pytest.fixture
def capability() -> Iterator[None]:
    yield
    _extension.set_cpu_capability("auto")


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "avx512_bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("capability")
def test_every_instruction_set(isa: str, dtype: torch.dtype) -> None:
    try:
        _extension.set_cpu_capability(isa)
    except ValueError as error:
        pytest.skip(str(error))
    for d, candidates in ((16, None), (40, 60), (72, None)):
        case = make(LENGTHS, d=d, d_f=d, num_candidates=candidates, dtype=dtype, kinks=False)
        check_tolerance(case)


# ---- dtypes ----


def test_float16_is_computed_in_float32() -> None:
    case = make(LENGTHS, dtype=torch.float16)
    out = fused(case)
    assert out.dtype == torch.float16
    exact = plain(case.to(torch.float64))
    torch.testing.assert_close(out.double(), exact, rtol=1e-3, atol=1e-3)
    gradients = case.gradients(out, torch.ones_like(out))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float16}


@pytest.mark.parametrize("other", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["values", "target", "encoder.linear1_bias", "scale"])
def test_mixed_dtypes_promote_as_torch_does(name: str, other: torch.dtype) -> None:
    case = make(LENGTHS)
    mixed = case.with_tensors(**{name: case.tensors[name].detach().to(other).requires_grad_()})
    out = fused(mixed)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, plain(mixed.to(torch.float32)), rtol=1e-4, atol=1e-5)
    gradients = mixed.gradients(out, torch.ones_like(out))
    assert gradients[name].dtype == other


def test_bfloat16_and_float16_meet_in_float32() -> None:
    case = make(LENGTHS, dtype=torch.bfloat16)
    assert fused(case.with_tensors(target=case.tensors["target"].half())).dtype == torch.float32


def test_float64_runs_on_the_reference() -> None:
    case = make(LENGTHS, dtype=torch.float64)
    assert torch.equal(case.call(ops.conditional_interest), plain(case))
    with pytest.raises(ValueError, match="float64 is computed by the reference only"):
        fused(case)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_autocast(dtype: torch.dtype, backend: str) -> None:
    case = make(LENGTHS)
    with torch.autocast("cpu", dtype=dtype):
        out = case.call(ops.conditional_interest, backend=backend)
    assert out.dtype == dtype
    exact = plain(case.to(torch.float64))
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=8 * eps, atol=8 * eps)
    gradients = case.gradients(out, torch.ones_like(out))
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


# ---- properties ----


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def test_identity_start_gives_all_tasks_the_same_bits() -> None:
    case = make(LENGTHS, num_tasks=3)
    with torch.no_grad():
        case.tensors["scale"].fill_(1.0)
        case.tensors["shift"].fill_(0.0)
    out = fused(case)
    for t in (1, 2):
        assert torch.equal(out[:, t], out[:, 0])
    close(out, plain(case))


def test_order_inside_a_sequence_does_not_matter() -> None:
    case = make([[7, 30], [1, 0]])
    out = fused(case)
    order = torch.cat([torch.randperm(7), 7 + torch.randperm(30), torch.tensor([37])])
    close(fused(case.with_tensors(values=case.tensors["values"][order])), out)


def test_permuting_samples_permutes_the_output() -> None:
    case = make(LENGTHS)
    order = torch.tensor([3, 0, 4, 2, 1])
    pieces = case.tensors["values"].split(case.lengths.view(-1).tolist())
    values = torch.cat([pieces[b * 5 + u] for b in range(3) for u in order.tolist()])
    moved = make(case.lengths[:, order])
    moved = moved.with_tensors(**{**case.tensors, "values": values})
    moved = moved.with_tensors(target=case.tensors["target"][order])
    close(fused(moved), fused(case)[order])


def test_permuting_behaviors_permutes_the_output() -> None:
    case = make(LENGTHS)
    order = torch.tensor([2, 0, 1])
    pieces = case.tensors["values"].split(case.lengths.sum(1).tolist())
    moved = make(case.lengths[order]).with_tensors(
        **{
            **case.tensors,
            "values": torch.cat([pieces[b] for b in order.tolist()]),
            "scale": case.tensors["scale"][:, order],
            "shift": case.tensors["shift"][:, order],
        }
    )
    close(fused(moved), fused(case)[:, :, order])


def test_splitting_a_batch_gives_the_same_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    case = make(torch.randint(0, 12, (2, 90), generator=generator))
    pieces = case.tensors["values"].split(case.lengths.view(-1).tolist())
    out = fused(case)
    for part in subsets(90, 4):
        values = torch.cat([pieces[b * 90 + u] for b in range(2) for u in part.tolist()])
        piece = make(case.lengths[:, part]).with_tensors(
            **{**case.tensors, "values": values, "target": case.tensors["target"][part]}
        )
        close(fused(piece), out[part])


def test_user_index_equals_repeated_users() -> None:
    case = make(LENGTHS, num_candidates=23)
    users = case.user_index
    pieces = case.tensors["values"].split(case.lengths.view(-1).tolist())
    values = torch.cat([pieces[b * 5 + u] for b in range(3) for u in users.tolist()])
    repeated = replace(
        make(case.lengths[:, users]).with_tensors(**{**case.tensors, "values": values}),
        user_index=None,
    )
    close(fused(repeated), fused(case))


def test_empty_sequence_is_the_decoder_alone() -> None:
    """The attention over no keys is zero; encoder and attention weights get zero gradients."""
    case = make([[0, 0, 0]], num_tasks=2)
    out = fused(case)
    norm = torch.nn.functional.layer_norm
    item, weights = case.tensors["target"], case.weights.decoder
    for t in range(2):
        gamma, beta = case.tensors["scale"][t, 0], case.tensors["shift"][t, 0]
        out3 = gamma[2] * norm(item, (16,)) + beta[2]
        hidden = torch.relu(out3 @ weights.linear1_weight.T + weights.linear1_bias)
        u = out3 + hidden @ weights.linear2_weight.T + weights.linear2_bias
        close(out[:, t, 0], gamma[3] * norm(u, (16,)) + beta[3])
    gradients = case.gradients(out, upstream_of(case, out))
    for name in FLOATING:
        attention = name.startswith("encoder") or name.endswith("_proj")
        assert bool(gradients[name].any()) != (attention or name == "values"), name
    assert not gradients["scale"][:, :, :2].any()
    assert not gradients["shift"][:, :, :2].any()


def test_one_event_has_attention_weight_one() -> None:
    case = make([[1, 1]])
    other = case.with_tensors(
        **{
            f"{side}.{name}": torch.randn(16, 16)
            for side in ("encoder", "decoder")
            for name in ("q_proj", "k_proj")
        }
    )
    close(fused(other), fused(case))


def test_users_without_candidates_get_exactly_zero_gradient() -> None:
    case = replace(make(LENGTHS, num_candidates=4), user_index=torch.tensor([2, 2, 0, 2]))
    out = fused(case)
    gradient = case.gradients(out, upstream_of(case, out))["values"]
    pieces = gradient.split(case.lengths.view(-1).tolist())
    for s, piece in enumerate(pieces):
        assert bool(piece.any()) == (s % 5 in (0, 2) and len(piece) > 0)


@pytest.mark.parametrize("lengths", [[[], []], [[0, 0], [0, 0]]], ids=["no users", "no events"])
def test_empty_batches(lengths: list[list[int]]) -> None:
    case = make(torch.tensor(lengths, dtype=torch.int64))
    out = fused(case)
    assert out.shape == (len(lengths[0]), 2, 2, 16)
    gradients = case.gradients(out, torch.ones_like(out))
    exact = case.to(torch.float64)
    truth = exact.gradients(plain(exact), torch.ones_like(out).double())
    for name in FLOATING:
        close(gradients[name].double(), truth[name])


def test_no_candidates_for_some_users() -> None:
    case = make(LENGTHS, num_candidates=0)
    out = fused(case)
    assert out.shape == (0, 2, 3, 16)
    for gradient in case.gradients(out, torch.ones_like(out)).values():
        assert not gradient.any()


def test_max_len_is_only_a_bound() -> None:
    case = make(LENGTHS)
    assert torch.equal(fused(replace(case, max_len=2048)), fused(case))


# ---- strides ----


def scattered(tensor: Tensor, how: str) -> Tensor:
    """The same values behind other strides."""
    tensor = tensor.detach()
    if how == "transposed":
        reverse = tuple(reversed(range(tensor.dim())))
        return tensor.permute(reverse).contiguous().permute(reverse)
    if how == "strided":
        return torch.stack([tensor, torch.full_like(tensor, float("nan"))], dim=-1)[..., 0]
    flat = torch.full((tensor.numel() + 3,), float("nan"), dtype=tensor.dtype)
    flat[3:] = tensor.reshape(-1)
    return flat[3:].view(tensor.shape)


@pytest.mark.parametrize("how", ["transposed", "strided", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_strides(how: str, dtype: torch.dtype) -> None:
    case = make(LENGTHS, num_candidates=7, dtype=dtype)
    tensors = {
        name: scattered(tensor, how).requires_grad_() for name, tensor in case.tensors.items()
    }
    other = replace(
        case,
        tensors=tensors,
        offsets=torch.stack([case.offsets, -case.offsets], 1)[:, 0],
        user_index=torch.stack([case.user_index, -case.user_index], 1)[:, 0],
    )
    out, expected = fused(other), fused(case)
    assert torch.equal(out, expected)
    upstream = upstream_of(case, out)
    gradients = case.gradients(expected, upstream)
    for name, gradient in other.gradients(fused(other), scattered(upstream, how)).items():
        assert torch.equal(gradient, gradients[name]), name


def test_expanded_inputs() -> None:
    case = make([[4, 1, 0, 4]])
    for name, t in case.tensors.items():
        for dim in range(t.dim()):
            other = case.with_tensors(**{name: expanded(t, dim)})
            same = case.with_tensors(**{name: dense(other.tensors[name])})
            out, expected = fused(other), fused(same)
            assert torch.equal(out, expected)
            upstream = upstream_of(case, out)
            truth = same.gradients(expected, upstream)
            for of, found in other.gradients(out, upstream).items():
                assert torch.equal(found, truth[of]), (name, dim, of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_upstream_gradient_of_a_sum_is_expanded(dtype: torch.dtype) -> None:
    case = make(LENGTHS, dtype=dtype)
    fused(case).sum().backward()
    gradients = case.gradients(fused(case), torch.ones_like(fused(case)))
    for name in FLOATING:
        assert torch.equal(case.tensors[name].grad, gradients[name]), name


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_offset_dtypes(index_dtype: torch.dtype) -> None:
    case = make(LENGTHS)
    assert torch.equal(fused(replace(case, offsets=case.offsets.to(index_dtype))), fused(case))


def test_only_some_inputs_need_gradients() -> None:
    case = make(LENGTHS)
    whole = case.gradients(fused(case), torch.ones_like(fused(case)))
    for name in FLOATING:
        detached = {key: tensor.detach() for key, tensor in case.tensors.items()}
        leaf = detached[name].clone().requires_grad_()
        fused(case.with_tensors(**{**detached, name: leaf})).sum().backward()
        assert torch.equal(leaf.grad, whole[name]), name


def test_backward_does_not_change_what_it_reads() -> None:
    case = make(LENGTHS)
    out = fused(case)
    upstream = upstream_of(case, out)
    copies = [upstream.clone(), out.detach().clone()]
    first = case.gradients(out, upstream, retain_graph=True)
    second = case.gradients(out, upstream)
    assert torch.equal(upstream, copies[0])
    assert torch.equal(out.detach(), copies[1])
    for name in FLOATING:
        assert torch.equal(first[name], second[name]), name


# ---- bits ----


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_same_bits_for_any_number_of_threads_and_every_run(
    shared: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(5)
    lengths = (torch.rand(4, 300, generator=generator) ** 4 * 60).long()
    case = make(lengths, d=32, num_candidates=700 if shared else None, dtype=dtype)
    check_same_bits(case)


# Gradients so large that their sums are few, and shared out among the threads.
@pytest.mark.usefixtures("threads")
def test_same_bits_for_any_number_of_threads_of_wide_models() -> None:
    lengths = torch.randint(0, 25, (2, 40), generator=torch.Generator().manual_seed(6))
    check_same_bits(make(lengths, d=136, d_f=600, num_tasks=3, num_heads=4))


# Users with so many candidates that the backward computes their gradients in parts.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("threads")
def test_same_bits_for_any_number_of_threads_of_busy_users(dtype: torch.dtype) -> None:
    check_same_bits(make([[40, 0, 9], [0, 3, 70]], d=16, num_candidates=2000, dtype=dtype))


def check_same_bits(case: Case) -> None:
    results = []
    for count in (1, 2, 2, 3, 5, 1):
        torch.set_num_threads(count)
        out = fused(case)
        results.append([out, *case.gradients(out, upstream_of(case, out)).values()])
    for result in results[1:]:
        for name, first, other in zip(["out", *FLOATING], results[0], result, strict=True):
            assert torch.equal(first, other), name


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """In deterministic mode torch fills every new tensor with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("num_candidates", [None, 90, 3000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_element_is_written(
    dtype: torch.dtype, num_candidates: int | None, request: pytest.FixtureRequest
) -> None:
    case = make(LENGTHS, d=24, num_tasks=3, num_candidates=num_candidates, dtype=dtype)
    out = fused(case)
    gradients = case.gradients(out, upstream_of(case, out))
    request.getfixturevalue("poisoned_memory")
    assert torch.empty(3).isnan().all()
    again = fused(case)
    assert torch.equal(again, out)
    for name, gradient in case.gradients(again, upstream_of(case, out)).items():
        assert torch.equal(gradient, gradients[name]), name


def test_without_gradients_the_bits_are_the_same() -> None:
    case = make(LENGTHS)
    with torch.no_grad():
        out = fused(case)
    assert not out.requires_grad
    assert torch.equal(out, fused(case))


# ---- NaN ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_users", [5, 40])
def test_nan_in_a_sequence_stays_in_its_sample(dtype: torch.dtype, num_users: int) -> None:
    generator = torch.Generator().manual_seed(num_users)
    lengths = torch.randint(1, 20, (2, num_users), generator=generator)
    case = make(lengths, dtype=dtype, num_candidates=2 * num_users)
    behavior, user = 1, 3
    row = int(case.offsets[behavior * num_users + user])
    _check_nan_stays(case, "values", (row, 5), behavior, user)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_in_a_target_stays_in_its_sample(dtype: torch.dtype) -> None:
    case = make([[3, 0, 5, 1, 2], [0, 4, 0, 0, 1]], dtype=dtype)
    _check_nan_stays(case, "target", (2, 9), None, 2)


def test_nan_in_a_target_stays_away_from_other_candidates_of_its_user() -> None:
    case = busy_and_idle_users(d=32, num_tasks=2)
    assert case.user_index is not None
    users = case.user_index
    candidate = int((users == 0).nonzero()[70])
    poisoned = nan_like(case, "target", (candidate, 9))
    out, expected = fused(poisoned), fused(case)
    others = torch.arange(len(out)) != candidate
    assert bool(out[candidate].isnan().all())
    assert torch.equal(out[others], expected[others])
    upstream = upstream_of(case, out)
    found, truth = poisoned.gradients(out, upstream), case.gradients(expected, upstream)
    assert bool(found["target"][candidate].isnan().all())
    assert torch.equal(found["target"][others], truth["target"][others])
    elsewhere = case.sequences.segment_ids() % case.sequences.num_users != 0
    assert torch.equal(found["values"][elsewhere], truth["values"][elsewhere])


def _check_nan_stays(
    case: Case, name: str, index: tuple[int, int], behavior: int | None, user: int
) -> None:
    clean, poisoned = case, nan_like(case, name, index)
    out, expected = fused(poisoned), fused(clean)
    users = torch.arange(len(out)) if case.user_index is None else case.user_index
    hit = torch.zeros(out.shape, dtype=torch.bool)
    hit[users == user] = behavior is None
    if behavior is not None:
        hit[users == user, :, behavior] = True
    assert torch.equal(out.isnan(), hit)
    assert torch.equal(out[~hit], expected[~hit])

    upstream = upstream_of(case, out)
    found, truth = poisoned.gradients(out, upstream), clean.gradients(expected, upstream)
    token_user = case.sequences.segment_ids() % case.sequences.num_users
    token_behavior = case.sequences.segment_ids() // case.sequences.num_users
    tokens = token_user == user
    if behavior is not None:
        tokens &= token_behavior == behavior
    assert bool(found["values"][tokens].isnan().all())
    assert torch.equal(found["values"][~tokens], truth["values"][~tokens])
    assert bool(found["target"][users == user].isnan().all())
    assert torch.equal(found["target"][users != user], truth["target"][users != user])


def test_nan_of_a_user_without_candidates_goes_nowhere() -> None:
    case = replace(make(LENGTHS, num_candidates=4), user_index=torch.tensor([2, 2, 0, 2]))
    row = int(case.offsets[2 * 5 + 1])  # behavior 2 of user 1
    poisoned = nan_like(case, "values", (row, 3))
    out, expected = fused(poisoned), fused(case)
    assert torch.equal(out, expected)
    truth = case.gradients(expected, torch.ones_like(out))
    for name, gradient in poisoned.gradients(out, torch.ones_like(out)).items():
        if name == "values":
            gradient, truth[name] = gradient[row + 17 :], truth[name][row + 17 :]
        assert torch.equal(gradient, truth[name]), name


@pytest.mark.parametrize("name", [name for name in FLOATING if name not in ("values", "target")])
def test_nan_in_a_parameter_is_never_swallowed(name: str) -> None:
    """Every output that is NaN by the definition is NaN."""
    case = make([[2, 0, 5], [0, 3, 4]], num_tasks=3)
    tensor = case.tensors[name]
    index = (1, 1, *(1 for _ in tensor.shape[2:])) if tensor.dim() == 4 else (3,) * tensor.dim()
    poisoned = nan_like(case, name, index)
    out, expected = fused(poisoned), plain(poisoned)
    assert bool(expected.isnan().any())
    assert bool(out.isnan()[expected.isnan()].all())


@pytest.mark.parametrize("value", [float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["values", "target", "encoder.linear1_bias", "decoder.v_proj"])
def test_infinity_is_not_swallowed(name: str, value: float) -> None:
    case = make([[2, 0, 5], [0, 3, 4]])
    with torch.no_grad():
        case.tensors[name].view(-1)[3] = value
    assert bool(fused(case).isnan()[plain(case).isnan()].all())
