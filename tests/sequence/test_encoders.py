"""The sequence encoders against their papers' formulas, one candidate and one token at a time."""

from __future__ import annotations

import math

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.sequence import (
    BST,
    DFN,
    DIEN,
    DIN,
    DMT,
    ENCODER_CONFIGS,
    ATRank,
    Dice,
    EncoderConfig,
    MeanPooling,
    SequenceEncoder,
)

M, D, LONGEST = 3, 8, 6
LENGTHS = torch.tensor([[3, 0, 6, 1, 2], [0, 0, 4, 1, 6], [2, 0, 0, 5, 1]])  # user 1 has nothing
U = LENGTHS.shape[1]

ENCODERS = {
    "youtubenet": lambda: MeanPooling(D),
    "din": lambda: DIN(D, units=(6, 5)),
    "din_softmax": lambda: DIN(D, behavior=1, activation="prelu", softmax=True),
    "dien": lambda: DIEN(D),
    "dien_agru": lambda: DIEN(D, gru="agru", behavior=2),
    "dien_aigru": lambda: DIEN(D, gru="aigru"),
    "dien_gru": lambda: DIEN(D, gru="gru"),
    "bst": lambda: BST(D, LONGEST),
    "bst_mean": lambda: BST(D, LONGEST, readout="mean", behavior=1),
    "bst_concat": lambda: BST(D, LONGEST + 1, readout="concat"),
    "bst_concat_positions": lambda: BST(D, LONGEST, readout="mean", combine_positions="concat"),
    "dmt": lambda: DMT(D, (LONGEST,) * M, num_heads=2),
    "dmt_deep": lambda: DMT(
        D,
        (LONGEST,) * M,
        num_heads=4,
        ffn_dim=5,
        num_encoder_layers=2,
        num_decoder_layers=3,
        pos_encoding="sinusoidal",
        scale=False,
        eps=1e-3,
    ),
    "dmt_without_positions": lambda: DMT(D, (LONGEST,) * M, pos_encoding="none"),
    "atrank": lambda: ATRank(D, M, width=12, num_heads=3),
    "dfn": lambda: DFN(D, M, weak=(1,)),
    "dfn_sum": lambda: DFN(D, M, weak=(1,), pooling="sum"),
    "dfn_without_weak": lambda: DFN(D, M),
}
every_encoder = pytest.mark.parametrize("name", ENCODERS)


