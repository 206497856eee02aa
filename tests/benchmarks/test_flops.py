"""The formulas count what torch counts, and reproduce the published numbers."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.baselines import conditional_interest as baselines
from benchmarks.cases import Case, training_case
from benchmarks.flops import gated_cross_work, interest_flops, interest_work, layer_norm_work
from benchmarks.inputs import EPS, interest_inputs, sample_lengths
from mtlfast.jagged import JaggedSequences

AVERAGES = {
    "ecommerce": ([9.98, 7.34, 0.65, 16.96, 22.80], 14.6, 1.29, 1.52),
    "tenrec": ([11.62, 0.12, 0.87, 0.21, 9.8], 6.1, 1.26, 1.45),
}


@pytest.mark.parametrize("shape", AVERAGES)
def test_published_multiply_adds(shape: str) -> None:
    """DTRN at d = 64, d_f = 256, h = 4, T = 4: millions per sample, and what sharing saves."""
    averages, millions, shared, absorbed = AVERAGES[shape]
    lengths = torch.tensor(averages)[:, None]
    case = Case(shape=shape, d=64, num_heads=4, batch=1, users=1)
    naive = interest_flops(case, lengths, algorithm="naive") / 2
    assert naive / 1e6 == pytest.approx(millions, abs=0.05)
    for algorithm, factor in (("shared", shared), ("absorbed", absorbed)):
        fewer = 2 * naive / interest_flops(case, lengths, algorithm=algorithm)
        assert fewer == pytest.approx(factor, abs=0.006)


def _counted(function, case: Case, lengths: torch.Tensor) -> int:
    inputs = interest_inputs(case)
    values = torch.randn(int(lengths.sum()), case.d)
    sequences = JaggedSequences.from_lengths(values, lengths)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        function(
            sequences,
            inputs.target,
            inputs.weights,
            inputs.scale,
            inputs.shift,
            num_heads=case.num_heads,
            eps=EPS,
            user_index=inputs.user_index,
        )
    return counter.get_total_flops()


@pytest.mark.parametrize("users", [6, 3])
def test_absorbed_is_what_the_ragged_baseline_does(users: int) -> None:
    case = training_case("tenrec", 16, batch=6, users=users)
    lengths = torch.randint(2, 12, (5, users), generator=torch.Generator().manual_seed(0))
    lengths[1] = 0
    lengths[3, 0] = 0
    expected = interest_flops(case, lengths, algorithm="absorbed")
    assert _counted(baselines.ragged, case, lengths) == expected


def test_naive_and_shared_are_what_the_padded_baselines_do() -> None:
    case = training_case("tenrec", 16, batch=3, users=3)
    lengths = torch.full((5, 3), 7)  # nothing to pad
    for name, algorithm in (("naive", "naive"), ("batched", "shared")):
        expected = interest_flops(case, lengths, algorithm=algorithm)
        assert _counted(getattr(baselines, name), case, lengths) == expected


def test_best_projects_keys_for_many_candidates() -> None:
    lengths = torch.full((5, 1), 40)
    few = Case(d=32, num_heads=2, batch=2, users=1)
    many = Case(d=32, num_heads=2, batch=512, users=1)
    assert interest_flops(few, lengths) == interest_flops(few, lengths, algorithm="absorbed")
    assert interest_flops(many, lengths) < interest_flops(many, lengths, algorithm="absorbed")


def test_work_of_a_training_step() -> None:
    case = training_case("ecommerce", 16, batch=64, users=64)
    lengths = sample_lengths(case)
    forward, training = (interest_work(case, mode, lengths) for mode in ("forward", "training"))
    assert training.flops == 3 * forward.flops
    assert training.bytes > 2 * forward.bytes
    assert forward.padding == pytest.approx(
        float(lengths.amax(1).sum() * 64 / lengths.sum()), rel=1e-6
    )


def test_work_of_a_gated_cross_layer() -> None:
    case = Case("gated_cross", num_tasks=3, batch=10, num_fields=2, d=4)
    forward, training = (gated_cross_work(case, mode) for mode in ("forward", "training"))
    assert forward.flops == 3 * 10 * 8 * 16 * 2  # networks, rows, D, 2 D, multiply and add
    assert training.flops == 3 * forward.flops
    assert forward.bytes == 4 * (3 * 3 * 10 * 8 + 3 * 16 * 8)
    assert training.bytes > 2 * forward.bytes


def test_layer_norm_bytes_follow_the_dtype() -> None:
    wide, narrow = (
        layer_norm_work(Case(dtype=dtype), "forward", 10, 640, 320)
        for dtype in ("float32", "bfloat16")
    )
    assert (wide.bytes, narrow.bytes) == (4 * 960, 2 * 960)
