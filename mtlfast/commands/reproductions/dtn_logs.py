"""`mtlfast reproduce dtn-table3-...`: DTN's Table 3 on AliExpress and Ali-CCP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mtlfast.commands.reproductions.variants import VariantCommand

if TYPE_CHECKING:
    from mtlfast.training.reproduction.variants import Table

__all__ = ["COMMANDS"]


def _load(name: str) -> Table:
    from mtlfast.training.reproduction.dtn_logs import TABLES

    return TABLES[name]


def _command(data: str, title: str, options: str) -> VariantCommand:
    name = f"dtn-table3-{data}"
    return VariantCommand(
        NAME=name,
        HELP=f"DTN and its baselines on {title}, with equal parameter budgets",
        of=f"The {title} columns of Table 3 of DTN (arXiv 2408.11611)",
        more=f"""\
Beside the embeddings every model has about as many parameters as DTN of --width. Of what
the paper leaves open this chooses: MLPs that halve their width, MemoNet on the twelve
largest fields with 100,000 codewords, and {title} as the publisher splits it. DTN-trim is
DTN without its least used module, after one more epoch at a tenth of the learning rate.""",
        examples=(
            ("the whole table", f"--data {data}:path/to/folder {options}--seeds 3"),
            ("a quick look", f"--data {data} --rows ShareBottom DTN --max-steps 1000 --width 64"),
        ),
        load=partial(_load, name),
        defaults={"data": data},
        offers=frozenset({"width"}),
    )


COMMANDS = (
    _command("aliexpress", "AliExpress", "--data-options country=ES "),
    _command("aliccp", "Ali-CCP", "--data-options preset=dtn "),
)
