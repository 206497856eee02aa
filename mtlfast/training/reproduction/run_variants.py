"""Trains variants of a model, seed by seed, and makes a table of their metrics."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtlfast.training.assemble import resume_training, start_training
from mtlfast.training.checkpoint import CheckpointError, find_checkpoint
from mtlfast.training.config import TrainConfig
from mtlfast.training.files import write_csv, write_json, write_text
from mtlfast.training.reproduction.variants import Variant

__all__ = ["COLUMNS", "format_table", "train_variants"]

COLUMNS = (
    "variant",
    "removed",
    "size",
    "parameters",
    "task",
    "auc",
    "auc_sd",
    "logloss",
    "logloss_sd",
    "seeds",
    "published_auc",
    "published_logloss",
    "relaimp",
    "published_relaimp",
    "auc_after_parent",
    "auc_after_parent_sd",
)
# What may differ between two runs with the same numbers.
_WITHOUT_EFFECT = frozenset(
    {"threads", "prefetch", "log_every", "checkpoint_every", "keep_checkpoints", "evaluate_every",
     "keep_best", "tensorboard", "start_from"}
)  # fmt: skip
# Settings that runs of earlier versions do not mention.
_ABSENT: Mapping[str, Any] = {"trim": 0}

Record = dict[str, Any]


def train_variants(
    variants: Sequence[Variant],
    config: TrainConfig,
    tasks: Sequence[str],
    out: str | Path,
    *,
    seeds: Iterable[int] = (0,),
    base: str | None = None,
    keep_models: bool = False,
    quiet: bool = False,
) -> list[Record]:
    """Train what is not trained yet, and write ``table.json``, ``table.csv`` and ``table.md``.

    Every variant and seed is a run of its own below ``out``; one that was stopped goes on where it
    stood, bit for bit.

    Args:
        variants: what to train.
        config: settings that all runs share; a variant's options come on top of its
            ``model_options``.
        tasks: of the data, before any is left out.
        out: folder for runs and table.
        seeds: one run per variant and seed.
        base: the variant over which RelaImp is given (DTN, arXiv 2408.11611, Eq. 8).
        keep_models: keep the weights of finished runs; their metrics stay in any case.
        quiet: no progress bars.

    Returns:
        The rows of the table, with the columns :data:`COLUMNS`.

    Raises:
        ValueError: if ``out`` holds runs with other settings.
        Interrupted: after Ctrl-C, once a checkpoint is on the disk.
    """
    out, seeds = Path(out), list(seeds)
    found: dict[str, list[Record]] = {}
    runs = [(variant, seed) for variant in variants for seed in seeds]
    for number, (variant, seed) in enumerate(runs, start=1):
        folder = _folder(out, variant.name, seed)
        wanted = _config_of(variant, seed, config, out)
        results = _finished(folder, wanted)
        # Those that are made of this one need its weights.
        waiting = [
            other
            for other in variants
            if other.trimmed_from == variant.name
            and _finished(_folder(out, other.name, seed), _config_of(other, seed, config, out))
            is None
        ]
        if results is None or (waiting and not _has_checkpoint(folder)):
            if not quiet:
                print(f"[{number} of {len(runs)}] {variant.name}, seed {seed}", flush=True)
            results = _train(folder, wanted, quiet)
            if not keep_models:
                done = [] if waiting else [folder]
                if variant.trimmed_from is not None:
                    done.append(_folder(out, variant.trimmed_from, seed))
                for run in done:
                    shutil.rmtree(run / "checkpoints", ignore_errors=True)
        found.setdefault(variant.name, []).append(results)
    rows = [row for v in variants for row in _rows(v, tasks, found[v.name])]
    _add_relaimp(rows, base)
    write_json(out / "table.json", {"config": config.to_dict(), "seeds": seeds, "rows": rows})
    write_csv(out / "table.csv", COLUMNS, [[row[name] for name in COLUMNS] for row in rows])
    text = format_table(rows) + "\n"
    write_text(out / "table.md", text)
    return rows


def _folder(out: Path, name: str, seed: int) -> Path:
    return out / "runs" / f"{_slug(name)}-{seed}"


def _has_checkpoint(folder: Path) -> bool:
    try:
        find_checkpoint(folder)
    except CheckpointError:
        return False
    return True


def _config_of(variant: Variant, seed: int, config: TrainConfig, out: Path) -> TrainConfig:
    data_options, options = dict(config.data_options), dict(config.model_options)
    for name, value in variant.options.items():
        shared = options.get(name)
        if isinstance(value, Mapping) and isinstance(shared, Mapping):
            value = {**shared, **value}
        options[name] = value
    if variant.removed is not None:
        data_options["without_tasks"] = [variant.removed]
    if variant.trimmed_from is not None:
        rate = config.embedding_learning_rate
        config = replace(
            config,
            start_from=str(_folder(out, variant.trimmed_from, seed)),
            trim=1,
            epochs=1,
            learning_rate=config.learning_rate / 10,
            embedding_learning_rate=None if rate is None else rate / 10,
        )
    return replace(
        config,
        model=variant.model,
        model_options=options,
        data_options=data_options,
        seed=seed,
    )


def _finished(folder: Path, wanted: TrainConfig) -> Record | None:
    """The results of a run that came to its end with these settings."""
    file = folder / "results.json"
    if not file.is_file():
        return None
    results: Record = json.loads(file.read_text(encoding="utf-8"))
    # Through JSON as well: tuples become lists.
    asked = json.loads(json.dumps(wanted.to_dict()))
    stored = dict(results["config"])
    if wanted.trim:  # which modules it is without was found out by training
        stored["model_options"] = {
            key: option for key, option in stored["model_options"].items() if key != "removed"
        }
    for name, value in asked.items():
        if name not in _WITHOUT_EFFECT and stored.get(name, _ABSENT.get(name)) != value:
            raise ValueError(
                f"out: expected a folder for {name} = {value!r}, found {folder} with "
                f"{stored.get(name)!r}; choose another with --out"
            )
    return results


def _train(folder: Path, config: TrainConfig, quiet: bool) -> Record:
    if _has_checkpoint(folder):
        asked = config.to_dict()
        if config.trim:
            # The run knows which modules it is without.
            del asked["model_options"], asked["start_from"]
        trainer = resume_training(folder, asked, quiet=quiet)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first checkpoint
        folder.mkdir(parents=True)
        trainer = start_training(config, folder, quiet=quiet)
    size = sum(parameter.numel() for parameter in trainer.model.parameters())
    results: Record = {**trainer.fit(), "parameters": size}
    write_json(folder / "results.json", results)
    return results


def _rows(variant: Variant, tasks: Sequence[str], runs: Sequence[Record]) -> list[Record]:
    rows = []
    for task in tasks:
        if task == variant.removed:
            continue
        cells = [run["metrics"][task] for run in runs]
        rows.append(
            {
                "variant": variant.name,
                "removed": variant.removed,
                "size": variant.size,
                "parameters": runs[0].get("parameters"),
                "task": task,
                **_mean(cells, "auc"),
                **_mean(cells, "logloss"),
                **_mean(cells, "auc_after_parent"),
                "seeds": len(runs),
                "published_auc": variant.paper(tasks, task),
                "published_logloss": variant.paper_logloss(tasks, task),
            }
        )
    return rows


def _mean(cells: Sequence[Mapping[str, Any]], name: str) -> Record:
    values = [cell[name] for cell in cells if cell.get(name) is not None]
    spread = statistics.stdev(values) if len(values) > 1 else None
    return {name: statistics.fmean(values) if values else None, f"{name}_sd": spread}


def _add_relaimp(rows: Sequence[Record], base: str | None) -> None:
    """RelaImp of every row over the base's row of the same task, as measured and as published."""
    of_base = {row["task"]: row for row in rows if row["variant"] == base}
    for row in rows:
        reference = of_base.get(row["task"], {})
        for name, auc in (("relaimp", "auc"), ("published_relaimp", "published_auc")):
            own, other = row[auc], reference.get(auc)
            if own is None or other is None or other <= 0.5:
                row[name] = None  # over a base that only guesses there is no gain in percent
            else:
                row[name] = 100 * ((own - 0.5) / (other - 0.5) - 1)


