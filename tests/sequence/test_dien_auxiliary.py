"""DIEN's auxiliary loss against its formula, one token at a time."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from mtlfast import models
from mtlfast.data.synthetic import TENREC, SyntheticSource
from mtlfast.jagged import JaggedSequences
from mtlfast.sequence import DIEN
from mtlfast.sequence.dien import draw_negatives, next_token_loss

D = 6
# Behavior 0 is read, 2 has the negatives; user 1 has one token, user 3 nothing, 0 no negatives.
LENGTHS = torch.tensor([[3, 1, 5, 0, 2], [1, 0, 2, 2, 0], [0, 4, 1, 3, 2]])
U = LENGTHS.shape[1]


def make_inputs() -> tuple[JaggedSequences, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    values = torch.randn(int(LENGTHS.sum()), D, generator=rng, dtype=torch.float64)
    target = torch.randn(U, D, generator=rng, dtype=torch.float64)
    return JaggedSequences.from_lengths(values.requires_grad_(), LENGTHS), target


def make(score="inner", negative_behavior=None, weight=0.3) -> DIEN:
    torch.manual_seed(0)
    return DIEN(
        D,
        auxiliary_weight=weight,
        auxiliary_score=score,
        negative_behavior=negative_behavior,
    ).double()


def rows_of(behavior: int, user: int) -> range:
    offsets = [0, *LENGTHS.flatten().cumsum(0).tolist()]
    segment = behavior * U + user
    return range(offsets[segment], offsets[segment + 1])


@pytest.mark.parametrize("score", ["inner", "mlp"])
@pytest.mark.parametrize("negative_behavior", [None, 2])
def test_the_loss_is_the_formula(score, negative_behavior):
    encoder, (sequences, target) = make(score, negative_behavior), make_inputs()
    torch.manual_seed(5)
    encoder(sequences, target)
    found = encoder.extra_loss()
    torch.manual_seed(5)
    rows = draw_negatives(sequences, 0, negative_behavior, 4)
    terms = []
    for u in range(U):
        own = rows_of(0, u)
        if not len(own):
            continue
        states = encoder.extraction(sequences.values[own.start : own.stop][None])[0][0]
        for j in range(len(own) - 1):
            positive, negative = sequences.values[own[j + 1]], sequences.values[rows[u, j]]
            scores = [
                states[j] @ x if score == "inner" else encoder.auxiliary(torch.cat((states[j], x)))
                for x in (positive, negative)
            ]
            p, q = (1 / (1 + torch.exp(-s)) for s in scores)
            terms.append(-(torch.log(p) + torch.log(1 - q)).squeeze())
    assert len(terms) == 2 + 4 + 1
    torch.testing.assert_close(found, 0.3 * sum(terms) / len(terms))
    (found_grad,) = torch.autograd.grad(found, sequences.values, retain_graph=True)
    (expected,) = torch.autograd.grad(0.3 * sum(terms) / len(terms), sequences.values)
    torch.testing.assert_close(found_grad, expected)


@pytest.mark.parametrize("negative_behavior", [None, 2])
def test_where_negatives_come_from(negative_behavior):
    sequences, _ = make_inputs()
    torch.manual_seed(0)
    rows = draw_negatives(sequences, 0, negative_behavior, 500)
    every = {row for u in range(U) for row in rows_of(0, u)}
    for u in range(U):
        own = set(rows_of(2, u))
        expected = own if negative_behavior == 2 and own else every
        assert set(rows[u].tolist()) == expected


def test_only_in_training_and_only_once():
    encoder, (sequences, target) = make(), make_inputs()
    found = encoder(sequences, target)
    copied = copy.deepcopy(encoder)
    assert copied.extra_loss() is None
    assert pickle.loads(pickle.dumps(encoder)).extra_loss() is None
    assert encoder.extra_loss() is not None
    assert encoder.extra_loss() is None
    torch.testing.assert_close(encoder.eval()(sequences, target), found)
    assert encoder.extra_loss() is None
    assert make(weight=0.0)(sequences, target).shape == found.shape


def test_weight_zero_changes_nothing():
    plain, without = make(weight=0.0), DIEN(D)
    assert plain.state_dict().keys() == without.state_dict().keys()
    sequences, target = make_inputs()
    state = torch.get_rng_state()
    plain(sequences, target)
    assert plain.extra_loss() is None
    assert torch.equal(torch.get_rng_state(), state)  # no draw


@pytest.mark.parametrize("longest", [0, 1])
@pytest.mark.parametrize("negative_behavior", [None, 2])
def test_nothing_to_predict_is_zero(longest, negative_behavior):
    lengths = LENGTHS.clone()
    lengths[0] = lengths[0].clamp(max=longest)
    values = torch.randn(int(lengths.sum()), D, dtype=torch.float64, requires_grad=True)
    encoder = make("inner", negative_behavior)
    encoder(JaggedSequences.from_lengths(values, lengths), torch.randn(U, D).double())
    loss = encoder.extra_loss()
    assert loss == 0
    (grad,) = torch.autograd.grad(loss, values)
    assert not grad.any()
    nothing = JaggedSequences.from_lengths(values[:0], torch.zeros_like(lengths))
    encoder(nothing, torch.randn(U, D).double())
    assert encoder.extra_loss() is None


def test_low_precision_is_summed_in_float32():
    h = torch.full((1, 3, 2), 0.5, dtype=torch.bfloat16)
    real = torch.tensor([[True, True, True]])
    found = next_token_loss(h, h, -h[:, 1:], real)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(2 * math.log1p(math.exp(-0.5)), rel=1e-6)


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(
        TENREC, num_users=500, num_items=100, train_samples=256, test_samples=64,
        candidates_per_user=4,
    )  # fmt: skip


def test_a_model_learns_to_tell_the_next_token(source):
    encoder = {"name": "dien", "auxiliary_weight": 1.0, "negative_behavior": 4}
    torch.manual_seed(0)
    model = models.build(
        "sequence", source.spec, {"embed_dim": 8, "encoder": encoder, "init_std": 0.1}
    )
    batch = source.train_batch(64, 0, 0)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    auxiliary = []
    for _ in range(25):
        logits = model(*batch.inputs())
        loss = model.loss(logits, batch.labels)
        auxiliary.append(float((loss - models.task_losses(logits, batch.labels).sum()).detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert auxiliary[0] == pytest.approx(2 * math.log(2), abs=0.05)
    assert auxiliary[-1] < 0.8 * auxiliary[0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"auxiliary_weight": -1.0}, "encoder.auxiliary_weight: expected at least 0"),
        ({"auxiliary_score": "dot"}, "encoder.auxiliary_score: expected one of"),
        ({"negative_behavior": 5}, r"negative_behavior: expected one in \[0, 5\) other than"),
        ({"negative_behavior": 0}, "other than behavior = 0, found 0"),
    ],
)
def test_wrong_options_are_named(source, options, text):
    with pytest.raises(ValueError, match=text):
        models.build("sequence", source.spec, {"encoder": {"name": "dien", **options}})