def make(name: str) -> SequenceEncoder:
    torch.manual_seed(0)
    encoder = ENCODERS[name]().double()
    with torch.no_grad():
        for parameter in encoder.parameters():  # biases, positions and Dice's alpha, too
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def make_inputs() -> tuple[JaggedSequences, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    values = torch.randn(int(LENGTHS.sum()), D, generator=rng, dtype=torch.float64)
    target = torch.randn(U, D, generator=rng, dtype=torch.float64)
    return JaggedSequences.from_lengths(values.requires_grad_(), LENGTHS), target.requires_grad_()


def tokens_of(sequences: JaggedSequences, behavior: int, user: int) -> torch.Tensor:
    start, stop = sequences.offsets[behavior * U + user : behavior * U + user + 2].tolist()
    return sequences.values[start:stop]


def one_of(sequences: JaggedSequences, user: int) -> JaggedSequences:
    parts = [tokens_of(sequences, b, user) for b in range(M)]
    return JaggedSequences.from_lengths(torch.cat(parts), LENGTHS[:, user : user + 1])


@every_encoder
def test_candidates_are_independent_and_may_share_users(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)
    assert found.shape == (U, encoder.output_dim)
    alone = [encoder(one_of(sequences, u), target[u : u + 1]) for u in range(U)]
    torch.testing.assert_close(found, torch.cat(alone))
    users = torch.tensor([2, 0, 2, 1, 4, 3, 2])
    items = torch.randn(7, D, dtype=torch.float64)
    shared = encoder(sequences, items, user_index=users)
    apart = [encoder(one_of(sequences, int(u)), items[i : i + 1]) for i, u in enumerate(users)]
    torch.testing.assert_close(shared, torch.cat(apart))
    assert encoder(sequences, items[:0], user_index=users[:0]).shape == (0, encoder.output_dim)


@every_encoder
def test_gradients_reach_what_is_read(name):
    encoder, (sequences, target) = make(name), make_inputs()
    upstream = torch.randn(U, encoder.output_dim, dtype=torch.float64)  # a norm's sum is constant
    (encoder(sequences, target) * upstream).sum().backward()
    behavior = sequences.segment_ids() // U
    read = torch.ones(len(behavior), dtype=torch.bool)
    if hasattr(encoder, "behavior"):
        read = behavior == encoder.behavior
    assert torch.equal(sequences.values.grad.abs().sum(dim=1) > 0, read)
    unused = {"youtubenet": [], "dien_agru": [], "dien_gru": ["attention.weight"]}.get(name, [])
    for parameter_name, parameter in encoder.named_parameters():
        # A softmax does not see what it adds to all scores.
        if (
            parameter_name in unused
            or (name == "din_softmax" and parameter_name.endswith("2.bias"))
            or (name.startswith("dfn") and parameter_name.endswith("scores.2.bias"))
            or (name.startswith("dmt") and parameter_name.endswith("key.bias"))
        ):
            continue
        assert parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize(
    "name", [n for n in ENCODERS if n.startswith(("you", "din", "die", "atr"))]
)
def test_nothing_is_the_zero_vector(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)
    assert not found[1].any()
    assert found[[2, 3]].any()
    nothing = JaggedSequences.from_lengths(sequences.values[:0], torch.zeros_like(LENGTHS))
    assert not encoder(nothing, target).any()


def test_youtubenet_is_the_mean():
    encoder, (sequences, target) = make("youtubenet"), make_inputs()
    found = encoder(sequences, target)
    for u in (0, 2, 3, 4):
        torch.testing.assert_close(found[u], tokens_of(sequences, 0, u).mean(dim=0))


@pytest.mark.parametrize("name", ["din", "din_softmax"])
def test_din(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)
    for u in range(U):
        x, e = tokens_of(sequences, encoder.behavior, u), target[u]
        scores = [encoder.attention(torch.cat((e, t, e - t, e * t))[None])[0, 0] for t in x]
        if not scores:
            continue
        weights = torch.stack(scores)
        weights = weights.softmax(dim=0) if encoder.softmax else weights
        torch.testing.assert_close(found[u], (weights[:, None] * x).sum(dim=0))


def test_dice():
    dice = Dice(3).double()
    with torch.no_grad():
        dice.alpha.copy_(torch.tensor([0.5, -1.0, 2.0]))
    s = torch.randn(50, 3, dtype=torch.float64) * 3 + 1
    normal = (s - s.mean(dim=0)) / (s.var(dim=0, unbiased=False) + 1e-9).sqrt()
    p = torch.sigmoid(normal)
    torch.testing.assert_close(dice(s), p * s + dice.alpha * (1 - p) * s)
    assert dice(s[:1]).isfinite().all()  # one token has no variance
    assert dice(s[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["dien", "dien_agru", "dien_aigru", "dien_gru"])
def test_dien(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)
    cell, gru = encoder.evolution, encoder.extraction
    w_r, w_z, w_n = cell.input.weight.chunk(3)
    b_r, b_z, b_n = cell.input.bias.chunk(3)
    u_r, u_z, u_n = cell.state.weight.chunk(3)
    for u in (0, 2, 4):
        x = tokens_of(sequences, encoder.behavior, u)
        if not len(x):
            continue
        states, _ = gru(x[None])
        states = states[0]
        a = (states @ encoder.attention.weight @ target[u]).softmax(dim=0)
        h = torch.zeros(D, dtype=torch.float64)
        for j, s in enumerate(states):
            i = a[j] * s if cell.kind == "aigru" else s
            r = torch.sigmoid(w_r @ i + b_r + u_r @ h)
            z = torch.sigmoid(w_z @ i + b_z + u_z @ h)
            gate = {"augru": a[j] * z, "agru": a[j], "aigru": z, "gru": z}[cell.kind]
            h = (1 - gate) * h + gate * torch.tanh(w_n @ i + b_n + r * (u_n @ h))
        torch.testing.assert_close(found[u], h)


def attention(query, key, value, heads):
    """``[Q, w]``, head by head."""
    width = query.shape[1] // heads
    parts = []
    for i in range(heads):
        s = slice(i * width, (i + 1) * width)
        weights = (query[:, s] @ key[:, s].T / math.sqrt(width)).softmax(dim=1)
        parts.append(weights @ value[:, s])
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("bst")])
def test_bst(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)
    for u in range(U):
        x = torch.cat((tokens_of(sequences, encoder.behavior, u), target[u : u + 1]))
        places = encoder.positions[: len(x)]
        x = torch.cat((x, places), dim=1) if name.endswith("positions") else x + places
        query, key, value = encoder.in_proj(x).chunk(3, dim=1)
        x = encoder.norm1(x + attention(query, key, value, 2) @ encoder.out_proj.weight.T)
        hidden = torch.nn.functional.leaky_relu(encoder.linear1(x))
        x = encoder.norm2(x + encoder.linear2(hidden))
        if name == "bst_concat":  # the candidate first, zeros behind the tokens
            rows = torch.zeros(LONGEST + 2, D, dtype=torch.float64)
            rows[: len(x)] = torch.cat((x[-1:], x[:-1]))
            expected = rows.flatten()
        else:
            expected = x[-1] if name == "bst" else x.mean(dim=0)
        torch.testing.assert_close(found[u], expected)


