"""The real model and data behind the loop."""

from __future__ import annotations

import pytest
import torch

from mtlfast.training import TrainConfig, load_model, resume_training, start_training
from mtlfast.training.assemble import evaluate_checkpoint, make_model, make_source
from mtlfast.training.optimizers import RowwiseAdam
from mtlfast.training.parity import compare

SIZES = {"num_users": 300, "num_items": 900, "train_samples": 1280, "test_samples": 256}


def config(**settings) -> TrainConfig:
    defaults = {
        "data": "synthetic:ecommerce",
        "data_options": SIZES,
        "model_options": {"embed_dim": 8, "head": "aitm"},
        "batch_size": 64,
        "log_every": 1,
        "sparse_min_rows": 100,
        "accelerator": "cpu",
        "tensorboard": False,
    }
    return TrainConfig.from_dict({**defaults, **settings})


def columns(path) -> list[str]:
    return [line.rsplit(",", 1)[0] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("precision", ["float32", "bf16-mixed"])
def test_dtrn_resumes_bit_for_bit(tmp_path, precision):
    (tmp_path / "whole").mkdir()
    whole = start_training(config(max_steps=6, precision=precision), tmp_path / "whole", quiet=True)
    assert any(isinstance(o, RowwiseAdam) for o in whole.optimizers)
    expected = whole.fit()
    (tmp_path / "part").mkdir()
    start_training(config(max_steps=4, precision=precision), tmp_path / "part", quiet=True).fit()
    resumed = resume_training(tmp_path / "part", {"max_steps": 6}, quiet=True)
    assert resumed.step == 4
    result = resumed.fit()
    assert columns(tmp_path / "part" / "train.csv") == columns(tmp_path / "whole" / "train.csv")
    for key in ("weights_sha256", "metrics", "train_loss", "mean_auc"):
        assert result[key] == expected[key], key


def test_settings_that_change_the_numbers_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    start_training(config(max_steps=1), tmp_path / "run", quiet=True).fit()
    for name, value in (("batch_size", 128), ("seed", 3), ("model_options", {"embed_dim": 16})):
        with pytest.raises(ValueError, match=f"^{name}: the run in .*step-000000001.pt was"):
            resume_training(tmp_path / "run", {name: value})
    with pytest.raises(ValueError, match=r"max_stepps: unknown key, did you mean 'max_steps'"):
        resume_training(tmp_path / "run", {"max_stepps": 2})


def test_other_data_are_refused(tmp_path):
    (tmp_path / "run").mkdir()
    start_training(config(max_steps=1), tmp_path / "run", quiet=True).fit()
    with pytest.raises(ValueError, match=r"step-000000001.pt: was trained on other data: expected"):
        evaluate_checkpoint(
            tmp_path / "run", {"data_options": {**SIZES, "num_items": 800}}, quiet=True
        )


def test_loaded_model_is_the_trained_one_on_any_backend(tmp_path):
    (tmp_path / "run").mkdir()
    trainer = start_training(config(max_steps=3), tmp_path / "run", quiet=True)
    trainer.fit()
    batch = trainer.source.test_batch(64, 0)
    trainer.model.eval()
    expected = trainer.model(batch.sparse, batch.sequences, batch.user_index)
    fused, stored = load_model(tmp_path / "run")
    assert stored == trainer.config
    assert not fused.training
    assert torch.equal(fused(batch.sparse, batch.sequences, batch.user_index), expected)

    reference, _ = load_model(tmp_path / "run", backend="reference")
    batches = [trainer.source.test_batch(16, step) for step in range(8)]
    assert all(row.holds for row in compare(fused, reference, batches))


def test_parity_sees_one_wrong_weight():
    settings = config()
    source = make_source(settings)
    batches = [source.test_batch(16, step) for step in range(4)]
    right, wrong = make_model(settings, source.spec), make_model(settings, source.spec)
    with torch.no_grad():
        wrong.tim.transformer.norm_weight[3, 0] += 1e-3
    logits, gradients = compare(wrong, right, batches)
    assert (logits.within, gradients.within) == (0, 0)
    assert not logits.holds
    assert not gradients.holds
    assert all(row.holds for row in compare(right, right, batches))


def test_parity_sees_nan():
    settings = config()
    source = make_source(settings)
    right, wrong = make_model(settings, source.spec), make_model(settings, source.spec)
    with torch.no_grad():
        wrong.tim.transformer.norm_weight[3, 0] = float("nan")
    assert not any(row.holds for row in compare(wrong, right, [source.test_batch(16, 0)]))


def test_same_seed_gives_the_same_model():
    settings = config()
    spec = make_source(settings).spec
    states = [make_model(config(seed=seed), spec).state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    assert not all(torch.equal(states[0][k], states[2][k]) for k in states[0])
