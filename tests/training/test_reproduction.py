"""Reproducing a table: AUC and bootstrap, equal budgets, a whole small run."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from census_rows import person, text

from mtlfast import cli
from mtlfast.data import CensusSource
from mtlfast.training.reproduction import boosting
from mtlfast.training.reproduction.auc import Ranking, bootstrap_means
from mtlfast.training.reproduction.dtn_table3 import ROWS, build_row, parameters, width_within
from mtlfast.training.reproduction.fit import Recipe, fit, predict


def pairs_auc(scores, labels):
    positive, negative = scores[labels], scores[~labels]
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def test_auc_counts_pairs_ties_half():
    rng = np.random.default_rng(0)
    scores, labels = rng.integers(0, 9, 80).astype(float), rng.random(80) < 0.3
    assert Ranking(scores, labels).auc() == pytest.approx(pairs_auc(scores, labels), abs=1e-12)
    assert np.isnan(Ranking(scores, np.zeros(80, bool)).auc())


def test_weights_are_repetitions():
    rng = np.random.default_rng(1)
    scores, labels = rng.random(50), rng.random(50) < 0.4
    times = rng.integers(0, 4, 50)
    expected = pairs_auc(np.repeat(scores, times), np.repeat(labels, times))
    assert Ranking(scores, labels).auc(times.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_bootstrap_sees_a_better_model_and_no_difference_of_equal_ones():
    rng = np.random.default_rng(2)
    labels = rng.random(400) < 0.5
    noise = [rng.normal(size=400) for _ in range(3)]
    good = [Ranking(labels + n, labels) for n in noise]
    poor = [Ranking(0.3 * labels + n, labels) for n in noise]
    differences = bootstrap_means([good], [poor], [400], times=50)
    assert (differences > 0).all()
    expected = np.mean([g.auc() - p.auc() for g, p in zip(good, poor, strict=True)])
    assert abs(differences.mean() - expected) < 0.01
    assert (bootstrap_means([good], [good], [400], times=5) == 0).all()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("census")
    people = [person(i, education=f"education-{i % 3}") for i in range(300)]
    (path / "census-income.data").write_text(text(people))
    (path / "census-income.test").write_text(text(people[:80]))
    return path


@pytest.fixture(scope="module")
def source(folder):
    return CensusSource(folder, part="both")


def test_all_rows_fit_the_budget(source):
    budget = 250_000
    for row in ROWS[:3] + ROWS[-1:]:
        width = width_within(row, source.spec, budget)
        size = parameters(build_row(row, source.spec, width))
        assert size <= budget < parameters(build_row(row, source.spec, width + 1))
        assert size > 0.9 * budget, row.name
    with pytest.raises(ValueError, match="budget: expected enough for ShareBottom"):
        width_within(ROWS[0], source.spec, 10)


def test_the_averaged_model_of_one_step_is_the_trained_one(source):
    torch.manual_seed(0)
    model = build_row(ROWS[0], source.spec, 8)
    before = predict(model, source)
    trained = fit(model, source, Recipe(batch_size=300, epochs=1), quiet=True)
    assert np.array_equal(predict(trained, source), predict(model, source))
    assert not np.array_equal(predict(trained, source), before)


def test_rates_of_embeddings_and_codebooks_are_relative(source):
    def first_step(**rates):
        model = build_row(ROWS[-1], source.spec, 4)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        fit(model, source, Recipe(batch_size=300, epochs=1, hidden=0, **rates), quiet=True)
        return {
            name: float((parameter.detach() - old).abs().max())
            for (name, parameter), old in zip(model.named_parameters(), before, strict=True)
        }

    same = first_step(embedding_rate=1, codebook_rate=1)
    apart = first_step(embedding_rate=8, codebook_rate=0.25)
    assert max(same.values()) > 1e-3
    for name, change in apart.items():
        rate = 8 if name.startswith("embedding") else 0.25 if name.endswith("codebook") else 1
        assert change == pytest.approx(rate * same[name], rel=1e-3), name


def test_hidden_ids_are_unknown_ones(source):
    seen = []

    class Probe(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(2))

        def forward(self, sparse, sequences, user_index):
            seen.append(sparse.clone())
            return self.bias.expand(len(sparse), 2)

        def loss(self, logits, labels):
            return (logits - labels).square().sum()

    recipe = Recipe(batch_size=300, epochs=1, hidden=0.25)
    for _ in range(2):
        fit(Probe(), source, recipe, quiet=True)
    whole = source.train_batch(300, 0, 0).sparse
    hidden = (seen[0] == 0) & (whole != 0)
    assert torch.equal(seen[0][~hidden], whole[~hidden])
    assert float(hidden[whole != 0].float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(seen[0], seen[1])


def test_a_whole_run_and_its_continuation(folder, tmp_path, capsys):
    arguments = [
        "reproduce", "dtn-table3", "--data", f"census:{folder}", "--seeds", "2", "--epochs", "1",
        "--budget", "350000", "--out", str(tmp_path), "--quiet",
        "--rows", "ShareBottom", "TFI-GDCN", "DTN", "DTN-trim",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    table = json.loads((tmp_path / "table.json").read_text())
    names = [row["model"] for row in table["rows"]]
    assert names == ["ShareBottom", "TFI-GDCN", "DTN", "DTN-trim"]
    rows = {row["model"]: row for row in table["rows"]}
    assert rows["DTN-trim"]["parameters"] < rows["DTN"]["parameters"]
    assert rows["ShareBottom"]["income_relaimp"] in (None, pytest.approx(0, abs=1e-9))
    assert "| DTN |" in printed
    assert "0.9560" in printed
    assert "DTN - ShareBottom, income" in printed

    # The mean over both halves and both seeds, counted here from the stored scores.
    source = CensusSource(folder, part="both")
    labels = torch.cat([batch.labels for batch in source.test_batches(100)]).numpy() > 0.5
    halves = source.halves(labels[:, 0])
    expected = np.mean(
        [
            pairs_auc(np.load(tmp_path / "runs" / f"DTN-{seed}.npy")[rows_, 1], labels[rows_, 1])
            for seed in range(2)
            for rows_ in halves
        ]
    )
    assert rows["DTN"]["never_married_auc"] == pytest.approx(expected, abs=1e-6)

    halves = np.array(next(row for row in table["rows"] if row["model"] == "DTN")["auc_of_halves"])
    assert halves.shape == (2, 2, 2)
    assert halves[:, 1].mean() == pytest.approx(expected, abs=1e-6)

    stamp = (tmp_path / "runs" / "DTN-0.json").stat().st_mtime_ns
    assert cli.main(arguments) == 0
    assert (tmp_path / "runs" / "DTN-0.json").stat().st_mtime_ns == stamp


def test_each_row_has_its_own_recipe_unless_one_is_given(folder, tmp_path):
    arguments = [
        "reproduce", "dtn-table3", "--data", f"census:{folder}", "--quiet", "--seeds", "1",
        "--budget", "200000", "--out", str(tmp_path), "--rows", "ShareBottom", "DTN",
    ]  # fmt: skip

    def recipes():
        assert cli.main(arguments) == 0
        rows = json.loads((tmp_path / "table.json").read_text())["rows"]
        return {row["model"]: row["settings"]["recipe"] for row in rows}

    own = recipes()
    for row in (ROWS[0], ROWS[-1]):
        assert {**own[row.name], **row.own} == own[row.name] == asdict(row.recipe)
    assert own["ShareBottom"] != own["DTN"]
    arguments += ["--epochs", "1"]
    given = recipes()
    assert given["ShareBottom"] == given["DTN"] == asdict(Recipe(epochs=1))


def test_what_another_architecture_left_is_trained_again(folder, tmp_path):
    arguments = [
        "reproduce", "dtn-table3", "--data", f"census:{folder}", "--quiet", "--seeds", "1",
        "--budget", "100000", "--out", str(tmp_path), "--rows", "ShareBottom", "--epochs", "1",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    path = tmp_path / "runs" / "ShareBottom-0.json"
    run = json.loads(path.read_text())
    run["settings"]["options"]["head"]["bottom_units"][0] += 1
    path.write_text(json.dumps(run))
    assert cli.main(arguments) == 0
    again = json.loads(path.read_text())["settings"]["options"]["head"]["bottom_units"]
    assert again[0] == run["settings"]["options"]["head"]["bottom_units"][0] - 1


def test_trimming_is_made_up_for_after_an_interruption(folder, tmp_path):
    arguments = [
        "reproduce", "dtn-table3", "--data", f"census:{folder}", "--seeds", "1", "--epochs", "1",
        "--budget", "200000", "--out", str(tmp_path), "--quiet", "--rows", "DTN-trim",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"DTN-0.json", "DTN-0.npy", "DTN-trim-0.json", "DTN-trim-0.npy"}
    (tmp_path / "runs" / "DTN-trim-0.json").unlink()
    assert cli.main(arguments) == 0
    assert (tmp_path / "runs" / "DTN-trim-0.json").is_file()


def test_held_out_rows_are_scored_instead_of_the_test_file(folder, tmp_path):
    arguments = [
        "reproduce", "dtn-table3", "--data", f"census:{folder}", "--seeds", "1", "--quiet",
        "--budget", "100000", "--out", str(tmp_path), "--rows", "ShareBottom", "--hold-out",
        "--epochs", "1", "--batch-size", "64", "--learning-rate", "0.01",
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    settings = json.loads((tmp_path / "table.json").read_text())["rows"][0]["settings"]
    assert settings["samples"] == [240, 60]
    assert (settings["recipe"]["batch_size"], settings["recipe"]["learning_rate"]) == (64, 0.01)
    assert len(np.load(tmp_path / "runs" / "ShareBottom-0.npy")) == 60


def test_trees_learn_each_task_and_repeat(source):
    pytest.importorskip("lightgbm")
    scores = boosting.boosted_scores(source, seed=1, rounds=60)
    labels = next(iter(source.test_batches(100))).labels.numpy() > 0.5
    assert scores.shape == labels.shape
    # Income depends on i % 4, of which the fields tell whether it is even; the other on i % 3.
    income, never_married = (Ranking(scores[:, task], labels[:, task]).auc() for task in range(2))
    assert income > 0.7
    assert never_married > 0.95
    assert np.array_equal(boosting.boosted_scores(source, seed=1, rounds=60), scores)


def test_a_missing_lightgbm_is_explained(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(boosting, "find_spec", lambda name: None)
    base = ["reproduce", "dtn-table3", "--data", f"census:{folder}", "--out", str(tmp_path)]
    assert cli.main([*base, "--rows", "LightGBM"]) == 2
    assert "--rows: the row LightGBM needs: pip install" in capsys.readouterr().err
    with pytest.raises(ImportError, match="the row LightGBM needs: pip install"):
        boosting.boosted_scores(CensusSource(folder, part="both"))

    every = ["--seeds", "1", "--epochs", "1", "--budget", "350000", "--quiet"]
    assert cli.main([*base, *every]) == 0
    printed = capsys.readouterr()
    assert "LightGBM is left out: the row LightGBM needs: pip install" in printed.err
    assert "| DTN-trim |" in printed.out
    assert "| LightGBM |" not in printed.out


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "synthetic:tenrec"], "--data: expected census or census:PATH"),
        (["--seeds", "0"], "--seeds: expected at least 1, found 0"),
        (["--epochs", "0"], "epochs: expected at least 1, found 0"),
        (["--learning-rate", "0"], "learning_rate: expected a positive number, found 0.0"),
        (["--rows", "DTM"], "rows: expected some of"),
    ],
)
def test_mistakes_are_explained(folder, tmp_path, capsys, extra, message):
    base = ["reproduce", "dtn-table3", "--data", f"census:{folder}", "--out", str(tmp_path)]
    assert cli.main([*base, *extra]) == 2
    assert message in capsys.readouterr().err
