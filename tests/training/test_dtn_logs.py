"""DTN's Table 3 on AliExpress and Ali-CCP: equal budgets, a whole small run."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from aliccp_rows import write_raw

from mtlfast import cli, models
from mtlfast.data import AliCCPSource
from mtlfast.training.reproduction.dtn_logs import TABLES, dense_parameters
from mtlfast.training.reproduction.run_variants import _add_relaimp, format_table
from mtlfast.training.reproduction.variants import Choices


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow", reason="tables are kept as parquet")
    monkeypatch.setenv("MTLFAST_CACHE", str(tmp_path / "cache"))
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


@pytest.mark.parametrize("name", TABLES)
def test_budgets_are_equal(folder, name):
    spec = AliCCPSource(folder, fields=["101", "205", "206", "508", "853"], min_count=1).spec
    state = torch.random.get_rng_state()
    variants = TABLES[name].variants(spec, Choices(embed_dim=4, width=48))
    assert torch.equal(torch.random.get_rng_state(), state)
    found = {v.name: dense_parameters(v.model, spec, v.options) for v in variants}
    assert len(found) == 11
    assert max(found.values()) == found["DTN"]
    # GDCN grows with the fields alone, but for its output.
    assert min(found.values()) > 0.8 * found["DTN"], found
    for variant in variants:
        model = models.build(variant.model, spec, dict(variant.options))
        every = sum(p.numel() for p in model.parameters())
        assert every - model.embedding.weight.numel() == found[variant.name]
    dtn, trimmed = variants[-2:]
    assert (trimmed.name, trimmed.trimmed_from, trimmed.options) == ("DTN-trim", "DTN", dtn.options)
    assert dtn.paper(spec.tasks, "conversion") == (0.8207 if "express" in name else 0.6231)


def test_a_whole_run(folder, tmp_path, capsys):
    arguments = [
        "reproduce", "dtn-table3-aliccp", "--data", f"aliccp:{folder}", "--data-options",
        "preset=dtn", "fields=['101', '205', '210', '150_14']", "--width", "8", "--model-options",
        "embed_dim=4", "--rows", "ShareBottom", "DTN", "--batch-size", "16", "--max-steps", "2",
        "--accelerator", "cpu", "--out", str(tmp_path / "out"), "--quiet",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    with open(tmp_path / "out" / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["variant"], row["task"]) for row in rows] == [
        ("ShareBottom", "click"), ("ShareBottom", "conversion"),
        ("DTN", "click"), ("DTN", "conversion"),
    ]  # fmt: skip
    assert rows[2]["published_auc"] == "0.6153"
    printed = capsys.readouterr().out
    assert "(0.6153)" in printed
    # RelaImp over ShareBottom; the paper cuts its 8.67 and 9.81 to 8.6 and 9.8.
    assert float(rows[2]["published_relaimp"]) == pytest.approx(8.67, abs=0.01)
    assert float(rows[3]["published_relaimp"]) == pytest.approx(9.81, abs=0.01)
    base, auc = float(rows[0]["auc"]) - 0.5, float(rows[2]["auc"]) - 0.5
    assert rows[2]["relaimp"] == ("" if base <= 0 else str(100 * (auc / base - 1)))
    assert "published_logloss" in rows[0]
    assert rows[0]["published_logloss"] == ""
    assert cli.main([*arguments, "--width", "0"]) == 2
    assert "--width: expected at least 1, found 0" in capsys.readouterr().err


def test_dtn_trim_is_made_of_the_trained_dtn(folder, tmp_path):
    out = tmp_path / "out"
    arguments = [
        "reproduce", "dtn-table3-aliccp", "--data", f"aliccp:{folder}", "--data-options",
        "preset=dtn", "fields=['101', '205', '301']", "--width", "8", "--model-options",
        "embed_dim=4", "--rows", "DTN-trim", "--batch-size", "16", "--max-steps", "2",
        "--accelerator", "cpu", "--out", str(out), "--quiet",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    with open(out / "table.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    sizes = {row["variant"]: int(row["parameters"]) for row in rows}
    assert list(sizes) == ["DTN", "DTN-trim"]  # the one needs the other
    assert sizes["DTN-trim"] < sizes["DTN"]
    trimmed = json.loads((out / "runs" / "dtn-trim-0" / "results.json").read_text())["config"]
    assert len(trimmed["model_options"]["removed"]) == trimmed["trim"] == 1
    assert trimmed["learning_rate"] == pytest.approx(1e-4)
    assert not list(out.glob("runs/*/checkpoints"))

    stamps = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/results.json")}
    assert cli.main(arguments) == 0
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}  # nothing to do
    # Without its results it is made again, and so is what it is made of, whose weights are gone.
    (out / "runs" / "dtn-trim-0" / "results.json").unlink()
    assert cli.main([*arguments, "--keep-models"]) == 0
    again = json.loads((out / "runs" / "dtn-trim-0" / "results.json").read_text())
    assert again["config"]["model_options"] == trimmed["model_options"]
    assert len(list(out.glob("runs/*/checkpoints"))) == 2


def test_relaimp_stands_beside_the_paper():
    rows = [
        {"variant": name, "task": "click", "auc": auc, "published_auc": published}
        for name, auc, published in (("Base", 0.7, 0.6), ("A", 0.8, 0.65), ("B", None, None))
    ]
    _add_relaimp(rows, "Base")
    assert [row["relaimp"] for row in rows] == [0.0, pytest.approx(50.0), None]
    assert [row["published_relaimp"] for row in rows] == [0.0, pytest.approx(50.0), None]
    for row in rows:
        row.update(parameters=None, auc_sd=None, logloss=0.25, logloss_sd=0.5)
        row["published_logloss"] = row["auc_after_parent"] = None
    text = format_table(rows)
    assert "| A | +50.00 % (+50.00 %) |" in text
    assert "LogLoss" not in text
    rows[1]["published_logloss"] = 0.125
    assert "| A | 0.250000 ± 0.500000 (0.125000) |" in format_table(rows)
    rows[2]["auc_after_parent"] = 0.25
    assert "| AUC among the positives of the task before | click |\n|---|---|\n| B | 0.2500 |" in (
        format_table(rows)
    )
    rows[0]["auc"] = 0.5  # which only guesses
    _add_relaimp(rows, "Base")
    assert rows[1]["relaimp"] is None
