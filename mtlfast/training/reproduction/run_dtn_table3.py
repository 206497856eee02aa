"""Trains the rows of DTN's Table 3 on Census-Income, seed by seed, and makes the table."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlfast.data import CensusSource, DatasetSpec
from mtlfast.models import trim
from mtlfast.training.files import write_atomically, write_csv, write_json, write_text
from mtlfast.training.reproduction.auc import Ranking, bootstrap_means
from mtlfast.training.reproduction.boosting import LIGHTGBM, boosted_scores, lightgbm_available
from mtlfast.training.reproduction.dtn_table3 import (
    BASE,
    BUDGET,
    DTN,
    ROWS,
    TRIMMED,
    Row,
    build_row,
    parameters,
    width_within,
)
from mtlfast.training.reproduction.fit import Recipe, fit, predict

__all__ = ["reproduce"]

_GATE_BATCHES = 20
_NAMES = (*(row.name for row in ROWS), TRIMMED, LIGHTGBM)
_PUBLISHED = {row.name: row.published for row in ROWS}
COLUMNS = (
    "model",
    "parameters",
    "seeds",
    "income_auc",
    "income_sd",
    "income_relaimp",
    "income_published",
    "never_married_auc",
    "never_married_sd",
    "never_married_relaimp",
    "never_married_published",
)


class _Evaluation:
    """The two halves of the test file; scores of any model on them."""

    def __init__(self, source: CensusSource) -> None:
        batches = list(source.test_batches(8192))
        self.labels = torch.cat([batch.labels for batch in batches]).numpy() > 0.5
        self.halves = source.halves(self.labels[:, 0])

    def rankings(self, logits: NDArray[np.float64], task: int) -> list[Ranking]:
        return [Ranking(logits[rows, task], self.labels[rows, task]) for rows in self.halves]

    def aucs(self, logits: NDArray[np.float64]) -> list[list[float]]:
        """Per task the AUC of each half."""
        tasks = range(self.labels.shape[1])
        return [[ranking.auc() for ranking in self.rankings(logits, task)] for task in tasks]


def reproduce(
    source: CensusSource,
    out: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    recipe: Recipe | None = None,
    budget: int = BUDGET,
    rows: Sequence[str] | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train what is not trained yet, and write ``table.json``, ``table.csv`` and ``table.md``.

    Every model is trained on all of the training file, as wide as ``budget`` allows; its AUC is the
    mean over the two halves of the test file.
    DTN-trim is DTN of the same seed without its least used module, trained for one more epoch at a
    tenth of the learning rate. LightGBM, where it is installed, is one model of trees per task.

    Args:
        source: Census-Income with ``part="both"``.
        out: folder for scores and tables; what it holds is not computed again.
        seeds: one model per row and seed.
        recipe: how to train all rows; each row's own when None.
        budget: the most parameters of a network.
        rows: names of the rows to train; all when None.
    """
    out = Path(out)
    evaluation = _Evaluation(source)
    unknown = set(rows or ()) - set(_NAMES)
    if unknown:
        raise ValueError(f"rows: expected some of {list(_NAMES)}, found {sorted(unknown)}")
    if rows is None:
        rows = [name for name in _NAMES if name != LIGHTGBM or lightgbm_available()]
    if TRIMMED in rows:
        rows = [*rows, DTN]  # which it is made of
    chosen = [row for row in ROWS if row.name in rows]
    samples = [source.num_train_samples, source.num_test_samples]
    runs = _Runs(out, source.spec, budget, samples, recipe)
    for seed in seeds:
        shuffled = source.with_seed(seed)
        if LIGHTGBM in rows and not (store := runs.store(LIGHTGBM, seed)).done():
            begun = time.perf_counter()
            scores = boosted_scores(shuffled, seed)
            store.save(scores, evaluation, None, time.perf_counter() - begun)
        for row in chosen:
            store, trimmed = runs.store(row.name, seed), runs.store(TRIMMED, seed)
            trims = row.name == DTN and TRIMMED in rows
            if store.done() and (trimmed.done() or not trims):
                continue
            how = runs.recipe(row)
            model = build_row(row, source.spec, runs.width(row), seed)
            begun = time.perf_counter()
            trained = fit(model, shuffled, how, label=f"{row.name}, seed {seed}", quiet=quiet)
            logits = predict(trained, source)
            store.save(logits, evaluation, parameters(model), time.perf_counter() - begun)
            if not trims:
                continue
            batches = islice(shuffled.train_batches(how.batch_size), _GATE_BATCHES)
            smaller = trim(trained, 1, batches=batches)  # type: ignore[arg-type]  # it is a DTN
            more = replace(how, epochs=1, learning_rate=how.learning_rate / 10)
            begun = time.perf_counter()
            label = f"{TRIMMED}, seed {seed}"
            logits = predict(fit(smaller, shuffled, more, label=label, quiet=quiet), source)
            trimmed.save(logits, evaluation, parameters(smaller), time.perf_counter() - begun)
    return _write_table(runs, evaluation, seeds)


class _Runs:
    """Which settings the rows have, and where their results lie."""

    def __init__(
        self, out: Path, spec: DatasetSpec, budget: int, samples: list[int], recipe: Recipe | None
    ) -> None:
        self.out, self.spec, self.budget, self.samples = out, spec, budget, samples
        self._recipe = recipe
        self._widths: dict[str, int] = {}

    def recipe(self, row: Row) -> Recipe:
        return row.recipe if self._recipe is None else self._recipe

    def width(self, row: Row) -> int:
        """As wide as the budget allows."""
        if row.name not in self._widths:
            self._widths[row.name] = width_within(row, self.spec, self.budget)
        return self._widths[row.name]

    def settings(self, name: str) -> dict[str, Any]:
        """All that the scores of a row depend on, the seed aside."""
        if name == LIGHTGBM:
            return {"samples": self.samples}
        row = next(row for row in ROWS if row.name == (DTN if name == TRIMMED else name))
        options = json.loads(json.dumps(row.options(self.width(row))))  # as they are read again
        recipe = asdict(self.recipe(row))
        return {"samples": self.samples, "recipe": recipe, "options": options}

    def store(self, name: str, seed: int) -> _Store:
        return _Store(self, name, seed)


