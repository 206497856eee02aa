"""The reference against the equations, PyTorch's own Transformer parts, and finite differences."""

from __future__ import annotations

import time

import pytest
import torch
from interest_cases import FLOATING, PARAMETERS, Case, fuzz, make
from naive_interest import naive_interest
from torch import nn

from mtlfast.reference import conditional_interest

LENGTHS = [[3, 0, 5, 1], [0, 0, 0, 0], [2, 7, 0, 1]]


def small(**options: object) -> Case:
    return make(LENGTHS, d=12, d_f=10, num_heads=3, dtype=torch.float64, **options)


@pytest.mark.parametrize("num_candidates", [None, 0, 1, 9])
def test_equals_the_padded_loop_over_pairs_with_gradients(num_candidates: int | None) -> None:
    case = small(num_candidates=num_candidates)
    out, naive = case.call(conditional_interest), naive_interest(case)
    torch.testing.assert_close(out, naive, rtol=1e-12, atol=1e-12)
    upstream = torch.randn_like(out)
    expected = case.gradients(naive, upstream, allow_unused=True)
    for name, gradient in case.gradients(out, upstream).items():
        other = expected[name]
        other = torch.zeros_like(gradient) if other is None else other
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_padded_loop_on_fuzzed_shapes(seed: int) -> None:
    case = fuzz(seed, torch.float64)
    if len(case.tensors["target"]) > 100 or case.max_len > 100:
        case = make(case.lengths[:, :40].clamp(max=30), d=24, dtype=torch.float64, seed=seed)
    with torch.no_grad():
        out = case.call(conditional_interest)
        torch.testing.assert_close(out, naive_interest(case), rtol=1e-11, atol=1e-11)


def test_more_padding_changes_nothing_in_the_padded_loop() -> None:
    case = small()
    out = case.call(conditional_interest)
    torch.testing.assert_close(out, naive_interest(case, extra_columns=5), rtol=1e-12, atol=1e-12)


