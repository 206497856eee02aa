"""`mtlfast analyze occurrences`: how often the target is in each sequence already."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtlfast.commands.analyses.trained import say_written, write_figure
from mtlfast.commands.analyses.untrained import AskedData, add_data_arguments

if TYPE_CHECKING:
    from mtlfast.analysis import Occurrences
    from mtlfast.data import DatasetSpec

NAME = "occurrences"
USAGE = "[--data NAME] [--key NAME] [--part train|test] [--output DIR] [settings]"
PASSES_ON = False
HELP = "how often the target occurs in each sequence, per task"
DESCRIPTION = """\
Mean number of events of each behavior sequence that are about the target, over the
positive samples of each task (DTRN, Table 1). About the target are events with the same
item, or with an item of the same category or whichever field of the item --key names. For
data with the paper's sequences its own numbers, by category, stand in brackets. No model is
needed.

Writes occurrences.csv and occurrences.png.
"""
EXAMPLES = """\
examples:
  by category, where a field's name says so; by item elsewhere
    mtlfast analyze occurrences --data synthetic:ecommerce --max-batches 50

  by item, on the test part
    mtlfast analyze occurrences --data deskdrop:path/to/folder --key item --part test
"""
COLUMNS = ("sequence", "task", "mean", "positives", "mean_of_all", "samples", "key", "published")
_ITEM = "item"

Published = Mapping[str, Mapping[str, float]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--key",
        metavar="NAME",
        help="item, or a field that depends on the item (default: the first field with "
        "`category` in its name, else item)",
    )
    add_data_arguments(parser, ("train", "test"), "train")


def run(options: argparse.Namespace) -> int:
    """Count, print, write."""
    from mtlfast.analysis import count_occurrences, item_attribute
    from mtlfast.analysis.figures.occurrences import draw_occurrences
    from mtlfast.training.files import write_csv

    data = AskedData(options)
    source, part = data.source, options.part
    key = _key(options.key, source.spec)
    attribute = None
    if key != _ITEM:
        attribute = data.over(part, f"{key} of items", item_attribute, key)
    found = data.over(part, "occurrences", count_occurrences, attribute)
    paths = [data.output / "occurrences.csv", data.output / "occurrences.png"]
    paper = _published(source.spec, key)
    write_csv(paths[0], COLUMNS, _rows(found, key, paper))
    write_figure(paths[1], draw_occurrences(found, what=key, title=source.spec.name))
    print(_format(found, paper))
    say_written(paths)
    return 0


def _key(asked: str | None, spec: DatasetSpec) -> str:
    if not spec.behaviors:
        raise ValueError(f"--data: expected data with behavior sequences, found {spec.name}")
    known = [_ITEM, *spec.fields]
    if asked is None:
        return next((field for field in spec.fields if "category" in field), _ITEM)
    if asked not in known:
        raise ValueError(f"--key: expected one of {', '.join(dict.fromkeys(known))}, found {asked}")
    return _ITEM if asked == spec.fields[spec.item_field or 0] else asked


def _published(spec: DatasetSpec, key: str) -> Published:
    """The paper's mean per sequence and task, which is by category; empty where it has none."""
    from mtlfast.analysis import PUBLISHED

    known = PUBLISHED.get(spec.name)
    return {} if known is None or "category" not in key else known.occurrences


def _rows(found: Occurrences, key: str, paper: Published) -> list[list[Any]]:
    return [
        [
            *(behavior, task, mean, positives, overall, found.samples, key),
            paper.get(behavior, {}).get(task),
        ]
        for behavior, means, overall in zip(
            found.behaviors, found.means, found.overall, strict=True
        )
        for task, mean, positives in zip(found.tasks, means, found.positives, strict=True)
    ]


def _format(found: Occurrences, paper: Published) -> str:
    texts = [
        [
            "n/a" if mean is None else format(mean, ".3f") + _brackets(paper, behavior, task)
            for task, mean in zip(found.tasks, means, strict=True)
        ]
        for behavior, means in zip(found.behaviors, found.means, strict=True)
    ]
    names = max(8, *map(len, found.behaviors))
    cells = [
        max(7, len(task), *(len(row[t]) for row in texts)) for t, task in enumerate(found.tasks)
    ]
    titles = [f"{task:>{c}}" for task, c in zip(found.tasks, cells, strict=True)]
    lines = [f"{'sequence':<{names}}  {'  '.join(titles)}  {'all':>7}"]
    for name, row, overall in zip(found.behaviors, texts, found.overall, strict=True):
        padded = [f"{text:>{c}}" for text, c in zip(row, cells, strict=True)]
        lines.append(f"{name:<{names}}  {'  '.join(padded)}  {overall:>7.3f}")
    return "\n".join(lines)


def _brackets(paper: Published, behavior: str, task: str) -> str:
    value = paper.get(behavior, {}).get(task)
    return "" if value is None else f" ({value:.2f})"
