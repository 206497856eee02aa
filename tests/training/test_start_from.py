"""Runs that start from the weights of another one, whole or trimmed."""

from __future__ import annotations

import json

import pytest
import torch

from mtlfast import cli
from mtlfast.models import gate_usage
from mtlfast.training import TrainConfig, load_model, resume_training, start_training
from mtlfast.training.assemble import make_source

SETTINGS = {
    "model": "dtn",
    "model_options": {"embed_dim": 4, "output_dim": 8, "interactions": ["masknet", "gdcn"]},
    "data": "synthetic:tenrec",
    "data_options": {
        "num_users": 60, "num_items": 80, "train_samples": 256, "test_samples": 128,
    },
    "batch_size": 32,
    "max_steps": 4,
    "sparse_min_rows": 50,
    "accelerator": "cpu",
    "tensorboard": False,
}  # fmt: skip


def config(**settings) -> TrainConfig:
    return TrainConfig.from_dict({**SETTINGS, **settings})


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    start_training(config(), folder, quiet=True).fit()
    return folder


def test_training_goes_on_from_the_weights(base, tmp_path):
    trainer = start_training(config(start_from=str(base), seed=3), tmp_path, quiet=True)
    expected, _ = load_model(base)
    found = trainer.model.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[k], v) for k, v in expected.state_dict().items())
    assert trainer.step == 0
    assert trainer.model.training
    trainer.fit()
    assert not torch.equal(trainer.model.towers.bias, expected.towers.bias)


def test_trimmed_of_the_least_used(base, tmp_path):
    full, _ = load_model(base)
    batches = list(make_source(config()).train_batches(32))
    least = gate_usage(full, batches).sum(dim=(0, 1)).argsort()[:2].tolist()
    trainer = start_training(config(start_from=str(base), trim=2), tmp_path, quiet=True)
    assert set(trainer.model.config.removed) == {tuple(full.module_keys[i]) for i in least}
    assert trainer.config.model_options["removed"] == [
        list(full.module_keys[i]) for i in sorted(least)
    ]
    batch = batches[0]
    weights = full(*batch.inputs()[:1], return_gates=True).gates
    left = [i for i in range(len(full.module_keys)) if i not in least]
    kept = weights[..., left] / weights[..., left].sum(dim=-1, keepdim=True).clamp(min=1e-30)
    found = trainer.model.eval()(batch.sparse, return_gates=True).gates
    torch.testing.assert_close(found, kept)  # the softmax of every gate runs over the rest

    whole = start_training(config(start_from=str(base), trim=2), tmp_path, quiet=True).fit()
    (tmp_path / "part").mkdir()
    part = config(start_from=str(base), trim=2, max_steps=2)
    start_training(part, tmp_path / "part", quiet=True).fit()
    resumed = resume_training(tmp_path / "part", {"max_steps": 4}, quiet=True)
    assert resumed.step == 2
    assert resumed.fit()["weights_sha256"] == whole["weights_sha256"]
    assert load_model(tmp_path / "part")[0].module_keys == trainer.model.module_keys


def test_from_the_command_line(base, tmp_path, capsys):
    arguments = ["train", "--start-from", str(base), "--trim", "1", "--learning-rate", "1e-4"]
    rest = ["--max-steps", "1", "--batch-size", "32", "--accelerator", "cpu", "--quiet"]
    assert cli.main([*arguments, *rest, "--run-dir", str(tmp_path / "run")]) == 0
    stored = json.loads((tmp_path / "run" / "results.json").read_text())["config"]
    assert (stored["model"], stored["data"]) == ("dtn", "synthetic:tenrec")
    assert stored["data_options"] == SETTINGS["data_options"]
    assert stored["model_options"]["embed_dim"] == 4
    assert len(stored["model_options"]["removed"]) == 1
    # Trimmed again, of one more.
    arguments[2] = str(tmp_path / "run")
    assert cli.main([*arguments, *rest, "--run-dir", str(tmp_path / "again")]) == 0
    stored = json.loads((tmp_path / "again" / "results.json").read_text())["config"]
    assert len(stored["model_options"]["removed"]) == 2
    capsys.readouterr()
    for extra, text in (
        (["--model", "dtrn"], "--model: expected dtn as in"),
        (["--data", "synthetic:ecommerce"], "was trained on other data"),
        (["--model-options", "output_dim=16"], "weights do not fit this model"),
        (["--trim", "10"], "trim: expected fewer than the 9 modules, found 10"),
        (["--start-from", str(tmp_path / "absent")], "no such checkpoint or run folder"),
    ):
        assert cli.main([*arguments, *rest, *extra, "--run-dir", str(tmp_path / "x")]) == 2
        assert text in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert cli.main(["train", "--trim", "1"]) == 2
    assert "trim: expected 0 without start_from, found 1" in capsys.readouterr().err


def test_only_dtn_can_be_trimmed(tmp_path):
    settings = {"model": "mtl", "model_options": {"embed_dim": 4}, "max_steps": 1}
    (tmp_path / "run").mkdir()
    start_training(config(**settings), tmp_path / "run", quiet=True).fit()
    asked = config(**settings, start_from=str(tmp_path / "run"), trim=1)
    with pytest.raises(ValueError, match="trim: expected 0 for models other than dtn, found 1"):
        start_training(asked, tmp_path, quiet=True)
