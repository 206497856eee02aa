"""`mtlfast reproduce dtn-table3`: the Census-Income columns of DTN's Table 3."""

from __future__ import annotations

import argparse
import sys

NAME = "dtn-table3"
USAGE = "[--data census:PATH] [--seeds N] [--out DIR]"
PASSES_ON = False
HELP = "DTN and its baselines on Census-Income, with equal parameter budgets"
DESCRIPTION = """\
Train every row of the table with about the same number of parameters, several seeds each, and
print mean and standard deviation beside what was published. A recipe that is given here holds for
all rows, instead of the one that was chosen for each.
What the output folder already holds is not trained again.
"""
EXAMPLES = """\
examples:
  the Census-Income columns of DTN's Table 3
    mtlfast reproduce dtn-table3 --data census:path/to/folder

  two of its rows, a quick look
    mtlfast reproduce dtn-table3 --data census --rows ShareBottom DTN --seeds 1 --epochs 1

  a recipe is chosen without a look at the test file
    mtlfast reproduce dtn-table3 --data census --hold-out --learning-rate 1e-3 --out runs/slow
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--data", default="census", metavar="NAME", help="census or census:PATH")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="models per row")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the data")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples per step")
    parser.add_argument("--learning-rate", type=float, metavar="X", help="at the start")
    parser.add_argument("--budget", type=int, metavar="N", help="the most parameters of a network")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="train only these")
    parser.add_argument(
        "--hold-out",
        action="store_true",
        help="train on four fifths of the training file and score the rest, not the test file",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument(
        "--out", default="runs/dtn-table3", metavar="DIR", help="folder for scores and the table"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(options: argparse.Namespace) -> int:
    """Train, write, print."""
    import torch

    from mtlfast.data import CensusSource, open_source
    from mtlfast.training.allocator import keep_freed_memory
    from mtlfast.training.config import expand
    from mtlfast.training.reproduction.boosting import LIGHTGBM, NEEDED, lightgbm_available
    from mtlfast.training.reproduction.dtn_table3 import BUDGET
    from mtlfast.training.reproduction.fit import Recipe
    from mtlfast.training.reproduction.run_dtn_table3 import format_table, reproduce

    if options.seeds < 1:
        raise ValueError(f"--seeds: expected at least 1, found {options.seeds}")
    given = {
        name: value
        for name in ("epochs", "batch_size", "learning_rate")
        if (value := getattr(options, name)) is not None
    }
    if options.data.partition(":")[0] != "census":
        raise ValueError(f"--data: expected census or census:PATH, found {options.data!r}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    source = open_source(expand(options.data), part="both")
    if not isinstance(source, CensusSource):
        raise TypeError(f"expected a CensusSource, found {type(source).__name__}")
    if not lightgbm_available():
        if LIGHTGBM in (options.rows or ()):
            raise ValueError(f"--rows: {NEEDED}")
        if options.rows is None:
            print(f"{LIGHTGBM} is left out: {NEEDED}", file=sys.stderr)
    table = reproduce(
        source.hold_out() if options.hold_out else source,
        options.out,
        seeds=range(options.seeds),
        recipe=Recipe(**given) if given else None,
        budget=BUDGET if options.budget is None else options.budget,
        rows=options.rows,
        quiet=options.quiet,
    )
    print(format_table(table))
    print(f"\nwritten to {options.out}/table.md, table.csv and table.json")
    return 0
