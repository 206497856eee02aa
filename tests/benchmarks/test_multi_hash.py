"""The workload of multi_hash_lookup: its baselines, every backend's check, its inputs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.baselines import multi_hash_lookup as baselines
from benchmarks.cases import multi_hash_case, multi_hash_jobs
from benchmarks.memory import can_measure_repeatedly, peak_of
from benchmarks.multi_hash import MultiHashWorkload
from benchmarks.workload import held_bytes
from mtlfast import reference

TINY = multi_hash_case(6, 3, num_codewords=500, batch=40, d=8)


@pytest.mark.parametrize("name", ["eager", "bag"])
@pytest.mark.parametrize("sparse", [False, True])
def test_baselines_compute_what_the_reference_computes(name: str, sparse: bool) -> None:
    dtype = torch.float32 if name == "bag" else torch.float64  # embedding_bag has no float64
    ids = torch.randint(0, 10**9, (30, 6))
    codebook = torch.randn(500, 8, dtype=dtype, requires_grad=True)
    weights = torch.randn(30, 15, dtype=dtype, requires_grad=True)
    layout = baselines.layout(6, dtype)
    found = getattr(baselines, name)(
        ids, codebook, weights, layout=layout, num_hashes=3, sparse=sparse
    )
    expected = reference.multi_hash_lookup(ids, codebook[None], num_hashes=3, pair_weights=weights)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for one, two in zip(
        torch.autograd.grad(found, (codebook, weights), upstream),
        torch.autograd.grad(expected, (codebook, weights), upstream),
        strict=True,
    ):
        torch.testing.assert_close(one.to_dense(), two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("gradient", "mode"),
    [("dense", "forward"), ("dense", "training"), ("sparse", "training"), ("step", "training")],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_backend_passes_its_check(gradient: str, mode: str, dtype: str) -> None:
    if dtype == "bfloat16" and gradient == "step":
        pytest.skip("judged in float32")
    workload = MultiHashWorkload(replace(TINY, gradient=gradient, dtype=dtype), sets=2)
    for backend in workload.backends(mode):
        if backend == "compiled" or workload.unavailable(backend, mode):
            continue
        variant = workload.variant(backend, mode)
        verdict = workload.check(backend, mode, variant(0))
        assert not verdict.failure, f"{backend}: {verdict.failure}"
        variant(1)


def test_a_wrong_result_fails_its_check() -> None:
    workload = MultiHashWorkload(TINY, sets=2)
    out, *gradients = workload.variant("fused", "training")(0)
    assert not workload.check("fused", "training", (out, *gradients)).failure
    assert workload.check("fused", "training", (out * 1.001, *gradients)).failure


@pytest.mark.skipif(not can_measure_repeatedly(), reason="no high-water mark of memory here")
@pytest.mark.parametrize("gradient", ["dense", "sparse"])
def test_codewords_of_a_batch_are_never_in_memory_together(gradient: str) -> None:
    """``[B, P, m, c]`` would be 95 MiB here."""
    case = multi_hash_case(20, 4, num_codewords=1000, batch=512, d=64, gradient=gradient)
    workload = MultiHashWorkload(case, sets=1)
    call = workload.variant("fused", "training")
    call(0)
    result, peak = peak_of(lambda: call(0))
    assert peak - held_bytes([t for t in result if not t.is_sparse]) < 40 << 20


def test_cases_have_names_of_their_own() -> None:
    names = [job.case.name for job in multi_hash_jobs()]
    assert len(set(names)) == len(names)


def test_ids_repeat_and_vary() -> None:
    workload = MultiHashWorkload(replace(TINY, batch=2048), sets=2)
    for ids in workload.ids:
        assert len(ids[:, 0].unique()) == 10
        assert 500 < len(ids[:, -1].unique()) < 2000
