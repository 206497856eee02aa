"""`mtlfast analyze statistics`: samples, ids, positives and lengths of a data set."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mtlfast.commands.analyses.trained import say_written, write_figure
from mtlfast.commands.analyses.untrained import AskedData, add_data_arguments

if TYPE_CHECKING:
    from mtlfast.analysis import DataStatistics, PublishedStatistics
    from mtlfast.data import DatasetSpec, DataSource

NAME = "statistics"
USAGE = "[--data NAME] [--part train|test|both] [--max-batches N] [--output DIR] [settings]"
PASSES_ON = False
HELP = "samples, users, items, positives and lengths of a data set"
DESCRIPTION = """\
Samples, users, items, positives of each task and lengths of each behavior sequence, of the
training part, the test part and both (DTRN, Tables 2 and 3), beside the published numbers
where the data set is one of the papers'. Also the distinct ids of each field, and how often
its value is unknown: not there, or not in the training part. No model is needed. The data
are read once, in memory that does not grow with the number of samples.

Writes statistics.csv and statistics.png.
"""
EXAMPLES = """\
examples:
  Tenrec beside the paper's Table 3
    mtlfast analyze statistics --data tenrec:path/to/folder

  generated data, which have no end
    mtlfast analyze statistics --data synthetic:ecommerce --max-batches 100

  fields without histories
    mtlfast analyze statistics --data aliccp:path/to/folder --data-options preset=dtn
