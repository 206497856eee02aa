"""`mtlfast reproduce dtrn-...`: the ablation tables of DTRN and its sweep of the width."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from mtlfast.commands.settings import add_settings, given_settings
from mtlfast.training.config import TrainConfig

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
# The paper's tables are of such a log.
_DEFAULTS = {"data": "synthetic:ecommerce"}
# Not offered: what the variants decide, and what a finished run has no use for.
_NOT_OFFERED = {"model", "seed", "keep_checkpoints", "keep_best", "evaluate_every", "tensorboard"}


@dataclass(frozen=True)
class _Command:
    """One table, with what a module of a command has."""

    NAME: str
    PASSES_ON: ClassVar[bool] = False

    @cached_property
    def USAGE(self) -> str:
        sizes = " [--sizes D ...]" if self.NAME == _SWEEP else ""
        return f"[--data NAME] [--seeds N] [--rows NAME ...]{sizes} [--out DIR] [settings]"

    @cached_property
    def HELP(self) -> str:
        return _HELP[self.NAME]

    @cached_property
    def DESCRIPTION(self) -> str:
        kind, number = ("Figure", "4") if self.NAME == _SWEEP else ("Table", self.NAME[-1])
        return f"""\
{kind} {number} of DTRN (CIKM 2023): {_HELP[self.NAME]}.

{_MORE[self.NAME]}

Every model is trained with the same settings, those of `mtlfast train`; --model-options are
shared by all. Writes table.md, table.csv (AUC and LogLoss per task, means over the seeds)
and table.json. A run that was stopped goes on with the same command.
"""

    @cached_property
    def EXAMPLES(self) -> str:
        more = {
            "dtrn-table4": "--rows DIN DTRN",
            "dtrn-table6": "--rows QKV FFN-1",
            "dtrn-table7": "--rows MMoE MMoE+DTRN",
            _SWEEP: "--sizes 8 16 --max-steps 100",
        }.get(self.NAME, "--rows DTRN")
        return f"""\
examples:
  on generated data
    mtlfast reproduce {self.NAME} --data synthetic:ecommerce --max-steps 500

  on a real log, three seeds, small tables
    mtlfast reproduce {self.NAME} --data deskdrop:path/to/folder --epochs 3 --batch-size 512 \\
        --seeds 3 --model-options embed_dim=16

  a part of it
    mtlfast reproduce {self.NAME} {more}
"""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        import dataclasses

        parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs per row")
        parser.add_argument("--rows", nargs="+", metavar="NAME", help="train only these")
        if self.NAME == _SWEEP:
            parser.add_argument(
                "--sizes",
                type=int,
                nargs="+",
                metavar="D",
                help="embedding widths (default: 8 16 32 64)",
            )
        if self.NAME != "dtrn-table7":
            parser.add_argument(
                "--head", metavar="NAME", help="multi-task head where the table leaves a choice"
            )
        parser.add_argument(
            "--out",
            default=f"runs/{self.NAME}",
            metavar="DIR",
            help=f"folder for runs and table (default: runs/{self.NAME})",
        )
        parser.add_argument(
            "--keep-models", action="store_true", help="keep the weights of finished runs"
        )
        parser.add_argument("--quiet", action="store_true", help="no progress bars")
        offered = {field.name for field in dataclasses.fields(TrainConfig)} - _NOT_OFFERED
        add_settings(parser, TrainConfig, offered, _DEFAULTS)

    def run(self, options: argparse.Namespace) -> int:
        """Train, write, print; returns 0, or 130 after Ctrl-C."""
        from mtlfast.training.allocator import keep_freed_memory
        from mtlfast.training.assemble import make_source
        from mtlfast.training.loop import Interrupted
        from mtlfast.training.reproduction.dtrn_tables import TABLES, Choices, default_head
        from mtlfast.training.reproduction.run_variants import format_table, train_variants

        if options.seeds < 1:
            raise ValueError(f"--seeds: expected at least 1, found {options.seeds}")
        # A finished run is not continued, so that one checkpoint is all that is ever needed.
        fixed = {"keep_checkpoints": 1, "tensorboard": False}
        given = {**_DEFAULTS, **given_settings(options, TrainConfig), **fixed}
        config = TrainConfig.from_dict(given, "settings")
        spec = make_source(config, quiet=options.quiet).spec
        choices = Choices(
            getattr(options, "head", None) or default_head(spec),
            **({"sizes": _sizes(options.sizes)} if getattr(options, "sizes", None) else {}),
        )
        variants = TABLES[self.NAME].variants(spec, choices)
        variants = _chosen(variants, options.rows)
        keep_freed_memory()
        try:
            rows = train_variants(
                variants,
                config,
                spec.tasks,
                options.out,
                seeds=range(options.seeds),
                keep_models=options.keep_models,
                quiet=options.quiet,
            )
        except Interrupted as stopped:
            print(f"\n{stopped}\nthe same command goes on from there", file=sys.stderr)
            return 130
        print(format_table(rows))
        files = "table.md, table.csv and table.json"
        if self.NAME == _SWEEP:
            _draw(rows, variants, spec.name, Path(options.out) / "figure.png")
            files = "figure.png, " + files
        print(f"\nwritten to {options.out}: {files}")
        return 0


def _sizes(asked: list[int]) -> tuple[int, ...]:
    if min(asked) < 1 or len(set(asked)) != len(asked):
        raise ValueError(f"--sizes: expected different widths of at least 1, found {asked}")
    return tuple(sorted(asked))


def _chosen(variants: list[Any], rows: list[str] | None) -> list[Any]:
    if rows is None:
        return variants
    names = [variant.name for variant in variants]
    unknown = [row for row in rows if row not in names]
    if unknown:
        raise ValueError(f"--rows: expected some of {', '.join(names)}, found {unknown[0]}")
    return [variant for variant in variants if variant.name in rows]


def _draw(rows: list[dict[str, Any]], variants: list[Any], data: str, path: Path) -> None:
    from mtlfast.analysis.figures.sweep import draw_sweep
    from mtlfast.commands.analyses.trained import write_figure

    series: dict[str, dict[str, list[tuple[int, float, float]]]] = {}
    for row in rows:
        if row["auc"] is None:
            continue
        model = row["variant"].partition(" d=")[0]
        points = series.setdefault(row["task"], {}).setdefault(model, [])
        points.append((row["size"], row["auc"], row["auc_sd"] or 0.0))
    write_figure(path, draw_sweep(series, xlabel="embedding width d", title=data))


COMMANDS = tuple(_Command(name) for name in _HELP)