def test_bst_names_sequences_that_are_too_long():
    sequences, target = make_inputs()
    with pytest.raises(ValueError, match="sequences: expected at most 3 tokens, found 6"):
        BST(D, 3).double()(sequences, target)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("dmt")])
def test_dmt(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)

    def norm(x, module):
        if not len(x):
            return x
        mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, keepdim=True, correction=0)
        return (x - mean) / torch.sqrt(var + (1e-3 if "deep" in name else 1e-8)) * module.weight + (
            module.bias
        )

    def layer(module, x, memory):
        attended = torch.zeros_like(x)
        if len(memory):
            key, value = module.key(memory), module.value(memory)
            attended = attention(module.query(x), key, value, module.num_heads)
        x = norm(x + attended, module.norm1)
        return norm(x + module.linear2(module.linear1(x).relu()), module.norm2)

    scale = 1.0 if name == "dmt_deep" else math.sqrt(D)
    for u in range(U):
        parts = []
        for b in range(M):
            x, e = scale * tokens_of(sequences, b, u), scale * target[u : u + 1]
            if name == "dmt":
                x = x + encoder.positions.weight[b, : len(x)]
            if name == "dmt_deep":
                x = x + torch.tensor(
                    [
                        [
                            (math.cos if i % 2 else math.sin)(j / 10000 ** ((i - i % 2) / D))
                            for i in range(D)
                        ]
                        for j in range(len(x))
                    ]
                ).view(len(x), D)
            for module in encoder.encoders[b]:
                x = layer(module, x, x)
            for module in encoder.decoders[b]:
                e = layer(module, e, x)
            parts.append(e[0])
        # The table of sinusoids is of float32.
        rounding = {"rtol": 1e-6, "atol": 1e-6} if name == "dmt_deep" else {}
        torch.testing.assert_close(found[u], torch.cat(parts), **rounding)


def test_dmt_drops_in_training_only():
    encoder, (sequences, target) = make("dmt"), make_inputs()
    expected = encoder(sequences, target)
    encoder.train()
    first, second = encoder(sequences, target), encoder(sequences, target)
    assert not torch.allclose(first, second)
    encoder.dropout.p = 0.0
    for stack in (*encoder.encoders, *encoder.decoders):
        for module in stack:
            module.dropout = 0.0
    torch.testing.assert_close(encoder(sequences, target), expected)


def test_atrank_drops_in_training_only():
    encoder = ATRank(D, M, width=12, num_heads=3, dropout=0.5).double()
    plain = ATRank(D, M, width=12, num_heads=3).double()
    plain.load_state_dict(encoder.state_dict())
    inputs = make_inputs()
    torch.testing.assert_close(encoder.eval()(*inputs), plain(*inputs))
    encoder.train()
    assert not torch.allclose(encoder(*inputs), encoder(*inputs))


