"""`mtlfast analyze importance`: permutation importance of every feature, per task."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlfast.commands.analyses.trained import (
    Trained,
    add_run_arguments,
    open_run,
    say_written,
    write_figure,
)

if TYPE_CHECKING:
    from mtlfast.analysis import Importance

NAME = "importance"
USAGE = "RUN [--repeats N] [--seed N] [--features NAME ...] [--max-batches N] [settings]"
PASSES_ON = False
HELP = "AUC that each task loses when one feature is permuted"
DESCRIPTION = """\
Permutation importance of every sparse field, and of every behavior sequence for models
that read histories: the feature's values are permuted over the whole test part, nothing
is retrained, and the AUC that each task loses is the importance (DTN, Eq. 1-2). Mean and
standard deviation over --repeats permutations.

Writes importance.csv (a row per task and feature, best first), importance.png and
importance.json, which `mtlfast analyze divergence` reads. The test part is streamed;
--memory bounds what is held besides, and does not change the numbers.
"""
EXAMPLES = """\
examples:
  five permutations of every feature
    mtlfast analyze importance runs/dtn-census-001 --repeats 5 --seed 0

  a quick look: ten batches, two features
    mtlfast analyze importance runs/dtn-census-001 --max-batches 10 --features age sex
"""
COLUMNS = ("task", "rank", "feature", "kind", "importance", "sd", "base_auc", "repeats", "samples")
_MIB = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run_arguments(parser)
    add_measuring_arguments(parser)
    parser.add_argument("--top", type=int, default=20, metavar="N", help="features to show")


def add_measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how to permute."""
    parser.add_argument(
        "--repeats", type=int, default=1, metavar="N", help="permutations per feature (default: 1)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the permutations (default: 0)"
    )
    parser.add_argument(
        "--features", nargs="+", metavar="NAME", help="measure only these (default: all)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=1024,
        metavar="MIB",
        help="for columns and scores; less means more passes over the data (default: 1024)",
    )


def run(options: argparse.Namespace) -> int:
    """Measure, print, write."""
    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, found {options.top}")
    trained = open_run(options)
    found = measure(trained, options)
    print(format_importance(found, options.top))
    say_written(write_importance(trained, found, options.top))
    return 0


def measure(trained: Trained, options: argparse.Namespace) -> Importance:
    """Permutation importance as the options say, with a progress bar."""
    from mtlfast.analysis import features_of, permutation_importance

    if options.memory < 1:
        raise ValueError(f"--memory: expected at least 1, found {options.memory}")
    if options.repeats < 1:
        raise ValueError(f"--repeats: expected at least 1, found {options.repeats}")
    features = features_of(trained.model, trained.spec, options.features)
    total = trained.batches.samples * (1 + len(features) * options.repeats)
    progress = trained.progress(total, "permuting")
    try:
        return permutation_importance(
            trained.model,
            trained.batches,
            trained.spec,
            features=features,
            repeats=options.repeats,
            seed=options.seed,
            memory=options.memory * _MIB,
            device=trained.device,
            autocast=trained.autocast,
            on_samples=progress.advance,
        )
    finally:
        progress.close()


def request(trained: Trained, options: argparse.Namespace) -> dict[str, Any]:
    """What importance.json says of its origin where it holds the answer to these options."""
    from mtlfast.analysis import features_of

    features = features_of(trained.model, trained.spec, options.features)
    return {
        **trained.origin(),
        "seed": options.seed,
        "repeats": options.repeats,
        "features": [feature.to_record() for feature in features],
    }


def write_importance(trained: Trained, found: Importance, top: int = 20) -> list[Path]:
    """importance.csv, .json and .png in the folder of the results."""
    from mtlfast.analysis.figures.importance import draw_importance
    from mtlfast.training.files import write_csv, write_json

    paths = [trained.output / f"importance.{kind}" for kind in ("csv", "json", "png")]
    write_csv(paths[0], COLUMNS, importance_rows(found))
    write_json(paths[1], {**trained.origin(), **found.to_record()})
    write_figure(paths[2], draw_importance(found, title=trained.title, top=top))
    return paths


def importance_rows(found: Importance) -> list[list[Any]]:
    """A row per task and feature in the order of :data:`COLUMNS`, best first."""
    mean, sd, ranks = found.mean, found.sd, found.ranks
    rows: list[list[Any]] = []
    for t, task in enumerate(found.tasks):
        measured = not math.isnan(found.base[t])
        order = sorted(
            range(len(found.features)), key=lambda f: int(ranks[f, t]) if measured else f
        )
        for f in order:
            feature = found.features[f]
            rows.append(
                [
                    task,
                    int(ranks[f, t]) if measured else None,
                    feature.name,
                    feature.kind,
                    number(mean[f, t]),
                    number(sd[f, t]),
                    number(found.base[t]),
                    found.drops.shape[1],
                    found.samples,
                ]
            )
    return rows


def format_importance(found: Importance, top: int) -> str:
    """A table for people: the features that matter to any task, best first."""
    mean, sd, ranks = found.mean, found.sd, found.ranks
    measured = [t for t in range(len(found.tasks)) if not math.isnan(found.base[t])]
    best = sorted(
        range(len(found.features)),
        key=lambda f: (min((int(ranks[f, t]) for t in measured), default=0), f),
    )[:top]
    width = max(7, *(len(found.features[f].name) for f in best))
    cells = [max(len(task), 26) for task in found.tasks]
    head = "  ".join(f"{task:>{c}}" for task, c in zip(found.tasks, cells, strict=True))
    lines = [f"{'feature':<{width}}  {head}"]
    aucs = [f"AUC {_text(auc, '.4f')}" for auc in found.base]
    second = "  ".join(f"{text:>{c}}" for text, c in zip(aucs, cells, strict=True))
    lines.append(f"{'':<{width}}  {second}")
    for f in best:
        texts = []
        for t, cell in enumerate(cells):
            spread = "" if math.isnan(sd[f, t]) else f" ± {sd[f, t]:.4f}"
            rank = f"#{ranks[f, t]}" if t in measured else ""
            text = f"{_text(mean[f, t], '.4f')}{spread}  {rank:>4}"
            texts.append(f"{text:>{cell}}")
        lines.append(f"{found.features[f].name:<{width}}  {'  '.join(texts)}")
    left = len(found.features) - len(best)
    if left:
        lines.append(f"and {left} more in importance.csv")
    return "\n".join(lines)


def number(value: float) -> float | None:
    """``value`` as CSV and JSON take it: None where it is not a number."""
    return None if math.isnan(value) else float(value)


def _text(value: float, form: str) -> str:
    return "n/a" if math.isnan(value) else format(value, form)
