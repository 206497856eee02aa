"""`mtlfast analyze relaimp`: AUC of models relative to a base model."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtlfast.commands.analyses.trained import say_written, write_figure

NAME = "relaimp"
USAGE = "--base A --model B [C ...] [--tasks NAME ...] [--output FILE]"
PASSES_ON = False
HELP = "how much more than a base model others gain over guessing"
DESCRIPTION = """\
RelaImp of each model and task, ((AUC - 0.5) / (AUC of the base - 0.5) - 1) * 100 % (DTN,
Eq. 8). A model is a run folder, a results.json, an evaluation-*.json, a metrics.csv, or
numbers: one AUC per task, separated by commas. `NAME=` in front gives it a name.

Writes relaimp.csv and relaimp.png.
"""
EXAMPLES = """\
examples:
  two runs
    mtlfast analyze relaimp --base runs/mtl-census-001 --model runs/dtn-census-001

  the published numbers of Census-Income
    mtlfast analyze relaimp --base ShareBottom=0.9361,0.9915 \\
        --model MMoE=0.9410,0.9926 PLE=0.9521,0.9945 DTN=0.9560,0.9952 \\
        --tasks income never_married --output published.csv
"""
COLUMNS = ("model", "task", "auc", "base", "base_auc", "relaimp")
Aucs = Mapping[str, "float | None"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--base", required=True, metavar="A", help="the model compared with")
    parser.add_argument(
        "--model", required=True, nargs="+", metavar="B", help="the models to compare"
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="names of the tasks where numbers are given"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="CSV file to write, its plot beside it as .png "
        "(default: relaimp.csv in the folder `analysis` of the first model's run)",
    )


def run(options: argparse.Namespace) -> int:
    """Compare, print, write."""
    from mtlfast.analysis.figures.relative_improvement import draw_relaimp
    from mtlfast.training.files import write_csv

    named = [t for t in (options.base, *options.model) if _file(_split(t)[1]) is not None]
    tasks = options.tasks
    if tasks is None and named:  # numbers take the names of a file beside them
        tasks = list(_read("--base" if named[0] == options.base else "--model", named[0], None)[1])
    base, base_aucs = _read("--base", options.base, tasks)
    models: dict[str, Aucs] = {}
    for text in options.model:
        name, aucs = _read("--model", text, tasks)
        if list(aucs) != list(base_aucs):
            raise ValueError(
                f"--model: expected the tasks {', '.join(base_aucs)} of --base, found "
                f"{', '.join(aucs)} in {text}"
            )
        if name in models:
            raise ValueError(f"--model: expected distinct models, found {name} twice")
        models[name] = aucs
    gains = {name: [_gain(aucs[t], base_aucs[t]) for t in aucs] for name, aucs in models.items()}
    rows = [
        [name, task, aucs[task], base, base_aucs[task], gain]
        for name, aucs in models.items()
        for task, gain in zip(aucs, gains[name], strict=True)
    ]
    output = Path(options.output) if options.output else _default_output(options.model[0])
    write_csv(output, COLUMNS, rows)
    write_figure(output.with_suffix(".png"), draw_relaimp(list(base_aucs), gains, base))
    print(_format(rows))
    say_written([output, output.with_suffix(".png")])
    return 0


def _gain(auc: float | None, base: float | None) -> float | None:
    """None where an AUC is not defined, or the base does not beat guessing."""
    from mtlfast.analysis import relaimp

    if auc is None or base is None or base <= 0.5:
        return None
    return relaimp(auc, base)


def _split(text: str) -> tuple[str, str]:
    """Name (may be empty) and what it names."""
    name, sign, rest = text.partition("=")
    return (name, rest) if sign else ("", text)


def _file(value: str) -> Path | None:
    """The file with the metrics, where ``value`` is a path and no numbers."""
    path = Path(value)
    if path.is_dir():
        return path / "results.json"
    return path if path.is_file() else None


def _read(flag: str, text: str, tasks: list[str] | None) -> tuple[str, Aucs]:
    """Name and AUC per task of a model; ``tasks`` names those of numbers."""
    name, value = _split(text)
    file = _file(value)
    if file is not None:
        label = file.parent.name if file.name == "results.json" else file.stem
        return name or label or value, _from_file(flag, file)
    aucs = _numbers(flag, text, value)
    names = tasks or [f"task{i + 1}" for i in range(len(aucs))]
    if len(names) != len(aucs):
        raise ValueError(f"{flag}: expected {len(names)} numbers, one per task, found {value}")
    return name or value, dict(zip(names, aucs, strict=True))


def _numbers(flag: str, text: str, value: str) -> list[float]:
    try:
        aucs = [float(part) for part in value.split(",")]
    except ValueError:
        raise ValueError(
            f"{flag}: expected an existing run folder, results.json, evaluation-*.json, "
            f"metrics.csv, or numbers such as 0.93,0.99, found {text}"
        ) from None
    if not all(0 <= auc <= 1 for auc in aucs):
        raise ValueError(f"{flag}: expected AUCs from 0 to 1, found {value}")
    return aucs


def _from_file(flag: str, file: Path) -> Aucs:
    """AUC per task as `mtlfast train` and `evaluate` write it, JSON or CSV."""
    if not file.is_file():
        raise ValueError(f"{flag}: no {file.name} in {file.parent}; has the run come to its end?")
    try:
        if file.suffix == ".csv":
            with open(file, newline="", encoding="utf-8") as stream:
                cells = {row["task"]: row["auc"] for row in csv.DictReader(stream)}
            found: Aucs = {task: float(auc) if auc else None for task, auc in cells.items()}
        else:
            content: Any = json.loads(file.read_text(encoding="utf-8"))
            found = {task: values["auc"] for task, values in content["metrics"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{flag}: expected metrics as `mtlfast train` and `evaluate` write them in {file}, "
            f"found none"
        ) from error
    if not found:
        raise ValueError(f"{flag}: expected at least one task in {file}, found none")
    return found


def _default_output(model: str) -> Path:
    file = _file(_split(model)[1])
    return Path("relaimp.csv") if file is None else file.parent / "analysis" / "relaimp.csv"


def _format(rows: list[list[Any]]) -> str:
    names = max(5, *(len(row[0]) for row in rows))
    tasks = max(4, *(len(row[1]) for row in rows))
    lines = [f"{'model':<{names}}  {'task':<{tasks}}  {'AUC':>7}  {'base':>7}  {'RelaImp':>9}"]
    for name, task, auc, _, base_auc, gain in rows:
        texts = ["n/a" if value is None else f"{value:.4f}" for value in (auc, base_auc)]
        change = "n/a" if gain is None else f"{gain:+.2f} %"
        lines.append(f"{name:<{names}}  {task:<{tasks}}  {texts[0]:>7}  {texts[1]:>7}  {change:>9}")
    return "\n".join(lines)
