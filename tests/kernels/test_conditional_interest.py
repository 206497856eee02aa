"""The Triton kernels against the definition: on a GPU where there is one, else interpreted.

Interpreted, a tile takes milliseconds, so cases are small there; a GPU runs fuzzed ones as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import gpu
import interest_cases
import pytest
import tolerance
import torch
from gpu import on_device, poisoned_memory  # noqa: F401 (a fixture)
from interest_cases import FLOATING, Case, nan_like
from torch import Tensor

from mtlfast import ops, reference

pytestmark = pytest.mark.skipif("triton" not in gpu.BACKENDS, reason="triton is not installed")
LENGTHS = [[3, 0, 1], [0, 9, 2]]
needs_gpu = pytest.mark.skipif(not gpu.HAS_GPU, reason="there is no GPU")


def make(lengths: Tensor | list[list[int]] = LENGTHS, **options: object) -> Case:
    return on_device(interest_cases.make(lengths, **{"kinks": False, **options}))  # type: ignore[arg-type]


def fused(case: Case) -> Tensor:
    return case.call(ops.conditional_interest, backend="triton")


def plain(case: Case) -> Tensor:
    return case.call(reference.conditional_interest)


def upstream_of(out: Tensor, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    return drawn.to(out.device, out.dtype)


def check_tolerance(case: Case) -> None:
    exact_case = case.to(torch.float64)
    out, in_dtype, exact = fused(case), plain(case), plain(exact_case)
    assert out.dtype == in_dtype.dtype
    tolerance.check("out", out, in_dtype, exact, tolerance.FORWARD)
    upstream = upstream_of(out)
    found, in_dtype_grads = case.gradients(out, upstream), case.gradients(in_dtype, upstream)
    for name, truth in exact_case.gradients(exact, upstream.double()).items():
        assert found[name].dtype == case.tensors[name].dtype, name
        tolerance.check(name, found[name], in_dtype_grads[name], truth, tolerance.BACKWARD)


# ---- accuracy ----


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("d", "d_f", "heads"),
    [
        *((16, 272, 1), (24, 40, 3), (32, 128, 2), (40, 8, 5), (64, 80, 4), (56, 24, 7)),
        *((128, 72, 8), (96, 40, 4)),
    ],
)
def test_widths(d: int, d_f: int, heads: int) -> None:
    check_tolerance(make([[3, 0, 9]], d=d, d_f=d_f, num_heads=heads, num_tasks=1, seed=d))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("candidates", [None, 5])
def test_half(dtype: torch.dtype, candidates: int | None) -> None:
    check_tolerance(make(d=32, d_f=64, num_candidates=candidates, dtype=dtype))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("dtype", "candidates"), [(torch.bfloat16, None), (torch.float16, 3)])
def test_half_and_wide(dtype: torch.dtype, candidates: int | None) -> None:
    lengths = [[3, 0, 18]]
    check_tolerance(
        make(lengths, d=72, d_f=40, num_heads=3, num_candidates=candidates, dtype=dtype)
    )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("num_tasks", "num_behaviors"), [(1, 1), (3, 1), (1, 3)])
def test_numbers_of_tasks_and_behaviors(num_tasks: int, num_behaviors: int) -> None:
    lengths = [[2, 0, 5], [0, 0, 0], [1, 1, 20]][:num_behaviors]
    check_tolerance(make(lengths, num_tasks=num_tasks, index_dtype=torch.int32))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    "lengths", [[[1, 1, 1]], [[64, 64]], [[63, 2, 65]], [[150, 0, 7]], [[0] * 40, [1] * 40]]
)
def test_sequences_and_tiles(lengths: list[list[int]]) -> None:
    """Shorter than a tile, as long, over its edge, over several tiles, and many in one."""
    check_tolerance(make(lengths, d_f=16, num_tasks=1))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(("num_users", "num_candidates"), [(1, 40), (5, 23), (30, 3)])
def test_shared_users(num_users: int, num_candidates: int) -> None:
    generator = torch.Generator().manual_seed(num_users)
    lengths = torch.randint(0, 12, (2, num_users), generator=generator)
    check_tolerance(make(lengths, num_tasks=1, num_candidates=num_candidates))


def test_sharp_softmax() -> None:
    case = make([[9, 40]], d=32, num_tasks=1)
    with torch.no_grad():
        for name in ("encoder.q_proj", "encoder.k_proj", "decoder.q_proj", "decoder.k_proj"):
            case.tensors[name] *= 6
    check_tolerance(case)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(40))
def test_fuzzed(seed: int, dtype: torch.dtype) -> None:
    case = interest_cases.fuzz(seed, dtype, kinks=False)
    if case.tensors["target"].shape[1] > 128 or case.num_heads * 16 > 256:
        pytest.skip("too wide for these kernels")
    check_tolerance(on_device(case))


# ---- what must not matter ----


@pytest.mark.usefixtures("poisoned_memory")
def test_any_strides() -> None:
    case = make(LENGTHS, num_candidates=4)
    expected = fused(case)
    strided = {
        name: torch.stack([tensor.detach(), tensor.detach() + 1], -1)[..., 0].requires_grad_()
        for name, tensor in case.tensors.items()
    }
    other = case.with_tensors(**strided)
    out = fused(other)
    assert torch.equal(out, expected)
    upstream = torch.randn(out.shape[::-1], device=out.device).permute(3, 2, 1, 0)
    found = other.gradients(out, upstream)
    for name, gradient in case.gradients(expected, upstream.contiguous()).items():
        assert torch.equal(found[name], gradient), name
    expanded = torch.ones((), device=out.device).expand(out.shape)
    found = case.gradients(fused(case), expanded)
    for name, gradient in case.gradients(fused(case), expanded.contiguous()).items():
        assert torch.equal(found[name], gradient), name


def test_results_have_the_same_bits_in_every_run() -> None:
    case = make([[5, 70, 3], [1, 0, 9]], num_candidates=20)
    runs = []
    for _ in range(2):
        out = fused(case)
        runs.append([out, *case.gradients(out, upstream_of(out)).values()])
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("lengths", "candidates"),
    [([[], []], None), ([[0, 0], [0, 0]], None), (LENGTHS, 0)],
    ids=["no users", "no events", "no candidates"],
)
def test_empty_batches(lengths: list[list[int]], candidates: int | None) -> None:
    case = make(torch.tensor(lengths, dtype=torch.int64), num_candidates=candidates)
    out = fused(case)
    expected = plain(case)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)
    truth = case.gradients(expected, torch.ones_like(out))
    for name, gradient in case.gradients(out, torch.ones_like(out)).items():
        torch.testing.assert_close(gradient, truth[name], rtol=1e-4, atol=2e-5)


# ---- NaN ----

# Users 0 and 2 have two candidates each, user 1 has none; the tile holds them all.
SHARING = torch.tensor([0, 2, 2, 0])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shared", [False, True])
def test_what_is_not_finite_stays_with_its_user(value: float, shared: bool) -> None:
    case = make([[3, 2, 4], [1, 0, 2]], num_tasks=1)
    if shared:
        users = SHARING.to(gpu.DEVICE)
        target = torch.randn(4, 16, device=gpu.DEVICE, requires_grad=True)
        case = replace(case.with_tensors(target=target), user_index=users)
    poisoned = nan_like(case, "values", 6)  # behavior 0 of user 2, whose tokens are 5 to 8
    with torch.no_grad():
        poisoned.tensors["values"][6] = value
    out, expected = fused(poisoned), fused(case)
    of_user_2 = SHARING == 2 if shared else torch.arange(3) == 2
    assert bool(out[of_user_2, :, 0].isnan().all())
    assert torch.equal(out[of_user_2, :, 1], expected[of_user_2, :, 1])
    assert torch.equal(out[~of_user_2], expected[~of_user_2])

    found, clean = (
        c.gradients(o, torch.ones_like(o)) for c, o in ((poisoned, out), (case, expected))
    )
    assert bool(found["values"][5:9].isnan().all())
    assert bool(found["target"][of_user_2].isnan().all())
    others = torch.arange(12) < 5
    torch.testing.assert_close(found["values"][:12][others], clean["values"][:12][others])
    torch.testing.assert_close(found["values"][9:], clean["values"][9:])
    torch.testing.assert_close(found["target"][~of_user_2], clean["target"][~of_user_2])


def test_nan_of_a_candidate_stays_with_it() -> None:
    case = make([[3, 2, 4], [1, 0, 2]], num_tasks=1)
    poisoned = nan_like(case, "target", (1, 3))
    out, expected = fused(poisoned), fused(case)
    keep = torch.arange(3) != 1
    assert bool(out[1].isnan().all())
    assert torch.equal(out[keep], expected[keep])
    found, clean = (
        c.gradients(o, torch.ones_like(o)) for c, o in ((poisoned, out), (case, expected))
    )
    assert bool(found["target"][1].isnan().all())
    torch.testing.assert_close(found["target"][keep], clean["target"][keep])
    user_1 = torch.tensor([3, 4])
    rest = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
    assert bool(found["values"][user_1].isnan().all())
    torch.testing.assert_close(found["values"][rest], clean["values"][rest])


def test_nan_of_a_user_without_candidates_goes_nowhere() -> None:
    case = make([[3, 2, 4], [1, 0, 2]], num_tasks=1, num_candidates=4)
    case = replace(case, user_index=SHARING.to(gpu.DEVICE))
    poisoned = nan_like(case, "values", 3)
    out = fused(poisoned)
    found = poisoned.gradients(out, torch.ones_like(out))
    assert bool(out.isfinite().all())
    assert not bool(found["values"][3:5].any())
    for name in FLOATING:
        assert bool(found[name].isfinite().all()), name


def test_nan_in_the_upstream_gradient_stays_with_its_candidate() -> None:
    case = make([[3, 2, 4], [1, 0, 2]], num_tasks=1)
    out = fused(case)
    upstream = torch.ones_like(out)
    clean = case.gradients(fused(case), upstream)
    upstream[1] = math.nan
    found = case.gradients(out, upstream)
    assert bool(found["target"][1].isnan().all())
    assert bool(found["values"][3:5].isnan().all())
    rest = torch.tensor([0, 1, 2, 5, 6, 7, 8, 9, 10, 11])
    torch.testing.assert_close(found["values"][rest], clean["values"][rest])


# ---- wrong data ----


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 3, 3, 4, 4, 13, 15],
        [5, 2, 9, 1, 0, 7, 3],
        [-4, 3, 2**40, 4, -(2**50), 13, 15],
        [15] * 7,
    ],
)
def test_wrong_data_touch_no_memory_out_of_bounds(offsets: list[int]) -> None:
    """Results are undefined, but there are some."""
    case = make([[3, 0, 1], [0, 9, 2]], num_tasks=1, num_candidates=4)
    case = replace(
        case,
        offsets=torch.tensor(offsets, device=gpu.DEVICE),
        user_index=torch.tensor([2**40, -1, 1, -(2**60)], device=gpu.DEVICE),
    )
    out = fused(case)
    case.gradients(out, torch.ones_like(out))
    assert out.shape == (4, 1, 2, 16)


def test_the_full_check_finds_wrong_data() -> None:
    import mtlfast

    case = make(LENGTHS, num_candidates=4)
    case = replace(case, user_index=torch.tensor([0, 7, 1, 1], device=gpu.DEVICE))
    mtlfast.checks(True)
    try:
        with pytest.raises(ValueError, match=r"user_index: expected values in \[0, 3\)"):
            fused(case)
    finally:
        mtlfast.checks(False)


# ---- what the host does before a launch ----


def test_other_lengths_cost_the_host_no_new_work() -> None:
    """At these sizes a GPU is done before the host has worked out the options of a launch."""
    from mtlfast.kernels.conditional_interest import problem

    fused(make([[2, 1]]))
    before = [f.cache_info() for f in (problem._config, problem._sizes)]
    fused(make([[1, 0, 3]]))
    after = [f.cache_info() for f in (problem._config, problem._sizes)]
    assert [info.misses for info in after] == [info.misses for info in before]
    assert all(a.hits > b.hits for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("d", "most"), [(16, 32), (32, 64), (64, 128), (128, 1024)])
def test_rows_of_the_weights_backward_are_shared_among_many_programs(d: int, most: int) -> None:
    """Tiles that a program takes one after the other: no other launch would have as many."""
    from mtlfast.kernels.conditional_interest.config import config
    from mtlfast.kernels.conditional_interest.layout import Layout

    layout, num_tasks, num_tokens, programs = Layout(d, 4 * d, 4), 4, 120_000, 2 * 132
    for capability in (90, 100):
        launch = config(layout, "bfloat16", capability).weights_backward
        shares = programs // (layout.fp // launch.hidden)
        assert num_tasks * num_tokens / launch.rows / shares <= most


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    """What torch does with float32 products, left as it was."""
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("matmul_precision")
def test_products_follow_torch_s_precision_however_it_was_set() -> None:
    from mtlfast.kernels.conditional_interest.problem import _products

    elsewhere, half, wide = (
        torch.empty(3, d, dtype=dtype, device="meta")
        for d, dtype in ((64, torch.float32), (64, torch.bfloat16), (72, torch.float32))
    )
    assert _products(elsewhere) == "float32"
    torch.set_float32_matmul_precision("high")
    assert (_products(elsewhere), _products(half)) == ("tf32", "bfloat16")
    assert _products(wide) == _products(torch.empty(3, 64)) == "float32"
    torch.set_float32_matmul_precision("highest")
    assert _products(elsewhere) == "float32"
    torch.backends.cuda.matmul.allow_tf32 = True
    assert _products(elsewhere) == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert (_products(elsewhere), _products(half)) == ("tf32", "bfloat16")


# ---- choice of backend ----


def test_what_the_kernels_do_not_cover_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match="d = 136 is more than 128"):
        fused(make(d=136))
    with pytest.raises(ValueError, match="d_f = 1032 is more than 1024"):
        fused(make(d_f=1032))
    with pytest.raises(ValueError, match="32 heads of 2 columns"):
        fused(make(d=64, num_heads=32))
    with pytest.raises(ValueError, match="float64 is computed by the reference only"):
        fused(make(dtype=torch.float64))


def test_mixed_dtypes_promote_as_torch_does() -> None:
    case = make(LENGTHS, num_tasks=1)
    names = {"values": torch.bfloat16, "scale": torch.float16, "encoder.v_proj": torch.bfloat16}
    mixed = case.with_tensors(
        **{n: case.tensors[n].detach().to(dtype).requires_grad_() for n, dtype in names.items()}
    )
    out = fused(mixed)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, plain(mixed.to(torch.float32)), rtol=1e-4, atol=1e-5)
    gradients = mixed.gradients(out, torch.ones_like(out))
    assert {name: gradients[name].dtype for name in names} == names


@needs_gpu
def test_nothing_waits_for_the_host_and_graphs_capture_it() -> None:
    case = make(torch.randint(0, 30, (3, 50)), num_candidates=80, d=32)
    upstream = upstream_of(fused(case))

    def step() -> list[Tensor]:
        out = fused(case)
        return [out, *case.gradients(out, upstream).values()]

    expected = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    for one, other in zip(captured, expected, strict=True):
        assert torch.equal(one, other)
