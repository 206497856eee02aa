"""`mtlfast analyze divergence`: features that matter to one task and not to another."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlfast.commands.analyses.importance import (
    add_measuring_arguments,
    measure,
    request,
    write_importance,
)
from mtlfast.commands.analyses.trained import (
    add_run_arguments,
    open_run,
    say_written,
    write_figure,
)

if TYPE_CHECKING:
    from mtlfast.analysis import Divergence, Importance

NAME = "divergence"
USAGE = "RUN [--tasks A B] [--repeats N] [--seed N] [--max-batches N] [settings]"
PASSES_ON = False
HELP = "features that matter to one task and not to another"
DESCRIPTION = """\
Permutation importance and rank of every feature for two tasks, side by side, sorted by
the difference of the ranks (DTN, Table 1), and a scatter plot of the two (DTN, Figure 2).

Takes importance.json of `mtlfast analyze importance` if it was measured with the same
options, and measures anew otherwise. Writes divergence.csv and divergence.png.
"""
EXAMPLES = """\
examples:
  the first task against the last
    mtlfast analyze divergence runs/dtn-census-001 --repeats 5

  two others
    mtlfast analyze divergence runs/dtrn-tenrec-001 --tasks like share
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run_arguments(parser)
    add_measuring_arguments(parser)
    parser.add_argument(
        "--tasks", nargs=2, metavar="TASK", help="two tasks (default: the first and the last)"
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="features to mark")


def run(options: argparse.Namespace) -> int:
    """Read or measure, print, write."""
    from mtlfast.analysis import divergence
    from mtlfast.analysis.figures.divergence import draw_divergence
    from mtlfast.training.files import write_csv

    if options.top < 1:
        raise ValueError(f"--top: expected at least 1, found {options.top}")
    trained = open_run(options)
    _check_tasks(options.tasks, trained.spec.tasks)
    file = trained.output / "importance.json"
    found = _stored(file, request(trained, options))
    if found is None:
        found = measure(trained, options)
        say_written(write_importance(trained, found))
    else:
        print(f"importance as measured before, in {file}")
    table = divergence(found, None if options.tasks is None else tuple(options.tasks))
    paths = [trained.output / "divergence.csv", trained.output / "divergence.png"]
    write_csv(paths[0], columns(table), rows(table))
    write_figure(paths[1], draw_divergence(table, title=trained.title, top=options.top))
    print(_format(table, options.top))
    say_written(paths)
    return 0


def _check_tasks(asked: list[str] | None, known: tuple[str, ...]) -> None:
    """Before anything is measured."""
    if len(known) < 2:
        raise ValueError(f"--tasks: expected data with two tasks or more, found only {known[0]}")
    unknown = [task for task in asked or () if task not in known]
    if unknown or (asked is not None and asked[0] == asked[1]):
        raise ValueError(
            f"--tasks: expected two different ones of {', '.join(known)}, "
            f"found {' and '.join(asked or ())}"
        )


def _stored(file: Path, wanted: dict[str, Any]) -> Importance | None:
    """What an earlier run with the same settings measured."""
    from mtlfast.analysis import Importance

    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or any(content.get(k) != v for k, v in wanted.items()):
        return None
    try:
        return Importance.from_record(content)
    except (KeyError, TypeError, ValueError):  # of another version
        return None


def columns(table: Divergence) -> list[str]:
    """Names of the columns of divergence.csv."""
    per_task = [f"{task}_{what}" for task in table.tasks for what in ("importance", "rank")]
    return ["feature", *per_task, "rank_difference"]


def rows(table: Divergence) -> list[list[Any]]:
    """A row per feature, the most divergent first."""
    return [
        [f.name, f.importance[0], f.rank[0], f.importance[1], f.rank[1], f.rank_difference]
        for f in table.features
    ]


def _format(table: Divergence, top: int) -> str:
    shown = table.features[:top]
    width = max(7, *(len(f.name) for f in shown))
    cells = [max(len(task) + 5, 16) for task in table.tasks]
    titles = [f"{f'{task} rank':>{c}}" for task, c in zip(table.tasks, cells, strict=True)]
    lines = [f"{'feature':<{width}}  {'  '.join(titles)}  difference"]
    for feature in shown:
        texts = [
            f"{f'{value:.4f}  #{rank:<3}':>{c}}"
            for value, rank, c in zip(feature.importance, feature.rank, cells, strict=True)
        ]
        lines.append(f"{feature.name:<{width}}  {'  '.join(texts)}  {feature.rank_difference:>10}")
    lines.append(
        f"rank correlation of {table.tasks[0]} and {table.tasks[1]} over {len(table.features)} "
        f"features: {table.rank_correlation:.2f}"
    )
    return "\n".join(lines)
