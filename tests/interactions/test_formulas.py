"""Every interaction against its paper's formula, one module, sample and pair at a time."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from mtlfast.interactions import (
    DHEN,
    BilinearInteraction,
    CompressedInteraction,
    CrossNetwork,
    CrossNetworkMix,
    CrossNetworkV2,
    DeepFM,
    DeepInteraction,
    FactorizationMachine,
    FiBiNET,
    FieldAttention,
    GatedCrossNetwork,
    MaskNet,
    MemoNetInteraction,
    ProjectedInteraction,
    SqueezeExcitation,
    XDeepFM,
)
from mtlfast.ops import multi_hash_indices

B, N, D, G = 3, 4, 6, 3
relu, sigmoid = torch.relu, torch.sigmoid


def mlp(stack, g, x):
    for weight, bias in zip(stack.weights, stack.biases, strict=True):
        x = relu(weight[g] @ x + bias[g])
    return x


def layer_norm(x, eps=1e-5):
    centred = x - x.mean()
    return centred / torch.sqrt((centred * centred).mean() + eps)


# One sample's fields v [N, D] -> the output [W] of module g, as the papers write it.


def fm(module, g, v):
    return sum(v[i] * v[j] for i, j in combinations(range(N), 2))


def deep(module, g, v):
    return mlp(module.mlp, g, v.flatten())


def deepfm(module, g, v):
    return torch.cat((fm(module, g, v), mlp(module.mlp, g, v.flatten())))


def cin(module, g, v):
    maps, pooled = v, []
    for k, (weight, bias) in enumerate(zip(module.weights, module.biases, strict=True)):
        last = k == len(module.weights) - 1
        new = []
        for c in range(weight.shape[1]):
            matrix = weight[g, c].view(len(maps), N)
            value = sum(matrix[i, j] * maps[i] * v[j] for i in range(len(maps)) for j in range(N))
            value = value + bias[g, c]
            new.append(relu(value) if module.activation == "relu" else value)
        half = len(new) // 2
        split = module.split_half and not last
        pooled += [m.sum() for m in (new[:half] if split else new)]
        maps = torch.stack(new[half:] if split else new)
    return torch.stack(pooled)


def xdeepfm(module, g, v):
    return torch.cat((cin(module.cin, g, v), mlp(module.mlp, g, v.flatten())))


def reweighted(module, g, v):
    z = torch.stack([(f.mean() if module.squeeze == "mean" else f.max()) for f in v])
    last = relu if module.excitation == "relu" else sigmoid
    weight = last(module.weight2[g] @ relu(module.weight1[g] @ z))
    return torch.stack([weight[f] * v[f] for f in range(N)])


def senet(module, g, v):
    return reweighted(module, g, v).flatten()


def bilinear(module, g, v):
    out = []
    for p, (i, j) in enumerate(combinations(range(N), 2)):
        k = {"all": 0, "each": i, "interaction": p}[module.kind]
        out.append((module.weight[g, k] @ v[i]) * v[j])
    return torch.cat(out)


def fibinet(module, g, v):
    other = module.bilinear if module.senet_bilinear is None else module.senet_bilinear
    weighted = reweighted(module.senet, g, v)
    return mlp(
        module.mlp, g, torch.cat((bilinear(module.bilinear, g, v), bilinear(other, g, weighted)))
    )


def with_deep(module, g, x0, crossed):
    if module.mlp is None:
        return crossed
    if module.structure == "serial":
        return mlp(module.mlp, g, crossed)
    return torch.cat((crossed, mlp(module.mlp, g, x0)))


def dcn(module, g, v):
    x0 = x = v.flatten()
    for weight, bias in zip(module.weight[g], module.bias[g], strict=True):
        x = x0 * (x @ weight) + bias + x
    return with_deep(module, g, x0, x)


def dcn_m(module, g, v):
    x0 = x = v.flatten()
    for weight, bias in zip(module.weights, module.biases, strict=True):
        x = x0 * (weight[g] @ x + bias[g]) + x
    return with_deep(module, g, x0, x)


def dcn_mix(module, g, v):
    x0 = x = v.flatten()
    k, r = module.num_experts, module.rank
    for down, inner, up, bias in zip(
        module.down, module.inner, module.up, module.biases, strict=True
    ):
        gate = torch.softmax(torch.stack([x @ module.gate[g, e] for e in range(k)]), 0)
        total = torch.zeros_like(x)
        for e in range(k):
            rows = slice(e * r, (e + 1) * r)
            hidden = torch.tanh(inner[g, e] @ torch.tanh(down[g, rows] @ x))
            total = total + gate[e] * x0 * (up[g][:, rows] @ hidden + bias[g])
        x = total + x
    return with_deep(module, g, x0, x)


def gdcn(module, g, v):
    x0 = x = v.flatten()
    width = len(x)
    for weight, bias in zip(module.weights, module.biases, strict=True):
        cross, gate = weight[g, :width], weight[g, width:]
        x = x0 * (cross @ x + bias[g]) * sigmoid(gate @ x) + x
    return with_deep(module, g, x0, x)


def attention(module, g, v):
    query, key, value, residual = (v @ w.T for w in module.weight[g].chunk(4))
    h, width = module.num_heads, D // module.num_heads
    heads = []
    for i in range(h):
        part = slice(i * width, (i + 1) * width)
        score = query[:, part] @ key[:, part].T / width**0.5
        heads.append(torch.softmax(score, -1) @ value[:, part])
    return relu(torch.cat(heads, -1) + residual).flatten()


def mask_block(blocks, g, k, embeddings, hidden):
    def part(parameter):
        return parameter[g].chunk(blocks.num_blocks)[k]

    aggregated = relu(part(blocks.aggregate_weight) @ embeddings + part(blocks.aggregate_bias))
    mask = part(blocks.mask_weight) @ aggregated + part(blocks.mask_bias)
    out = part(blocks.weight) @ (mask * hidden)
    if blocks.bias is not None:
        out = out + part(blocks.bias)
    return relu(layer_norm(out) * part(blocks.norm_weight) + part(blocks.norm_bias))


def masknet(module, g, v):
    embeddings = hidden = v.flatten()
    if module.field_norm:
        hidden = torch.cat(
            [
                layer_norm(v[f]) * module.field_norm_weight[g, f] + module.field_norm_bias[g, f]
                for f in range(N)
            ]
        )
    if module.structure == "serial":
        for blocks in module.blocks:
            hidden = mask_block(blocks, g, 0, embeddings, hidden)
    else:
        blocks = module.blocks[0]
        hidden = torch.cat(
            [mask_block(blocks, g, k, embeddings, hidden) for k in range(blocks.num_blocks)]
        )
    return mlp(module.mlp, g, hidden)


NAIVE = {
    FactorizationMachine: fm,
    DeepInteraction: deep,
    CrossNetworkV2: dcn_m,
}


def dhen(module, g, v):
    global N
    x, fields = v, N
    try:
        for layer in module.layers:
            N = len(x)
            outs = [NAIVE[type(part)](part, g, x) for part in layer.parts]
            if layer.ensemble == "concat":
                mixed = layer.weights[0][g] @ torch.cat(outs)
            else:
                mixed = sum(w[g] @ o for w, o in zip(layer.weights, outs, strict=True))
            mixed = (mixed + layer.bias[g]).view(layer.num_outputs, D)
            short = x if layer.shortcut is None else layer.shortcut[g] @ x
            x = torch.stack(
                [
                    layer_norm(row) * layer.norm_weight[g] + layer.norm_bias[g]
                    for row in mixed + short
                ]
            )
    finally:
        N = fields
    return x.flatten()


def projected(module, g, v):
    out = module.weight[g] @ gdcn(module.interaction, g, v) + module.bias[g]
    return relu(out) if module.activation == "relu" else out


def three_modules(n, d, g):
    return {
        "modules": [
            lambda n, d, g: CrossNetworkV2(n, d, num_layers=1, num_modules=g),
            lambda n, d, g: DeepInteraction(n, d, units=(5,), num_modules=g),
            lambda n, d, g: FactorizationMachine(n, d, num_modules=g),
        ],
        "num_modules": g,
    }


CASES = {
    "fm": (FactorizationMachine, {}, fm),
    "mlp": (DeepInteraction, {"units": (5, 3)}, deep),
    "deepfm": (DeepFM, {"units": (5, 3)}, deepfm),
    "cin": (CompressedInteraction, {"units": (5, 4, 3)}, cin),
    "cin_relu": (CompressedInteraction, {"units": (5, 3), "activation": "relu"}, cin),
    "cin_split": (CompressedInteraction, {"units": (6, 4, 3), "split_half": True}, cin),
    "xdeepfm": (XDeepFM, {"cin_units": (3, 2), "units": (4,)}, xdeepfm),
    "senet": (SqueezeExcitation, {}, senet),
    "senet_max_sigmoid": (
        SqueezeExcitation,
        {"reduction": 2, "squeeze": "max", "excitation": "sigmoid"},
        senet,
    ),
    "bilinear_all": (BilinearInteraction, {"kind": "all"}, bilinear),
    "bilinear_each": (BilinearInteraction, {"kind": "each"}, bilinear),
    "bilinear_interaction": (BilinearInteraction, {"kind": "interaction"}, bilinear),
    "fibinet": (FiBiNET, {}, fibinet),
    "fibinet_each": (FiBiNET, {"kind": "each", "excitation": "sigmoid"}, fibinet),
    "fibinet_shared_mlp": (FiBiNET, {"kind": "all", "share": True, "units": (5, 4)}, fibinet),
    "dcn": (CrossNetwork, {"num_layers": 4}, dcn),
    "dcn_parallel": (CrossNetwork, {"num_layers": 1, "units": (5, 4)}, dcn),
    "dcn_m": (CrossNetworkV2, {"num_layers": 3}, dcn_m),
    "dcn_m_serial": (CrossNetworkV2, {"structure": "serial", "units": (5, 4)}, dcn_m),
    "dcn_mix": (CrossNetworkMix, {"num_experts": 3, "rank": 2}, dcn_mix),
    "dcn_mix_parallel": (CrossNetworkMix, {"num_experts": 2, "rank": 3, "units": (5,)}, dcn_mix),
    "gdcn": (GatedCrossNetwork, {"num_layers": 3}, gdcn),
    "gdcn_s": (GatedCrossNetwork, {"structure": "serial", "units": (5, 4)}, gdcn),
    "gdcn_p": (GatedCrossNetwork, {"structure": "parallel", "units": (5, 4)}, gdcn),
    "attention": (FieldAttention, {"num_heads": 2}, attention),
    "masknet_dtn": (MaskNet, {"block_units": (7,), "agg_dim": 5, "units": (4,)}, masknet),
    "masknet_serial": (
        MaskNet,
        {"structure": "serial", "block_units": (7, 5, 4), "agg_dim": None, "reduction_ratio": 0.5},
        masknet,
    ),
    "masknet_parallel": (
        MaskNet,
        {"structure": "parallel", "block_units": (5, 5, 5), "agg_dim": 8, "units": (4, 3)},
        masknet,
    ),
    "masknet_released": (
        MaskNet,
        {"block_units": (5, 5), "agg_dim": 6, "field_norm": False, "block_bias": True},
        masknet,
    ),
    "dhen": (DHEN, three_modules, dhen),
    "dhen_sum_narrower": (
        DHEN,
        lambda n, d, g: {**three_modules(n, d, g), "ensemble": "sum", "num_outputs": 2},
        dhen,
    ),
    "projected": (
        lambda n, d, num_modules: ProjectedInteraction(
            GatedCrossNetwork(n, d, num_modules=num_modules), 5
        ),
        {},
        projected,
    ),
    "projected_relu": (
        lambda n, d, num_modules: ProjectedInteraction(
            GatedCrossNetwork(n, d, num_modules=num_modules), 5, activation="relu"
        ),
        {},
        projected,
    ),
}


def make(name, num_modules=G):
    torch.manual_seed(0)
    make_module, options, _ = CASES[name]
    options = options(N, D, num_modules) if callable(options) else options
    module = make_module(N, D, **{"num_modules": num_modules, **options}).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


def make_fields(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, N, D, generator=generator, dtype=torch.float64)


every_case = pytest.mark.parametrize("name", CASES)


@every_case
def test_output_and_gradients_are_those_of_the_formula(name):
    module, fields = make(name), make_fields().requires_grad_()
    formula = CASES[name][2]
    expected = torch.stack([torch.stack([formula(module, g, v) for v in fields]) for g in range(G)])
    found = module(fields)
    assert found.shape == (G, B, module.output_dim)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(expected)
    leaves = [fields, *module.parameters()]
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    truth = torch.autograd.grad((expected * weight).sum(), leaves)
    for grad, true in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, true, rtol=1e-8, atol=1e-9)


@every_case
def test_a_single_module_is_the_same_without_the_dimension(name):
    stacked, single = make(name, 1), make(name, None)
    single.load_state_dict(stacked.state_dict())
    fields = make_fields()
    assert single(fields).shape == (B, single.output_dim)
    assert torch.equal(single(fields), stacked(fields)[0])


@every_case
def test_selecting_modules(name):
    module, fields = make(name), make_fields()
    whole = module(fields)
    module.select([2, 0])
    assert module.num_modules == module.num_groups == 2
    torch.testing.assert_close(module(fields), whole[[2, 0]], rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="modules: expected some of 2 stacked modules"):
        module.select([2])


def test_gdcn_with_an_even_gate_is_dcn_m_at_half_strength():
    gated, cross = make("gdcn"), make("dcn_m")
    with torch.no_grad():
        for weight, full in zip(gated.weights, cross.weights, strict=True):
            weight[:, N * D :] = 0
            full.copy_(weight[:, : N * D] / 2)
        for bias, full in zip(gated.biases, cross.biases, strict=True):
            full.copy_(bias / 2)
    torch.testing.assert_close(gated(make_fields()), cross(make_fields()))


def test_bilinear_with_the_identity_sums_to_the_fm_vector():
    module, fields = make("bilinear_all", None), make_fields()
    with torch.no_grad():
        module.weight.copy_(torch.eye(D))
    total = module(fields).view(B, -1, D).sum(dim=1)
    torch.testing.assert_close(total, FactorizationMachine(N, D)(fields))


MEMONET = {
    "shrunk": {},
    "softmax": {"shrinking": "softmax", "temperature": 0.5},
    "pairs": {"shrinking": "none", "num_hashes": 1},
    "summed_wide": {"shrinking": "sum", "codeword_dim": 3, "selected": [3, 0, 1]},
    "two_blocks": {"num_blocks": 2, "restoring": "attentive", "sharing": "private"},
}


@pytest.mark.parametrize("name", MEMONET)
def test_memonet(name):
    options = {"num_codewords": 20, "num_hashes": 2, "num_modules": G, **MEMONET[name]}
    torch.manual_seed(0)
    module = MemoNetInteraction(N, D, **options).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    fields = make_fields().requires_grad_()
    ids = torch.randint(0, 50, (B, N), generator=torch.Generator().manual_seed(2))
    expected = torch.stack(
        [
            torch.stack([memonet(module, g, v, i) for v, i in zip(fields, ids, strict=True)])
            for g in range(G)
        ]
    )
    found = module(fields, ids)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    leaves = [fields, *module.parameters()]
    weight = torch.randn_like(expected)
    grads = torch.autograd.grad((found * weight).sum(), leaves)
    truth = torch.autograd.grad((expected * weight).sum(), leaves)
    for grad, true in zip(grads, truth, strict=True):
        torch.testing.assert_close(grad, true, rtol=1e-8, atol=1e-9)
    module.select([2, 0])
    torch.testing.assert_close(module(fields, ids), found[[2, 0]], rtol=1e-12, atol=1e-12)


def memonet(module, g, v, ids):
    chosen = module.selected.tolist()
    parts = [v.flatten()]
    for block in range(module.num_blocks):
        book = module.codebooks[g * module.num_blocks + block]
        parts.append(hcnet(book, block, v[chosen], ids[chosen]).flatten())
    return torch.cat(parts)


def hcnet(book, block, v, ids):
    n, m = len(v), book.num_hashes
    pairs = list(combinations(range(n), 2))
    total = multi_hash_indices(  # the first hash functions are those of the blocks before
        ids[None], book.num_codewords, num_hashes=(block + 1) * m, order=2
    )[0]
    index = total[:, block * m :]
    crosses = []
    for p, (i, j) in enumerate(pairs):
        words = [book.codebook[0, s if book.sharing == "private" else 0] for s in range(m)]
        word = torch.cat([words[s][index[p, s]] for s in range(m)])
        if book.restoring == "attentive":
            attend = book.attend[0]
            both = torch.cat((v[i], v[j]))
            word = word * (attend.linear2.weight @ relu(attend.linear1.weight @ both))
        crosses.append(book.restore.weight @ word)
    if book.shrinking == "none":
        return torch.stack(crosses)
    weights = torch.ones(len(pairs), dtype=v.dtype)
    if book.shrinking != "sum":
        shrink = book.shrink[0]
        weights = shrink.linear2.weight @ relu(shrink.linear1.weight @ v.flatten())
    out = []
    for f in range(n):
        mine = [p for p, pair in enumerate(pairs) if f in pair]
        share = weights[mine]
        if book.shrinking == "softmax":
            share = torch.softmax(share / book.temperature, 0)
        out.append(sum(a * crosses[p] for a, p in zip(share, mine, strict=True)))
    return torch.stack(out)
