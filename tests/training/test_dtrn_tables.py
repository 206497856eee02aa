"""The tables of DTRN: what they compare, a whole small run, its continuation."""

from __future__ import annotations

import csv
import json
import statistics

import pytest
import torch

from mtlfast import cli, models
from mtlfast.data import open_source
from mtlfast.data.without_tasks import remove_tasks
from mtlfast.training.assemble import start_training
from mtlfast.training.config import TrainConfig
from mtlfast.training.reproduction.dtrn_tables import TABLES, default_head
from mtlfast.training.reproduction.run_variants import train_variants
from mtlfast.training.reproduction.variants import Choices

SMALL = {"num_users": 200, "num_items": 300, "train_samples": 256, "test_samples": 2048}
SETTINGS = [
    "--data-options", *(f"{name}={value}" for name, value in SMALL.items()),
    "--batch-size", "64", "--max-steps", "2", "--accelerator", "cpu", "--threads", "1", "--quiet",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spec_of(name):
    return open_source(f"synthetic:{name}", **SMALL).spec


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("data", ["tenrec", "ecommerce"])
def test_every_row_is_a_model_of_its_own(name, data):
    spec = spec_of(data)
    variants = TABLES[name].variants(spec, Choices(default_head(spec), (4, 8)))
    assert len({variant.name for variant in variants}) == len(variants) >= 4
    seen = set()
    for variant in variants:
        left = remove_tasks(spec, [variant.removed]) if variant.removed else spec
        options = {"embed_dim": 8, **variant.options}
        model = models.build(variant.model, left, options)
        # Nothing that a misspelt or forgotten option would leave equal.
        shapes = tuple((key, tuple(value.shape)) for key, value in model.state_dict().items())
        assert (shapes, variant.removed) not in seen, variant.name
        seen.add((shapes, variant.removed))
        published = variant.paper(spec.tasks, spec.tasks[-1])
        nowhere = name == "dtrn-fig4" or variant.removed == spec.tasks[-1] or variant.name == "BST"
        of_these_data = data == "ecommerce" or name == "dtrn-table4"
        assert (published is None) == (nowhere or not of_these_data)
        logloss = variant.paper_logloss(spec.tasks, spec.tasks[-1])
        assert (logloss is None) == (name != "dtrn-table4" or variant.name == "BST")


def test_heads_follow_the_data():
    assert default_head(spec_of("ecommerce")) == "aitm"
    assert default_head(spec_of("tenrec")) == "mmoe"


def test_a_sweep_and_its_continuation(tmp_path, capsys):
    arguments = [
        "reproduce", "dtrn-fig4", "--sizes", "8", "4", "--rows", "DMT d=4", "DTRN d=8",
        "--seeds", "2", "--out", str(tmp_path), *SETTINGS,
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows[::4]] == ["DMT d=4", "DTRN d=8"]
    assert {row["seeds"] for row in rows} == {"2"}
    results = [
        json.loads((tmp_path / "runs" / f"dtrn-d-8-{seed}" / "results.json").read_text())
        for seed in (0, 1)
    ]
    assert [r["config"]["model_options"]["embed_dim"] for r in results] == [8, 8]
    assert [r["config"]["seed"] for r in results] == [0, 1]
    aucs = [r["metrics"]["watch"]["auc"] for r in results]
    watch = next(r for r in rows if (r["variant"], r["task"]) == ("DTRN d=8", "watch"))
    assert float(watch["auc"]) == pytest.approx(statistics.mean(aucs))
    assert float(watch["auc_sd"]) == pytest.approx(statistics.stdev(aucs))
    assert f"{statistics.mean(aucs):.4f}" in printed
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("runs/*/checkpoints"))

    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/results.json")}
    assert len(stamps) == 4
    (tmp_path / "runs" / "dmt-d-4-1" / "results.json").unlink()
    assert cli.main(arguments) == 0
    again = {p: p.stat().st_mtime_ns for p in tmp_path.glob("runs/*/results.json")}
    assert [p.parent.name for p in stamps if stamps[p] != again[p]] == ["dmt-d-4-1"]

    assert cli.main([*arguments, "--learning-rate", "0.1"]) == 2
    assert "expected a folder for learning_rate = 0.1" in capsys.readouterr().err


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path):
    config = TrainConfig(
        data="synthetic:ecommerce",
        data_options=SMALL,
        model_options={"embed_dim": 4, "head": {"tower_units": [6]}},
        batch_size=64,
        max_steps=3,
        accelerator="cpu",
        threads=1,
        tensorboard=False,
    )
    spec = spec_of("ecommerce")
    chosen = TABLES["dtrn-table8"].variants(spec, Choices("aitm"))[2:3]
    (variant,) = chosen
    assert variant.removed == "watch"
    whole = train_variants(chosen, config, spec.tasks, tmp_path / "whole", quiet=True)
    assert [row["task"] for row in whole] == ["click", "entering", "conversion"]
    done = json.loads((tmp_path / "whole/runs/dmt-without-watch-0/results.json").read_text())
    asked = done["config"]["model_options"]["head"]
    assert asked == {"tower_units": [6], "name": "aitm"}

    folder = tmp_path / "broken" / "runs" / "dmt-without-watch-0"
    folder.mkdir(parents=True)
    start_training(
        TrainConfig.from_dict({**done["config"], "max_steps": 1}), folder, quiet=True
    ).fit()
    (folder / "results.json").unlink()
    train_variants(chosen, config, spec.tasks, tmp_path / "broken", quiet=True)
    resumed = json.loads((folder / "results.json").read_text())
    assert resumed["steps"] == 3
    assert resumed["weights_sha256"] == done["weights_sha256"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["dtrn-table5", "--rows", "DTR"], "--rows: expected some of DMT, DMT+TIM, DMT+TRM, DTRN"),
        (["dtrn-table5", "--seeds", "0"], "--seeds: expected at least 1, found 0"),
        (["dtrn-table5", "--head", "mmo"], "head.name: expected one of"),
        (["dtrn-fig4", "--sizes", "8", "8"], "--sizes: expected different widths"),
        (["dtrn-table7", "--data", "nothing"], "data source: expected one of"),
    ],
)
def test_mistakes_are_explained(tmp_path, capsys, extra, message):
    assert cli.main(["reproduce", *extra, *SETTINGS, "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err
