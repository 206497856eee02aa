"""The models DTRN is compared with, as whole models."""

from __future__ import annotations

import pytest
import torch

from mtlfast import models
from mtlfast.data.synthetic import TENREC, SyntheticSource
from mtlfast.models import SequenceModel, SequenceModelConfig, Sizes
from mtlfast.sequence import ENCODER_CONFIGS

HEADS = ("mmoe", "m2m", "small_heads")


@pytest.fixture(scope="module")
def source():
    return SyntheticSource(
        TENREC, num_users=2000, num_items=400, train_samples=512, test_samples=64,
        candidates_per_user=4,
    )  # fmt: skip


def make(source, encoder="din", head="mmoe", **options):
    torch.manual_seed(0)
    options = {"embed_dim": 8, "encoder": encoder, "head": head, **options}
    return models.build("sequence", source.spec, options)


@pytest.mark.parametrize("encoder", ENCODER_CONFIGS)
def test_a_few_steps_learn_a_small_batch(source, encoder):
    model = make(source, encoder, init_std=0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    batch = source.train_batch(96, 0, 0)
    assert batch.user_index is not None
    losses = []
    for _ in range(25):
        loss = model.loss(model(*batch.inputs()), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("head", HEADS)
def test_logits_are_those_of_the_parts(source, head):
    model = make(source, "dfn", head).eval()
    batch = source.test_batch(20, 0)
    fields, target, tokens = model.embedding(batch.sparse, batch.sequences)
    interest = model.encoder(tokens, target, user_index=batch.user_index)
    expected = model.head(torch.cat((fields.flatten(1), interest), dim=1))
    torch.testing.assert_close(model(*batch.inputs()), expected)
    assert model.encoder.pairs == [(b, 4) for b in range(4)]  # "negative" is weak feedback
    if head == "m2m":  # video_category, gender and age
        assert model.head.columns.tolist() == list(range(16, 40))


def test_small_heads_are_part_of_the_loss_in_training_only(source):
    model, batch = make(source, "youtubenet", {"name": "small_heads", "weight": 0.5}), None
    batch = source.train_batch(64, 0, 0)
    logits = model(*batch.inputs())
    with_small = model.loss(logits, batch.labels)
    without = models.task_losses(logits, batch.labels).sum()
    assert with_small > 1.2 * without
    model.eval()
    torch.testing.assert_close(model.loss(model(*batch.inputs()), batch.labels), without)


@pytest.mark.parametrize("head", ["mmoe", "m2m"])
def test_a_bias_tower_is_read_in_training_only(source, head):
    torch.manual_seed(0)
    options = {"bias_fields": ["age", 2], "bias_units": [5], "init_std": 0.3}
    model = make(source, "dmt", head, **options).eval()
    batch = source.test_batch(20, 0)
    other = batch.sparse.clone()
    other[:, [2, 4]] = 1
    served = model(*batch.inputs())
    torch.testing.assert_close(model(other, *batch.inputs()[1:]), served, rtol=0, atol=0)
    for module in model.encoder.modules():
        if hasattr(module, "dropout"):
            module.dropout = torch.nn.Identity() if module is model.encoder else 0.0
    trained = model.train()(*batch.inputs())
    fields, _, _ = model.embedding(batch.sparse, batch.sequences)
    bias = model.bias_tower(torch.cat((fields[:, 2], fields[:, 4]), dim=1))
    assert bias.abs().max() > 0.01
    torch.testing.assert_close(trained, served + bias)  # the same for every task
    model.loss(trained, batch.labels).backward()
    assert all(p.grad is not None for p in model.bias_tower.parameters())
    if head == "m2m":  # of user, item and gender, which are left, gender alone is a scenario
        assert model.head.columns.tolist() == list(range(16, 24))


def test_no_bias_tower_by_default(source):
    model = make(source)
    assert model.bias_tower is None
    assert not any("bias_tower" in key or "_kept" in key for key in model.state_dict())


@pytest.mark.parametrize("fields", [["item_id"], [1], [5], ["hour"], [2, "video_category"]])
def test_wrong_bias_fields_are_named(source, fields):
    with pytest.raises(ValueError, match="bias_fields: expected"):
        make(source, bias_fields=fields)


def test_options_survive_plain_values():
    given = {"encoder": {"name": "bst", "readout": "mean"}, "head": {"name": "small_heads"}}
    config = SequenceModelConfig.from_dict(given)
    assert config.encoder.readout == "mean"
    assert SequenceModelConfig.from_dict(config.to_dict()) == config


def test_wrong_data_and_options_are_named(source):
    sizes = Sizes((3, 4), None, (), (None,))
    with pytest.raises(ValueError, match="spec: expected data with an item field"):
        SequenceModel(sizes)
    multi = Sizes((3, 4), 0, (5,), (None,), multi_valued=(1,))
    with pytest.raises(ValueError, match="spec: expected fields with one id per row"):
        SequenceModel(multi)
    with pytest.raises(ValueError, match="task_weights: expected 4 weights, found 1"):
        make(source, task_weights=[1.0])