class _Store:
    """Scores and metrics of one row and seed on disk."""

    def __init__(self, runs: _Runs, name: str, seed: int) -> None:
        self.json = runs.out / "runs" / f"{name}-{seed}.json"
        self.scores = runs.out / "runs" / f"{name}-{seed}.npy"
        self.runs, self.name, self.seed = runs, name, seed

    def read(self) -> dict[str, Any] | None:
        """What was saved by a run with the same settings."""
        if not (self.json.is_file() and self.scores.is_file()):
            return None
        content: dict[str, Any] = json.loads(self.json.read_text(encoding="utf-8"))
        return content if content["settings"] == self.runs.settings(self.name) else None

    def done(self) -> bool:
        return self.read() is not None

    def save(
        self,
        logits: NDArray[np.float64],
        evaluation: _Evaluation,
        size: int | None,
        seconds: float,
    ) -> None:
        write_atomically(self.scores, lambda file: np.save(file, logits.astype(np.float32)))
        content = {
            "model": self.name,
            "seed": self.seed,
            "parameters": size,
            "auc": evaluation.aucs(logits),
            "seconds": seconds,
            "settings": self.runs.settings(self.name),
        }
        write_json(self.json, content)


def _write_table(runs: _Runs, evaluation: _Evaluation, seeds: Sequence[int]) -> dict[str, Any]:
    found: dict[str, list[tuple[dict[str, Any], NDArray[np.float32]]]] = {}
    for name in _NAMES:
        stores = [runs.store(name, seed) for seed in seeds]
        done = [(run, np.load(s.scores)) for s in stores if (run := s.read()) is not None]
        if done:
            found[name] = done
    aucs = {  # per row [seeds, tasks], the mean over the halves
        name: np.array([run["auc"] for run, _ in done]).mean(axis=-1)
        for name, done in found.items()
    }
    base = aucs[BASE].mean(axis=0) if BASE in aucs else None
    lines = []
    for name, values in aucs.items():
        published = _PUBLISHED.get(name)
        cells: list[Any] = [name, found[name][0][0]["parameters"], len(values)]
        for task in range(values.shape[1]):
            mean = float(values[:, task].mean())
            spread = float(values[:, task].std(ddof=1)) if len(values) > 1 else None
            # Of a base that only guesses there is nothing to gain in percent.
            above = 0.0 if base is None else float(base[task]) - 0.5
            gain = 100 * ((mean - 0.5) / above - 1) if above else None
            cells += [mean, spread, gain, None if published is None else published[task]]
        lines.append(cells)
    table = {
        "budget": runs.budget,
        "samples": runs.samples,
        "rows": [
            {
                **dict(zip(COLUMNS, line, strict=True)),
                "settings": runs.settings(line[0]),
                # Per seed and task the AUC of each half.
                "auc_of_halves": [run["auc"] for run, _ in found[line[0]]],
            }
            for line in lines
        ],
        "dtn_minus_share_bottom": _compare(found, evaluation),
    }
    write_json(runs.out / "table.json", table)
    write_csv(runs.out / "table.csv", COLUMNS, lines)
    text = format_table(table)
    write_text(runs.out / "table.md", text + "\n")
    return table


def _compare(found: dict[str, Any], evaluation: _Evaluation) -> list[dict[str, float]] | None:
    """Per task the paired bootstrap of DTN against ShareBottom."""
    if DTN not in found or BASE not in found:
        return None
    results = []
    for task in range(evaluation.labels.shape[1]):
        rankings = []
        for name in (DTN, BASE):
            per_seed = [evaluation.rankings(scores, task) for _, scores in found[name]]
            rankings.append([list(half) for half in zip(*per_seed, strict=True)])
        sizes = [len(rows) for rows in evaluation.halves]
        differences = bootstrap_means(rankings[0], rankings[1], sizes)
        low, high = np.quantile(differences, [0.025, 0.975])
        results.append(
            {
                "mean": float(differences.mean()),
                "low": float(low),
                "high": float(high),
                "share_not_above": float((differences <= 0).mean()),
            }
        )
    return results


def format_table(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    lines = [
        "| model | parameters | seeds | income | RelaImp | paper "
        "| never married | RelaImp | paper |",
        "|---" * 9 + "|",
    ]
    for row in table["rows"]:
        size = row["parameters"]
        cells = [row["model"], "" if size is None else f"{size:,}", str(row["seeds"])]
        for task in ("income", "never_married"):
            spread, gain = row[f"{task}_sd"], row[f"{task}_relaimp"]
            published = row[f"{task}_published"]
            cells += [
                f"{row[f'{task}_auc']:.5f}" + ("" if spread is None else f" ± {spread:.5f}"),
                "" if gain is None else f"{gain:+.2f} %",
                "" if published is None else f"{published:.4f}",
            ]
        lines.append("| " + " | ".join(cells) + " |")
    for task, result in zip(
        ("income", "never married"), table["dtn_minus_share_bottom"] or (), strict=False
    ):
        lines.append(
            f"\nDTN - ShareBottom, {task}: {result['mean']:+.5f} "
            f"(95 % of paired resamplings in {result['low']:+.5f} to {result['high']:+.5f})"
        )
    return "\n".join(lines)
