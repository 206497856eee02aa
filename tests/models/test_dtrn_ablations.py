"""Every row of DTRN's ablation tables is a config: it builds, agrees with its parts, and learns."""

from __future__ import annotations

import pytest
import torch

from mtlfast.jagged import JaggedSequences
from mtlfast.models import DTRNConfig, Sizes, build

SPEC = Sizes((40, 60, 5), 1, (6, 3), (None, 0, 0), (0.3, 0.1, 0.1))
T, M, D, B = 3, 2, 8, 10
TABLES = {
    # Table 5.
    "DMT": {"interests": "separate", "refinement": False},
    "+TIM": {"refinement": False},
    "+TRM": {"interests": "separate"},
    "DTRN": {},
    # Table 6; its row LN is DTRN.
    "QKV": {"injection": "qkv"},
    "FFN-1": {"injection": "ffn1"},
    "FFN-2": {"injection": "ffn2"},
}
HEADS = ("share_bottom", "mmoe", "ple", "aitm")  # Table 7


def make(**options):
    torch.manual_seed(0)
    defaults = {"embed_dim": D, "ffn_dim": 16, "head": "aitm", "init_std": 0.5}
    return build("dtrn", SPEC, {**defaults, **options}, backend="reference")


def make_batch():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.stack([torch.randint(0, n + 1, (B,), generator=generator) for n in (6, 3)])
    tokens = torch.randint(0, 60, (int(lengths.sum()),), generator=generator)
    columns = [torch.randint(0, n, (B,), generator=generator) for n in SPEC.vocab_sizes]
    sequences = JaggedSequences.from_lengths(tokens, lengths, max_len=6)
    return torch.stack(columns, 1), sequences


@pytest.mark.parametrize("row", TABLES)
def test_every_row_learns(row):
    model = make(**TABLES[row])
    batch = make_batch()
    labels = torch.rand(B, T, generator=torch.Generator().manual_seed(1)).round()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    losses = []
    for _ in range(6):
        loss = model.loss(model(*batch), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    assert DTRNConfig.from_dict(model.config.to_dict()) == model.config
    other = make(**TABLES[row])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(*batch), model(*batch))


@pytest.mark.parametrize("head", HEADS)
def test_dmt_is_the_ordinary_head_on_shared_interests(head):
    model = make(**TABLES["DMT"], head=head).double()
    sparse, sequences = make_batch()
    out = model(sparse, sequences, return_interests=True, return_bottom=True)
    assert out.interests.shape == (B, T, M, D)
    assert torch.equal(out.interests[:, 0], out.interests[:, 2])
    fields, target, tokens = model.embedding(sparse, sequences)
    shared = torch.cat([fields.flatten(1), model.tim(tokens, target)[:, 0]], dim=1)
    torch.testing.assert_close(out.raw[:, 1], shared)
    torch.testing.assert_close(out.logits, model.head(shared))


def test_trm_tells_the_tasks_of_shared_interests_apart():
    out = make(**TABLES["+TRM"])(*make_batch(), return_bottom=True)
    assert torch.equal(out.raw[:, 0], out.raw[:, 1])
    assert not torch.allclose(out.refined[:, 0], out.refined[:, 1])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"interests": "dmt"}, "interests: expected conditional or separate, found 'dmt'"),
        ({"injection": "ln"}, "injection: expected norm, qkv, ffn1 or ffn2, found 'ln'"),
        ({"inject_where": "head"}, "inject_where: expected both, encoder or decoder"),
        ({"interests": "separate", "injection": "qkv"}, "norm where interests are separate"),
    ],
)
def test_wrong_options_are_named(options, text):
    with pytest.raises(ValueError, match=text):
        DTRNConfig(**options)