def test_one_pair_with_identity_norms_equals_torch_modules() -> None:
    d, heads, length, batch = 16, 4, 6, 5
    case = make([[length] * batch], d=d, d_f=32, num_tasks=1, num_heads=heads, dtype=torch.float64)
    with torch.no_grad():
        case.tensors["scale"].fill_(1.0)
        case.tensors["shift"].fill_(0.0)
    encoder = nn.TransformerEncoderLayer(
        d, heads, dim_feedforward=32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    decoder = nn.TransformerDecoderLayer(
        d, heads, dim_feedforward=32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    with torch.no_grad():
        for side, layer, attention in (
            ("encoder", encoder, encoder.self_attn),
            ("decoder", decoder, decoder.multihead_attn),
        ):
            weights = getattr(case.weights, side)
            attention.in_proj_weight.copy_(torch.cat(weights[:3]))
            attention.in_proj_bias.zero_()
            attention.out_proj.weight.copy_(weights.out_proj)
            attention.out_proj.bias.zero_()
            layer.linear1.weight.copy_(weights.linear1_weight)
            layer.linear1.bias.copy_(weights.linear1_bias)
            layer.linear2.weight.copy_(weights.linear2_weight)
            layer.linear2.bias.copy_(weights.linear2_bias)
        memory = encoder(case.tensors["values"].view(batch, length, d))
        # The decoder layer without its self-attention, which the paper's decoder does not have.
        query = case.tensors["target"][:, None]
        out = decoder.norm2(query + decoder.multihead_attn(query, memory, memory)[0])
        out = decoder.norm3(out + decoder.linear2(decoder.linear1(out).relu()))
        found = case.call(conditional_interest)
    torch.testing.assert_close(found[:, 0, 0], out[:, 0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("num_candidates", [None, 3])
def test_gradcheck(num_candidates: int | None) -> None:
    case = make([[0, 2], [3, 1]], d=4, d_f=6, num_candidates=num_candidates, dtype=torch.float64)

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        named = dict(zip(FLOATING, tensors, strict=True))
        return case.with_tensors(**named).call(conditional_interest)

    inputs = [case.tensors[name] for name in FLOATING]
    # In full where users are shared; the fast mode checks one random direction.
    assert torch.autograd.gradcheck(run, inputs, fast_mode=num_candidates is None)


def test_double_backward() -> None:
    case = make([[0, 2], [1, 0]], d=4, d_f=4, num_tasks=1, dtype=torch.float64)
    fixed = {name: tensor.detach() for name, tensor in case.tensors.items()}

    def run(values: torch.Tensor, target: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        named = {**fixed, "values": values, "target": target, "scale": scale}
        return case.with_tensors(**named).call(conditional_interest)

    inputs = [case.tensors[name] for name in ("values", "target", "scale")]
    assert torch.autograd.gradgradcheck(run, inputs)


def test_computes_in_its_own_dtype() -> None:
    case = small()
    exact = case.call(conditional_interest)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        out = case.to(dtype).call(conditional_interest)
        assert out.dtype == dtype
        scale = torch.finfo(dtype).eps
        torch.testing.assert_close(out.double(), exact, rtol=40 * scale, atol=40 * scale)


def test_mixed_dtypes_promote_as_torch_does() -> None:
    case = small().to(torch.bfloat16)
    for name in ("values", "encoder.q_proj", "shift"):
        mixed = case.with_tensors(**{name: case.tensors[name].detach().float()})
        assert mixed.call(conditional_interest).dtype == torch.float32, name
    mixed = case.with_tensors(target=case.tensors["target"].detach().half())
    assert mixed.call(conditional_interest).dtype == torch.float32


def test_autocast_output_and_gradients() -> None:
    case = small().to(torch.float32)
    exact = case.call(conditional_interest)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = case.call(conditional_interest)
        double = case.to(torch.float64).call(conditional_interest)
    assert out.dtype == torch.bfloat16
    assert double.dtype == torch.float64  # autocast leaves float64 alone, as everywhere in torch
    torch.testing.assert_close(out.float(), exact, rtol=0.03, atol=0.03)
    gradients = case.gradients(out, torch.ones_like(out))
    assert all(gradients[name].dtype == torch.float32 for name in FLOATING)


def test_encoder_and_decoder_may_differ_in_width() -> None:
    case = small()
    with torch.no_grad():
        wide = case.with_tensors(
            **{
                "decoder.linear1_weight": torch.randn(7, 12, dtype=torch.float64),
                "decoder.linear1_bias": torch.randn(7, dtype=torch.float64),
                "decoder.linear2_weight": torch.randn(12, 7, dtype=torch.float64),
            }
        )
        out = wide.call(conditional_interest)
        torch.testing.assert_close(out, naive_interest(wide), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("lengths", [[[], []], [[0, 0], [0, 0]]], ids=["no users", "no events"])
def test_every_input_gets_a_gradient_from_an_empty_batch(lengths: list[list[int]]) -> None:
    case = make(torch.tensor(lengths, dtype=torch.int64), dtype=torch.float64)
    out = case.call(conditional_interest)
    assert out.shape == (len(lengths[0]), 2, 2, 16)
    for name, gradient in case.gradients(out, torch.ones_like(out)).items():
        assert gradient.shape == case.tensors[name].shape
        if name.startswith("encoder") or name in ("values", "decoder.k_proj", "decoder.v_proj"):
            assert not gradient.any(), name


def test_int32_offsets_and_strided_inputs_give_the_same() -> None:
    case = small()
    expected = case.call(conditional_interest)
    strided = {
        name: tensor.detach().T.contiguous().T if tensor.dim() == 2 else tensor.detach()
        for name, tensor in case.tensors.items()
    }
    other = case.with_tensors(**strided)
    other.offsets = case.offsets.to(torch.int32)
    torch.testing.assert_close(other.call(conditional_interest), expected, rtol=0, atol=1e-12)


def test_a_full_batch_takes_seconds() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.tensor([20.0, 20.0, 0.65, 5.0, 12.0])
    rates = mean[:, None] * torch.rand(5, 2048, generator=generator) * 2
    case = make(torch.poisson(rates, generator=generator).long().clamp(max=100), num_tasks=4)
    start = time.perf_counter()
    with torch.no_grad():
        case.call(conditional_interest)
    assert time.perf_counter() - start < 30


def test_parameters_are_named_as_the_public_contract_says() -> None:
    layer = "q_proj k_proj v_proj out_proj linear1_weight linear1_bias linear2_weight linear2_bias"
    names = [f"{side}.{name}" for side in ("encoder", "decoder") for name in layer.split()]
    assert [*names, "scale", "shift"] == PARAMETERS
