"""`mtlfast analyze`: every analysis on small trained runs, its files, and its errors."""

from __future__ import annotations

import csv
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from mtlfast import cli
from mtlfast.commands import analyze

ANALYSES = [module.NAME for module in analyze.ANALYSES]
COMMON = [
    "--batch-size", "256", "--max-steps", "2", "--accelerator", "cpu", "--threads", "1", "--quiet",
]  # fmt: skip
DATA = [
    "--data", "synthetic:tenrec", "--data-options", "num_users=300", "num_items=500",
    "train_samples=512", "test_samples=640",
]  # fmt: skip
FIM = "{name: memonet, num_codewords: 50}"
MODELS = {
    "dtrn": ["embed_dim=8"],
    "dtn": ["embed_dim=4", "output_dim=8", f"interactions=[masknet, {FIM}, gdcn]"],
}


@pytest.fixture(scope="module", autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a run of each model, two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    for name, options in MODELS.items():
        command = ["train", "--model", name, *DATA, *COMMON, "--run-dir", str(folder / name)]
        assert cli.main([*command, "--model-options", *options]) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path, capsys):
    """`run("importance", "dtn", ...)`: the printed text; results in tmp_path."""

    def call(analysis: str, name: str, *options: str) -> str:
        arguments = ["analyze", analysis, str(runs / name), "--quiet", *options]
        assert cli.main([*arguments, "--output", str(tmp_path)]) == 0
        return capsys.readouterr().out

    return call


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("name", ANALYSES)
def test_help_teaches_with_examples(capsys, name):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["analyze", name, "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: mtlfast analyze {name} " in text
    assert "examples:" in text


def examples() -> list[str]:
    lines = "".join(module.EXAMPLES for module in analyze.ANALYSES).replace("\\\n", " ")
    return re.findall(r"^ *mtlfast (.*)$", lines, re.MULTILINE)


@pytest.mark.parametrize("example", examples())
def test_examples_parse(example):
    cli.build_parser().parse_all(shlex.split(example))


def test_the_overview_lists_every_analysis(capsys):
    with pytest.raises(SystemExit):
        cli.main(["analyze", "--help"])
    text = capsys.readouterr().out
    for name in ANALYSES:
        assert re.search(rf"\n    {name}\s", text)


def test_importance(run, runs, tmp_path, capsys):
    text = run("importance", "dtrn", "--repeats", "2", "--seed", "3")
    rows = read_csv(tmp_path / "importance.csv")
    assert len(rows) == 4 * (5 + 5)
    first = [row for row in rows if row["task"] == "click"]
    assert first[0]["rank"] == "1"
    importances = [float(row["importance"]) for row in first]
    assert importances == sorted(importances, reverse=True)
    assert {row["kind"] for row in rows} == {"field", "sequence"}
    assert first[0]["feature"] in text
    record = json.loads((tmp_path / "importance.json").read_text())
    assert (record["repeats"], record["seed"], record["samples"]) == (2, 3, 640)
    assert is_png(tmp_path / "importance.png")
    assert not list(tmp_path.glob(".*"))  # nothing half written

    # The base is what `mtlfast evaluate` says.
    assert cli.main(["evaluate", "--checkpoint", str(runs / "dtrn"), "--quiet"]) == 0
    (file,) = (runs / "dtrn").glob("evaluation-*.json")
    metrics = json.loads(file.read_text())["metrics"]
    for task, auc in zip(record["tasks"], record["base_auc"], strict=True):
        assert auc == (
            None if metrics[task]["auc"] is None else pytest.approx(metrics[task]["auc"])
        )


def test_importance_of_some_features_on_some_batches(run, tmp_path):
    options = ["--max-batches", "2", "--features", "item_id", "age", "--memory", "1"]
    run("importance", "dtn", *options)
    record = json.loads((tmp_path / "importance.json").read_text())
    assert record["samples"] == 512
    assert [feature["name"] for feature in record["features"]] == ["item_id", "age"]


def test_results_go_into_the_run_by_default(runs, capsys):
    arguments = ["importance", str(runs / "dtn"), "--features", "age", "--max-batches", "1"]
    assert cli.main(["analyze", *arguments]) == 0
    captured = capsys.readouterr()
    assert "permuting" in captured.err  # the progress bar
    assert str(runs / "dtn" / "analysis" / "importance.csv") in captured.out
    assert is_png(runs / "dtn" / "analysis" / "importance.png")


def test_divergence_measures_once(run, tmp_path):
    tasks = ["--tasks", "click", "like"]
    text = run("divergence", "dtn", *tasks)
    assert "measured before" not in text
    rows = read_csv(tmp_path / "divergence.csv")
    assert len(rows) == 5
    assert set(rows[0]) == {
        "feature", "click_importance", "click_rank", "like_importance", "like_rank",
        "rank_difference",
    }  # fmt: skip
    differences = [int(row["rank_difference"]) for row in rows]
    assert differences == sorted(differences, reverse=True)
    assert is_png(tmp_path / "divergence.png")
    again = run("divergence", "dtn", *tasks)
    assert "measured before" in again
    assert read_csv(tmp_path / "divergence.csv") == rows
    assert "measured before" not in run("divergence", "dtn", *tasks, "--seed", "1")


def test_relaimp_of_runs_files_and_numbers(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dtn, dtrn = runs / "dtn", runs / "dtrn"
    others = [str(dtrn), f"table={dtrn / 'metrics.csv'}", "guess=0.5,0.5,0.5,0.5"]
    arguments = ["analyze", "relaimp", "--base", f"b={dtn}", "--model", *others]
    assert cli.main([*arguments, "--output", "out/r.csv"]) == 0
    rows = read_csv(Path("out/r.csv"))
    assert is_png(Path("out/r.png"))
    metrics = [json.loads((r / "results.json").read_text())["metrics"] for r in (dtn, dtrn)]
    for row in rows:
        if row["model"] == "guess":
            expected = -100.0 if row["relaimp"] else None
        else:
            base, auc = (m[row["task"]]["auc"] for m in metrics)
            known = base is not None and auc is not None and base > 0.5
            expected = ((auc - 0.5) / (base - 0.5) - 1) * 100 if known else None
        assert (float(row["relaimp"]) if row["relaimp"] else None) == pytest.approx(expected)
    assert [row["model"] for row in rows[::4]] == ["dtrn", "table", "guess"]


def test_relaimp_of_published_numbers(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["analyze", "relaimp", "--base", "S=0.9361,0.9915", "--model", "D=0.9560,0.9952"]
    assert cli.main([*arguments, "--tasks", "income", "never_married"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"income .*\+4\.56 %", text)
    assert re.search(r"never_married .*\+0\.75 %", text)
    assert [float(row["relaimp"]) for row in read_csv(Path("relaimp.csv"))] == pytest.approx(
        [4.5632, 0.7528], abs=1e-4
    )


def test_gates(run, tmp_path):
    text = run("gates", "dtn")
    rows = read_csv(tmp_path / "gates.csv")
    assert len(rows) == 4 * (3 + 4 * 3)
    for task in ("click", "share"):
        for gate, count in (("own", 3), ("other", 12)):
            means = [float(r["mean"]) for r in rows if (r["task"], r["gate"]) == (task, gate)]
            assert len(means) == count
            assert sum(means) == pytest.approx(1, abs=1e-5)
    assert {row["samples"] for row in rows} == {"640"}
    assert is_png(tmp_path / "gates.png")
    assert "masknet" in text
    assert len(run("gates", "dtrn", "--max-batches", "1").splitlines()) == 2 + 4 * 4


def test_tsne(run, tmp_path):
    options = ["--samples", "12", "--max-batches", "2", "--seed", "1"]
    text = run("tsne", "dtrn", *options, "--min-length", "2")
    assert "4 x 12 = 48 vectors" in text
    rows = read_csv(tmp_path / "tsne.csv")
    assert {row["view"] for row in rows} == {"interests-click", "bottom"}
    assert len(rows) == 2 * 4 * 12
    assert {row["series"] for row in rows} == {"click", "follow", "like", "share"}
    assert is_png(tmp_path / "tsne.png")
    run("tsne", "dtn", *options, "--views", "gdcn")
    assert len(read_csv(tmp_path / "tsne.csv")) == 5 * 12
    text = run("tsne", "dtn", "--views", "list")
    for name in ("masknet", "memonet", "gdcn", "group-shared"):
        assert name in text


def test_significance(run, runs, tmp_path, capsys):
    base = ["--base", str(runs / "dtn"), "--times", "60", "--seed", "1"]
    text = run("significance", "dtrn", *base)
    rows = read_csv(tmp_path / "significance.csv")
    metrics = [json.loads((runs / n / "results.json").read_text())["metrics"] for n in MODELS]
    for row in rows:
        mine, other = (m[row["task"]][row["metric"]] for m in metrics)
        assert float(row["value"]) == pytest.approx(mine, abs=1e-6)
        assert float(row["base_value"]) == pytest.approx(other, abs=1e-6)
        assert float(row["low"]) < float(row["high"])
    assert len(rows) == 8 - sum(m["auc"] is None for m in metrics[0].values())
    assert "dtrn against dtn" in text
    assert is_png(tmp_path / "significance.png")
    same = run("significance", "dtn", *base)
    assert {row["p"] for row in read_csv(tmp_path / "significance.csv")} == {"1.0"}
    assert "*" not in same
    elsewhere = ["--data-options", "num_users=300", "num_items=500", "test_samples=640", "seed=1"]
    arguments = ["analyze", "significance", str(runs / "dtrn"), *base, "--output", str(tmp_path)]
    assert cli.main([*arguments, *elsewhere, "--quiet"]) == 0  # other data, the same for both


def test_occurrences(tmp_path, capsys):
    options = [*DATA, "--batch-size", "256", "--quiet", "--output", str(tmp_path)]
    assert cli.main(["analyze", "occurrences", *options]) == 0
    rows = read_csv(tmp_path / "occurrences.csv")
    assert [row["sequence"] for row in rows[::4]] == [
        "click", "follow", "like", "share", "negative",
    ]  # fmt: skip
    assert {row["key"] for row in rows} == {"video_category"}
    assert {row["samples"] for row in rows} == {"512"}
    assert is_png(tmp_path / "occurrences.png")
    assert f"{float(rows[0]['mean']):.3f}" in capsys.readouterr().out
    options += ["--key", "item", "--part", "test", "--max-batches", "1"]
    assert cli.main(["analyze", "occurrences", *options]) == 0
    by_item = read_csv(tmp_path / "occurrences.csv")
    assert {(row["key"], row["samples"]) for row in by_item} == {("item", "256")}
    assert float(by_item[0]["mean_of_all"]) < float(rows[0]["mean_of_all"])


def test_occurrences_beside_the_paper(tmp_path, capsys):
    data = ["--data", "synthetic:ecommerce", "--max-batches", "1", "--batch-size", "256"]
    assert cli.main(["analyze", "occurrences", *data, "--quiet", "--output", str(tmp_path)]) == 0
    rows = read_csv(tmp_path / "occurrences.csv")
    assert [row["published"] for row in rows[-4:]] == ["1.56", "2.0", "2.57", "1.3"]
    assert f"{float(rows[0]['mean']):.3f} (1.24)" in capsys.readouterr().out


def test_statistics(tmp_path, capsys):
    options = [*DATA, "--batch-size", "256", "--quiet", "--output", str(tmp_path)]
    assert cli.main(["analyze", "statistics", *options]) == 0
    rows = {(row["quantity"], row["name"]): row for row in read_csv(tmp_path / "statistics.csv")}
    samples = rows["samples", ""]
    assert [samples[part] for part in ("train", "test", "all")] == ["512", "640", "1152"]
    assert (samples["published_train"], samples["published_all"]) == ("", "117551246")
    users = rows["users", "user_id"]
    assert max(int(users["train"]), int(users["test"])) < int(users["all"]) <= 300
    assert users["published_all"] == "993554"
    assert int(rows["positives", "click"]["all"]) == sum(
        int(rows["positives", "click"][part]) for part in ("train", "test")
    )
    assert rows["mean_length", "total"]["published_all"].startswith("22.62")
    assert rows["distinct_ids", "gender"]["all"] == "3"
    assert is_png(tmp_path / "statistics.png")
    printed = capsys.readouterr().out
    assert "published: DTRN (CIKM 2023), Table 3" in printed
    assert f"{float(rows['mean_length', 'click']['all']):.2f}" in printed
    options += ["--part", "test", "--max-batches", "1"]
    assert cli.main(["analyze", "statistics", *options]) == 0
    rows = {(row["quantity"], row["name"]): row for row in read_csv(tmp_path / "statistics.csv")}
    assert (rows["samples", ""]["train"], rows["samples", ""]["test"]) == ("", "256")


def test_a_model_without_gates(runs, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    model = ["--model", "mtl", "--model-options", "embed_dim=4", "head.name=share_bottom"]
    folder = str(tmp_path / "run")
    assert cli.main(["train", *model, *DATA, *COMMON, "--run-dir", folder]) == 0
    assert cli.main(["analyze", "gates", folder]) == 2
    assert "found MTL with the head ShareBottom" in capsys.readouterr().err
    assert not (tmp_path / "run" / "analysis").exists()


MISTAKES = [
    (["significance", "{dtn}", "--base", "{dtn}", "--times", "0"], "--times: expected at least 1"),
    (["significance", "{dtn}", "--base", "absent"], "absent: no such checkpoint or run folder"),
    (["occurrences", "--key", "hour"], "--key: expected one of item, user_id, item_id, video"),
    (["occurrences", "--max-batches", "0"], "--max-batches: expected at least 1"),
    (["statistics", "--max-batches", "0"], "--max-batches: expected at least 1"),
    (["statistics", "--data", "tenrec"], "data source: expected tenrec:PATH"),
    (["importnace"], "did you mean importance?"),
    (["importance", "absent"], "absent: no such checkpoint or run folder"),
    (["importance", "{dtn}", "--features", "agee"], "features: expected some of user_id, item_id"),
    (["importance", "{dtn}", "--repeats", "0"], "--repeats: expected at least 1, found 0"),
    (["importance", "{dtn}", "--memory", "0"], "--memory: expected at least 1, found 0"),
    (["importance", "{dtn}", "--max-batches", "0"], "--max-batches: expected at least 1"),
    (["importance", "{dtn}", "--repeat", "2"], "--repeat, did you mean --repeats?"),
    (["importance", "{dtn}", "--data", "synthetic:ecommerce"], "was trained on other data"),
    (["divergence", "{dtn}", "--tasks", "click", "buy"], "expected two different ones of"),
    (["divergence", "{dtn}", "--tasks", "like", "like"], "found like and like"),
    (
        ["relaimp", "--base", "0.7,0.8", "--model", "0.7"],
        "expected the tasks task1, task2",
    ),
    (["relaimp", "--base", "0.7", "--model", "rusn"], "expected an existing run folder"),
    (["relaimp", "--base", "0.7", "--model", "1.7"], "expected AUCs from 0 to 1, found 1.7"),
    (["relaimp", "--base", "0.7", "--model", "a=0.7", "a=0.8"], "found a twice"),
    (["relaimp", "--base", "0.7", "--model", "0.8", "--tasks", "a", "b"], "expected 2 numbers"),
    (["relaimp", "--base", ".", "--model", "0.8"], "has the run come to its end?"),
    (["relaimp", "--base", "{dtn}/train.csv", "--model", "0.8"], "expected metrics as"),
]


@pytest.mark.parametrize(
    ("arguments", "text"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_mistakes_are_explained(arguments, text, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [argument.replace("{dtn}", str(runs / "dtn")) for argument in arguments]
    arguments = [argument.replace("{dtrn}", str(runs / "dtrn")) for argument in arguments]
    try:
        status = cli.main(["analyze", *arguments])
    except SystemExit as stopped:
        status = stopped.code
    assert status == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.startswith("mtlfast analyze")
    assert not list(tmp_path.iterdir())