def test_atrank():
    encoder, (sequences, target) = make("atrank"), make_inputs()
    found = encoder(sequences, target)

    def block(layers, x, memory):
        projected = layers.query(x).relu(), layers.key(memory).relu(), layers.value(memory).relu()
        x = layers.norm1(x + attention(*projected, 3))
        return layers.norm2(x + layers.linear2(layers.linear1(x).relu()))

    for u in (0, 2, 3, 4):
        rows = []
        for b in range(M):
            x = tokens_of(sequences, b, u)
            for j, token in enumerate(x):
                bucket = int(math.log2(len(x) - j))
                rows.append(encoder.projections[b](token) + encoder.buckets[b, bucket])
        union = torch.stack(rows)
        union = block(encoder.encoder, union, union)
        expected = block(encoder.decoder, encoder.item(target[u : u + 1]), union)[0]
        torch.testing.assert_close(found[u], expected)


@pytest.mark.parametrize("name", ["dfn", "dfn_sum"])
def test_dfn(name):
    encoder, (sequences, target) = make(name), make_inputs()
    found = encoder(sequences, target)
    assert encoder.pairs == [(0, 1), (2, 1)]
    for u in range(U):
        own = []
        for b, layers in enumerate(encoder.inner):
            x = torch.cat((target[u : u + 1], tokens_of(sequences, b, u)))
            x = attention(*layers.in_proj(x).chunk(3, dim=1), 2)
            x = layers.linear2(layers.linear1(x).relu())
            own.append(x.sum(dim=0) if name == "dfn_sum" else x.mean(dim=0))
        parts = list(own)
        for (p, weak), layers in zip(encoder.pairs, encoder.outer, strict=True):
            x, f = tokens_of(sequences, weak, u), own[p]
            if not len(x):
                parts.append(torch.zeros(D, dtype=torch.float64))
                continue
            pairs = [torch.cat((f, t, f * t, f - t)) for t in x]
            scores = layers.scores(torch.stack(pairs))[:, 0] / math.sqrt(D)
            parts.append(scores.softmax(dim=0) @ x)
        torch.testing.assert_close(found[u], torch.cat(parts))


@pytest.mark.parametrize("name", ENCODER_CONFIGS)
def test_every_encoder_builds_from_its_name(name):
    behaviors = ("watch", "non_watch", "negative")
    encoder = EncoderConfig.from_value(name, "encoder").build(D, (6, 6, 6), behaviors)
    sequences, target = make_inputs()
    assert encoder.double().eval()(sequences, target).shape == (U, encoder.output_dim)
    if name == "dfn":
        assert encoder.pairs == [(0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("dim", r"model\.encoder\.name: expected one of .*'din'.* found 'dim'"),
        ({"name": "din", "units": []}, r"model\.encoder\.units: expected"),
        ({"name": "din", "unit": [3]}, r"model\.encoder\.unit: unknown key, did you mean 'units'"),
        ({"name": "bst", "readout": "last"}, r"model\.encoder\.readout: expected one of"),
        ({"name": "dmt", "num_encoder_layers": 0}, r"num_encoder_layers: expected a positive int"),
        ({"name": "dmt", "dropout": 1.0}, r"model\.encoder\.dropout: expected a probability"),
        ({"name": "atrank", "dropout": 1.0}, r"model\.encoder\.dropout: expected a probability"),
        ({"name": "dfn", "pooling": "max"}, r"model\.encoder\.pooling: expected one of"),
        ({"name": "dmt", "eps": 0.0}, r"model\.encoder\.eps: expected a positive float"),
        ({"name": "dien", "gru": "x"}, r"model\.encoder\.gru: expected one of"),
        (3, r"model\.encoder: expected an encoder's name or a mapping"),
    ],
)
def test_errors_name_the_field(value, text):
    with pytest.raises(ValueError, match=text):
        EncoderConfig.from_value(value, "model.encoder")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "din", "behavior": 3}, r"behavior: expected one in \[0, 3\), found 3"),
        ({"name": "bst", "num_heads": 3}, "num_heads: expected a divisor of embed_dim = 8"),
        ({"name": "dmt", "num_heads": 3}, "num_heads: expected a divisor of embed_dim = 8"),
        ({"name": "atrank", "width": 9}, "num_heads: expected a divisor of width = 9, found 4"),
        ({"name": "dfn", "weak": [3]}, r"weak: expected distinct behaviors in \[0, 3\)"),
    ],
)
def test_what_does_not_fit_the_data_is_named(options, text):
    with pytest.raises(ValueError, match=text):
        EncoderConfig.from_value(options, "encoder").build(D, (6, 6, 6))