"""
COLUMNS = (
    "quantity", "name",
    "train", "test", "all",
    "published_train", "published_test", "published_all",
)  # fmt: skip
_PARTS = ("train", "test")
_ALL = "all"
# What the data sets call a user, and an item where there are no histories.
_USERS = ("user_id", "user", "101")
_ITEMS = ("item_id", "item", "205")


Value = Callable[["DataStatistics"], float]
Values = Callable[["DataStatistics"], Sequence[float]]


class Line(NamedTuple):
    """One row of the table; cells by the parts that were looked at, or that are published."""

    quantity: str
    name: str
    cells: Mapping[str, float]
    published: Mapping[str, float | None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_data_arguments(parser, (*_PARTS, "both"), "both")


def run(options: argparse.Namespace) -> int:
    """Count, print, write."""
    from mtlfast.analysis import PUBLISHED, PublishedStatistics
    from mtlfast.analysis.figures.data_statistics import draw_statistics
    from mtlfast.training.files import write_csv

    data = AskedData(options)
    source = data.source
    parts = _count(data, _PARTS if options.part == "both" else (options.part,))
    published = PUBLISHED.get(source.spec.name)
    lines = _lines(parts, source.spec, published or PublishedStatistics("nobody"))
    paths = [data.output / "statistics.csv", data.output / "statistics.png"]
    write_csv(paths[0], COLUMNS, map(_row, lines))
    # Parts of one data set rarely differ so much that a third bar would say more.
    drawn = {name: part for name, part in parts.items() if name != _ALL}
    write_figure(paths[1], draw_statistics(drawn, published))
    print(_format(lines, list(parts), source, published))
    say_written(paths)
    return 0


def _count(data: AskedData, asked: Iterable[str]) -> dict[str, DataStatistics]:
    """What was counted of each part, and of all where there are several."""
    from mtlfast.analysis import count_statistics

    found: dict[str, DataStatistics] = {
        part: data.over(part, f"statistics of {part}", count_statistics) for part in asked
    }
    if len(found) > 1:
        train, test_part = found.values()
        found[_ALL] = train.merged(test_part)
    return found


def _lines(
    parts: Mapping[str, DataStatistics], spec: DatasetSpec, published: PublishedStatistics
) -> list[Line]:
    lines: list[Line] = []

    def one(quantity: str, name: str, value: Value, papers: Mapping[str, float | None]) -> None:
        cells = {part: value(found) for part, found in parts.items()}
        lines.append(Line(quantity, name, cells, papers))

    def each(
        quantity: str, names: Sequence[str], values: Values, papers: Mapping[str, float | None]
    ) -> None:
        cells = {part: values(found) for part, found in parts.items()}
        for place, name in enumerate(names):
            at = {part: numbers[place] for part, numbers in cells.items()}
            lines.append(Line(quantity, name, at, {_ALL: papers.get(name)}))

    one("samples", "", lambda s: s.samples, published.samples)
    one("features", "", lambda s: s.spec.num_fields, {_ALL: published.features})
    user, item = _user_field(spec), _item_field(spec)
    if user is not None:
        one("users", spec.fields[user], lambda s: s.distinct[user], {_ALL: published.users})
    if item is not None:
        one("items", spec.fields[item], lambda s: s.distinct[item], {_ALL: published.items})
    rates = {task: published.positive_rate(task) for task in spec.tasks}
    each("positives", spec.tasks, lambda s: s.positives.tolist(), published.positives)
    each("positive_rate", spec.tasks, lambda s: s.positive_rates, rates)
    if spec.behaviors:
        means = published.mean_lengths
        each("mean_length", spec.behaviors, lambda s: s.mean_lengths, means)
        total = round(sum(means.values()), 2) if means else None
        one("mean_length", "total", lambda s: sum(s.mean_lengths), {_ALL: total})
        for quantity, share in (("median_length", 0.5), ("p99_length", 0.99), ("longest", 1.0)):
            each(quantity, spec.behaviors, partial(_quantiles, share), {})
        each("empty_share", spec.behaviors, lambda s: s.empty_shares, {})
    each("distinct_ids", spec.fields, lambda s: s.distinct, {})
    each("unknown_share", spec.fields, lambda s: s.unknown_shares, {})
    return lines


def _quantiles(share: float, found: DataStatistics) -> Sequence[float]:
    return found.length_quantiles(share)


def _user_field(spec: DatasetSpec) -> int | None:
    return next((spec.fields.index(name) for name in _USERS if name in spec.fields), None)


def _item_field(spec: DatasetSpec) -> int | None:
    if spec.item_field is not None:
        return spec.item_field
    return next((spec.fields.index(name) for name in _ITEMS if name in spec.fields), None)


def _row(line: Line) -> list[Any]:
    columns = (*_PARTS, _ALL)
    cells = [line.cells.get(part) for part in columns]
    return [line.quantity, line.name, *cells, *(line.published.get(part) for part in columns)]


def _format(
    lines: list[Line],
    parts: list[str],
    source: DataSource,
    published: PublishedStatistics | None,
) -> str:
    """The lines that are not about single fields, whose number may be large."""
    shown = [line for line in lines if line.quantity not in ("distinct_ids", "unknown_share")]
    columns = [*parts, *(["published"] if published else [])]
    table = [["", *columns]]
    for line in shown:
        cells = [_text(line.quantity, line.cells.get(part)) for part in parts]
        if published:
            # Of the part that was looked at, where that is known.
            paper = line.published.get(parts[-1]) or line.published.get(_ALL)
            cells.append(_text(line.quantity, paper))
        table.append([f"{line.quantity.replace('_', ' ')} {line.name}".strip(), *cells])
    widths = [max(len(row[c]) for row in table) for c in range(len(table[0]))]
    texts = [
        "  ".join(
            [
                f"{row[0]:<{widths[0]}}",
                *(f"{x:>{w}}" for x, w in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in table
    ]
    if published:
        texts.append(f"\npublished: {published.origin}")
        if source.spec.name.startswith("synthetic:"):
            texts.append("generated data have the shape of that data set, not its content")
    left_out = {**source.left_out, **({"malformed rows": source.skipped} if source.skipped else {})}
    for reason, count in left_out.items():
        texts.append(f"left out while reading: {count:,} {reason}")
    return "\n".join(texts)


def _text(quantity: str, value: float | None) -> str:
    if value is None:
        return "–"
    if quantity in ("positive_rate", "empty_share"):
        return f"{value:.4%}"
    return f"{value:,.2f}" if quantity == "mean_length" else f"{value:,}"