def format_table(rows: Sequence[Record]) -> str:
    """AUC in Markdown, one column per task, in brackets what was published.

    Behind it LogLoss where there is any published, the AUC of tasks that follow another among that
    one's positives, and RelaImp where there is a base.
    """
    texts = [_section(rows, "auc", _auc_text, with_size=True)]
    if any(row["published_logloss"] is not None for row in rows):
        texts.append(_section(rows, "logloss", _logloss_text, title="LogLoss"))
    if any(row["auc_after_parent"] is not None for row in rows):
        funnel = [row for row in rows if row["auc_after_parent"] is not None]
        title = "AUC among the positives of the task before"
        texts.append(_section(funnel, "auc_after_parent", _auc_text, title=title))
    if any(row["relaimp"] is not None for row in rows):
        texts.append(_section(rows, "relaimp", _percent, title="RelaImp"))
    if any(row["published_auc"] is not None for row in rows):
        texts.append("In brackets the paper's numbers, on its own data: only the order compares.")
    return "\n\n".join(texts)


def _section(
    rows: Sequence[Record],
    name: str,
    text: Callable[[float], str],
    *,
    title: str = "",
    with_size: bool = False,
) -> str:
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    heads = [title, *(["parameters"] if with_size else []), *tasks]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = {row["task"]: row for row in rows if row["variant"] == variant}
        size = next(iter(cells.values()))["parameters"]
        sizes = ["" if size is None else f"{size:,}"] if with_size else []
        texts = [_cell(cells[task], name, text) if task in cells else "–" for task in tasks]
        lines.append("| " + " | ".join([variant, *sizes, *texts]) + " |")
    return "\n".join(lines)


def _cell(row: Record, name: str, text: Callable[[float], str]) -> str:
    found = "n/a" if row[name] is None else text(row[name])
    if row.get(f"{name}_sd") is not None:
        found += f" ± {text(row[f'{name}_sd'])}"
    published = row.get(f"published_{name}")
    return found if published is None else f"{found} ({text(published)})"


def _auc_text(value: float) -> str:
    return f"{value:.4f}"


def _logloss_text(value: float) -> str:
    return f"{value:.6f}"


def _percent(value: float) -> str:
    return f"{value:+.2f} %"


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
