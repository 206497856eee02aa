"""`mtlfast reproduce dtrn-...`: the tables of DTRN and its sweep of the width."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mtlfast.commands.reproductions.variants import VariantCommand

if TYPE_CHECKING:
    from mtlfast.training.reproduction.variants import Table

__all__ = ["COMMANDS"]

_SWEEP = "dtrn-fig4"
_HELP = {
    "dtrn-table4": "DTRN and everything it is compared with",
    "dtrn-table5": "DMT, with TIM, with TRM, and DTRN",
    "dtrn-table6": "where task and behavior enter DTRN's transformer: QKV, FFN, layer norm",
    "dtrn-table7": "DMT and DTRN under ShareBottom, MMoE, PLE and AITM",
    "dtrn-table8": "DMT and DTRN with one task left out at a time",
    _SWEEP: "AUC of DMT and DTRN over the embedding width, with a plot",
}
_MORE = {
    "dtrn-table4": """\
YouTubeNet, DIN, DIEN and BST read the first behavior of the data, ATRANK and DFN all of
them, with MMoE behind. The rows below read DMT's interests. DTRN's head is AITM where tasks
of the data follow each other and MMoE elsewhere, unless --head says otherwise.""",
    "dtrn-table5": """\
All models read the same sequences and have the same head, AITM where tasks of the data
follow each other and MMoE elsewhere, unless --head says otherwise.""",
    "dtrn-table6": """\
QKV, FFN-1 and FFN-2 modulate those weights per task and behavior instead of the layer
norms; all but DMT refine per task. The head is as for dtrn-table5.""",
    "dtrn-table7": """\
Every head on what all tasks share (DMT) and on task-specific representations (DTRN).""",
    "dtrn-table8": """\
A task's tower, loss and embedding go; tasks that followed it follow what it followed. The
rows without a removed task are there to compare with. The head is as for dtrn-table5.""",
    _SWEEP: """\
One run per model and width. The paper's widths are not known; --sizes chooses them. The
head is as for dtrn-table5. Also writes figure.png.""",
}
_PART = {
    "dtrn-table4": "--rows DIN DTRN",
    "dtrn-table6": "--rows QKV FFN-1",
    "dtrn-table7": "--rows MMoE MMoE+DTRN",
    _SWEEP: "--sizes 8 16 --max-steps 100",
}


def _load(name: str) -> Table:
    from mtlfast.training.reproduction.dtrn_tables import TABLES

    return TABLES[name]


def _command(name: str) -> VariantCommand:
    kind, number = ("Figure", "4") if name == _SWEEP else ("Table", name[-1])
    offers = ({"sizes"} if name == _SWEEP else set()) | (
        set() if name == "dtrn-table7" else {"head"}
    )
    return VariantCommand(
        NAME=name,
        HELP=_HELP[name],
        of=f"{kind} {number} of DTRN (CIKM 2023)",
        more=_MORE[name],
        examples=(
            ("on generated data", "--data synthetic:ecommerce --max-steps 500"),
            (
                "on a real log, three seeds, small tables",
                "--data deskdrop:path/to/folder --epochs 3 --batch-size 512 \\\n"
                "        --seeds 3 --model-options embed_dim=16",
            ),
            ("a part of it", _PART.get(name, "--rows DTRN")),
        ),
        load=partial(_load, name),
        defaults={"data": "synthetic:ecommerce"},  # the paper's tables are of such a log
        offers=frozenset(offers),
    )


COMMANDS = tuple(map(_command, _HELP))
