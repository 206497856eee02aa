"""Learned weights of the tasks' losses."""

from __future__ import annotations

import math

import pytest
import torch

from mtlfast.models import Sizes, build

SPEC = Sizes((9, 30), 1, (4, 3), (None, None), (0.5, 0.1))
MODELS = {
    "dtrn": {"embed_dim": 4, "backend": "reference"},
    "sequence": {"embed_dim": 4, "encoder": "youtubenet"},
    "mtl": {"embed_dim": 4},
    "dtn": {"embed_dim": 4, "output_dim": 4, "interactions": ["gdcn"]},
}
every_model = pytest.mark.parametrize("name", MODELS)


def make(name, **options):
    torch.manual_seed(0)
    return build(name, SPEC, {**MODELS[name], **options})


@every_model
def test_the_loss_is_the_formula(name):
    model = make(name, uncertainty_weights=True, task_weights=[1.0, 3.0])
    with torch.no_grad():
        model.log_variances.copy_(torch.tensor([0.4, -1.0]))
    logits = torch.randn(20, 2, requires_grad=True)
    labels = (torch.rand(20, 2) < 0.4).float()
    expected = 0.0
    for t, (weight, s) in enumerate(((1.0, 0.4), (3.0, -1.0))):
        p = torch.sigmoid(logits[:, t])
        own = -(labels[:, t] * p.log() + (1 - labels[:, t]) * (1 - p).log()).mean()
        expected = expected + weight * (own / math.exp(s) + s / 2)
    found = model.loss(logits, labels)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert bool((model.log_variances.grad != 0).all())


@every_model
def test_they_settle_where_a_loss_of_its_own_size_puts_them(name):
    model = make(name, uncertainty_weights=True)
    logits, labels = torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    optimizer = torch.optim.LBFGS([model.log_variances], max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = model.loss(logits, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    losses = torch.tensor([math.log(2), math.log1p(math.exp(3.0))])
    torch.testing.assert_close(model.log_variances.detach(), (2 * losses).log(), rtol=0, atol=1e-3)


@every_model
def test_off_by_default(name):
    model = make(name)
    assert model.log_variances is None
    assert "log_variances" not in model.state_dict()
    assert "log_variances" in make(name, uncertainty_weights=True).state_dict()
