"""The same numbers as FuxiCTR and torch-rechub with the same weights, where those follow the paper.

Where a library deviates, the test undoes the deviation and says so.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from mtlfast.interactions import (
    BilinearInteraction,
    CompressedInteraction,
    CrossNetwork,
    CrossNetworkMix,
    CrossNetworkV2,
    FiBiNET,
    FieldAttention,
    SqueezeExcitation,
    fm_vector,
)

B, N, D = 5, 4, 6
LAYERS = 3


def fuxictr(file: str):
    """One file of FuxiCTR by its path: importing the package would want ray and polars."""
    spec = importlib.util.find_spec("fuxictr")
    if spec is None or spec.origin is None:
        pytest.skip("fuxictr is not installed: pip install --no-deps fuxictr")
    path = Path(spec.origin).parent / "pytorch" / "layers" / file
    file_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(file_spec)
    file_spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rechub():
    return pytest.importorskip(
        "torch_rechub.basic.layers",
        reason="torch-rechub is not installed: pip install torch-rechub",
    )


@pytest.fixture
def fields():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(B, N, D, generator=generator, dtype=torch.float64)


def randomize(module):
    torch.manual_seed(1)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.copy_(0.5 * torch.randn_like(parameter))
    return module


def copy_(ours, theirs):
    with torch.no_grad():
        ours.copy_(theirs.reshape(ours.shape))


def check(ours, theirs, fields):
    """Outputs and the gradients of the fields."""
    results = []
    for function in (ours, theirs):
        x = fields.clone().requires_grad_()
        out = function(x)
        (grad,) = torch.autograd.grad((out * torch.arange(1.0, 1 + out[0].numel())).sum(), x)
        results.append((out, grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_fm(rechub, fields):
    check(fm_vector, rechub.FM(reduce_sum=False), fields)
    theirs = fuxictr("interactions/inner_product.py").InnerProductInteraction(N, "bi_interaction")
    check(fm_vector, theirs, fields)


def copy_cin(ours, convolutions, transposed):
    for weight, bias, conv in zip(ours.weights, ours.biases, convolutions, strict=True):
        kernel = conv.weight[:, :, 0]
        if transposed:  # their channels run over (X^0, X^(k-1)), ours over (X^(k-1), X^0)
            kernel = kernel.unflatten(1, (N, -1)).transpose(1, 2)
        copy_(weight, kernel)
        copy_(bias, conv.bias)


def test_cin_fuxictr(fields):
    theirs = randomize(
        fuxictr("interactions/compressed_interaction_net.py").CompressedInteractionNet(N, [5, 3])
    )
    ours = CompressedInteraction(N, D, units=(5, 3)).double()
    copy_cin(ours, theirs.cin_layer.values(), transposed=True)
    check(lambda x: theirs.fc(ours(x)), theirs, fields)


def test_cin_rechub(rechub, fields):
    theirs = randomize(rechub.CIN(N, [6, 4, 3], split_half=True))
    ours = CompressedInteraction(N, D, units=(6, 4, 3), split_half=True, activation="relu")
    copy_cin(ours.double(), theirs.conv_layers, transposed=True)
    check(lambda x: theirs.fc(ours(x)), theirs, fields)


@pytest.mark.parametrize("excitation", ["relu", "sigmoid"])
def test_senet(rechub, fields, excitation):
    others = [
        fuxictr("attentions/squeeze_excitation.py").SqueezeExcitation(
            N, excitation_activation=excitation
        )
    ]
    if excitation == "relu":
        others.append(rechub.SENETLayer(N))
    for theirs in others:
        randomize(theirs)
        ours = SqueezeExcitation(N, D, excitation=excitation).double()
        linears = [m for m in theirs.modules() if isinstance(m, nn.Linear)]
        copy_(ours.weight1, linears[0].weight)
        copy_(ours.weight2, linears[1].weight)
        check(ours, lambda x, theirs=theirs: theirs(x).flatten(1), fields)


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
@pytest.mark.parametrize("version", ["BilinearInteraction", "BilinearInteractionV2"])
def test_bilinear_fuxictr(fields, kind, version):
    make = getattr(fuxictr("interactions/bilinear_interaction.py"), version)
    theirs = make(N, D, f"field_{kind}")
    with torch.no_grad():
        theirs.bilinear_W.normal_()
    theirs = theirs.double()
    ours = BilinearInteraction(N, D, kind=kind).double()
    weight = theirs.bilinear_W.transpose(-1, -2)  # theirs is [in, out]
    if kind == "each":  # theirs has a matrix for the last field, too, which nothing reads
        weight = weight[:-1]
    copy_(ours.weight, weight)
    check(ours, lambda x: theirs(x).flatten(1), fields)


@pytest.mark.parametrize("kind", ["all", "each", "interaction"])
def test_fibinet_rechub(rechub, fields, kind):
    senet = randomize(rechub.SENETLayer(N))
    layers = [randomize(rechub.BiLinearInteractionLayer(D, N, f"field_{kind}")) for _ in range(2)]
    ours = FiBiNET(N, D, kind=kind).double()
    copy_(ours.senet.weight1, senet.mlp[0].weight)
    copy_(ours.senet.weight2, senet.mlp[2].weight)
    for own, layer in zip((ours.bilinear, ours.senet_bilinear), layers, strict=True):
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        copy_(own.weight, torch.stack([linear.weight for linear in linears])[: own.weight.shape[1]])
    check(
        ours,
        lambda x: torch.cat((layers[0](x).flatten(1), layers[1](senet(x)).flatten(1)), 1),
        fields,
    )


def test_dcn(rechub, fields):
    library = fuxictr("interactions/cross_net.py").CrossNet(N * D, LAYERS)
    library = randomize(library)
    ours = CrossNetwork(N, D, num_layers=LAYERS).double()
    copy_(ours.weight, torch.stack([layer.weight.weight for layer in library.cross_net]))
    copy_(ours.bias, torch.stack([layer.bias for layer in library.cross_net]))
    check(ours, lambda x: library(x.flatten(1)), fields)

    other = randomize(rechub.CrossNetwork(N * D, LAYERS))
    copy_(ours.weight, torch.stack([linear.weight for linear in other.w]))
    copy_(ours.bias, torch.stack(list(other.b)))
    check(ours, lambda x: other(x.flatten(1)), fields)


def test_dcn_m_fuxictr(fields):
    library = randomize(fuxictr("interactions/cross_net.py").CrossNetV2(N * D, LAYERS))
    ours = CrossNetworkV2(N, D, num_layers=LAYERS).double()
    for weight, bias, linear in zip(ours.weights, ours.biases, library.cross_layers, strict=True):
        copy_(weight, linear.weight)
        copy_(bias, linear.bias)
    check(ours, lambda x: library(x.flatten(1)), fields)


def test_dcn_m_rechub_adds_the_bias_outside_the_product(rechub, fields):
    library = randomize(rechub.CrossNetV2(N * D, LAYERS))
    ours = CrossNetworkV2(N, D, num_layers=LAYERS).double()
    for weight, bias, linear, own in zip(
        ours.weights, ours.biases, library.w, library.b, strict=True
    ):
        copy_(weight, linear.weight)
        copy_(bias, own)
    x = fields.flatten(1)
    assert not torch.allclose(ours(fields), library(x))
    with torch.no_grad():  # without biases the two are the same
        for bias in (*ours.biases, *library.b):
            bias.zero_()
    check(ours, lambda x: library(x.flatten(1)), fields)


@pytest.mark.parametrize("source", ["fuxictr", "rechub"])
def test_dcn_mix(rechub, fields, source):
    sizes = {"low_rank": 3, "num_experts": 2}
    if source == "fuxictr":
        make = fuxictr("interactions/cross_net.py").CrossNetMix
        library = randomize(make(N * D, layer_num=LAYERS, **sizes))
        down, inner, up = library.V_list, library.C_list, library.U_list
    else:
        library = randomize(rechub.CrossNetMix(N * D, num_layers=LAYERS, **sizes))
        down, inner, up = library.v_list, library.c_list, library.u_list
    ours = CrossNetworkMix(N, D, num_layers=LAYERS, num_experts=2, rank=3).double()
    copy_(ours.gate, torch.stack([gate.weight for gate in library.gating]))
    for layer in range(LAYERS):
        copy_(ours.down[layer], down[layer].transpose(1, 2))  # [K, D, r] -> [K*r, D]
        copy_(ours.inner[layer], inner[layer])
        copy_(ours.up[layer], up[layer].transpose(0, 1))  # [K, D, r] -> [D, K*r]
        copy_(ours.biases[layer], library.bias[layer])
    check(ours, lambda x: library(x.flatten(1)), fields)


@pytest.mark.parametrize("num_heads", [1, 2])
def test_attention_rechub(rechub, fields, num_heads):
    library = randomize(rechub.InteractingLayer(D, num_heads=num_heads)).eval()
    ours = FieldAttention(N, D, num_heads=num_heads).double()
    names = ("W_Q", "W_K", "W_V", "W_Res")
    weight = torch.cat([getattr(library, name).weight for name in names])
    copy_(ours.weight, weight)
    check(ours, lambda x: library(x).flatten(1), fields)
