"""The acceptance run on real data: examples/deskdrop.yaml as it stands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mtlfast.training import TrainConfig, start_training
from mtlfast.training.config import load_yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "deskdrop.yaml"


def needs_deskdrop() -> None:
    root = os.environ.get("MTLFAST_DATA")
    if not root:
        pytest.skip("MTLFAST_DATA is not set: no folder with deskdrop/events.parquet")
    if not (Path(root) / "deskdrop" / "events.parquet").is_file():
        pytest.skip(f"no deskdrop/events.parquet in {root}")


@pytest.mark.slow
def test_mean_auc_of_two_equal_runs(tmp_path):
    needs_deskdrop()
    config = TrainConfig.from_dict({**load_yaml(EXAMPLE), "accelerator": "cpu"})
    assert config.model_options["embed_dim"] == 16
    assert config.epochs == 3
    results = []
    for name in ("first", "second"):
        torch.manual_seed(sum(map(ord, name)))  # what ran before must not matter
        (tmp_path / name).mkdir()
        trainer = start_training(config, tmp_path / name, quiet=True)
        assert trainer.source.spec.tasks == ("like", "bookmark", "follow", "comment")
        assert trainer.source.spec.max_lengths == (50,) * 5
        assert trainer.source.config.label_window == 24 * 3600
        results.append(trainer.fit())
    first, second = results
    assert first["mean_auc"] > 0.70
    for key in ("metrics", "mean_auc", "train_loss", "weights_sha256"):
        assert first[key] == second[key], key
    curves = [(tmp_path / name / "train.csv").read_text() for name in ("first", "second")]
    without_speed = [[row.rsplit(",", 1)[0] for row in text.splitlines()] for text in curves]
    assert without_speed[0] == without_speed[1]
