"""What the commands have in common that train variants of a model and compare them."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mtlfast.commands.settings import add_settings, given_settings
from mtlfast.training.config import TrainConfig

if TYPE_CHECKING:
    from mtlfast.data import DatasetSpec
    from mtlfast.training.reproduction.variants import Table, Variant

__all__ = ["VariantCommand"]

# Not offered: what the variants decide, and what a finished run has no use for.
_NOT_OFFERED = {
    "model",
    "start_from",
    "trim",
    "seed",
    "keep_checkpoints",
    "keep_best",
    "evaluate_every",
    "tensorboard",
}


@dataclass(frozen=True)
class VariantCommand:
    """A command with what a module of a command has (see :mod:`mtlfast.commands`).

    Args:
        NAME, HELP: as of a module.
        of: what it repeats, such as "Table 5 of DTRN (CIKM 2023)".
        more: a paragraph of the description.
        examples: what follows the name in the examples, each with a heading.
        load: gives the table; imports what it needs.
        defaults: of the settings.
        offers: which of the options head, sizes, width it has.
    """

    NAME: str
    HELP: str
    of: str
    more: str
    examples: tuple[tuple[str, str], ...]
    load: Callable[[], Table]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    offers: frozenset[str] = frozenset()
    PASSES_ON: ClassVar[bool] = False

    @property
    def USAGE(self) -> str:
        sizes = " [--sizes D ...]" if "sizes" in self.offers else ""
        return f"[--data NAME] [--seeds N] [--rows NAME ...]{sizes} [--out DIR] [settings]"

    @property
    def DESCRIPTION(self) -> str:
        return f"""\
{self.of}: {self.HELP}.

{self.more}

Every model is trained with the same settings, those of `mtlfast train`; --model-options are
shared by all. Writes table.md, table.csv (AUC and LogLoss per task, means over the seeds)
and table.json. A run that was stopped goes on with the same command.
"""

    @property
    def EXAMPLES(self) -> str:
        texts = [
            f"  {heading}\n    mtlfast reproduce {self.NAME} {arguments}"
            for heading, arguments in self.examples
        ]
        return "examples:\n" + "\n\n".join(texts) + "\n"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument("--seeds", type=int, default=1, metavar="N", help="runs per row")
        parser.add_argument("--rows", nargs="+", metavar="NAME", help="train only these")
        if "sizes" in self.offers:
            parser.add_argument(
                "--sizes",
                type=int,
                nargs="+",
                metavar="D",
                help="embedding widths (default: 8 16 32 64)",
            )
        if "head" in self.offers:
            parser.add_argument(
                "--head", metavar="NAME", help="multi-task head where the table leaves a choice"
            )
        if "width" in self.offers:
            parser.add_argument(
                "--width",
                type=int,
                default=128,
                metavar="N",
                help="D_o of DTN; the other models get as many parameters (default: 128)",
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
        offered = {setting.name for setting in dataclasses.fields(TrainConfig)} - _NOT_OFFERED
        add_settings(parser, TrainConfig, offered, self.defaults)

    def run(self, options: argparse.Namespace) -> int:
        """Train, write, print; returns 0, or 130 after Ctrl-C."""
        from mtlfast.training.allocator import keep_freed_memory
        from mtlfast.training.assemble import make_source
        from mtlfast.training.loop import Interrupted
        from mtlfast.training.reproduction.run_variants import format_table, train_variants

        for name in ("seeds", "width"):
            if getattr(options, name, 1) < 1:
                raise ValueError(f"--{name}: expected at least 1, found {getattr(options, name)}")
        # A finished run is not continued, so that one checkpoint is all that is ever needed.
        fixed = {"keep_checkpoints": 1, "tensorboard": False}
        given = {**self.defaults, **given_settings(options, TrainConfig), **fixed}
        config = TrainConfig.from_dict(given, "settings")
        spec = make_source(config, quiet=options.quiet).spec
        variants = _chosen(self._variants(spec, config, options), options.rows)
        keep_freed_memory()
        try:
            rows = train_variants(
                variants,
                config,
                spec.tasks,
                options.out,
                seeds=range(options.seeds),
                base=self.load().base,
                keep_models=options.keep_models,
                quiet=options.quiet,
            )
        except Interrupted as stopped:
            print(f"\n{stopped}\nthe same command goes on from there", file=sys.stderr)
            return 130
        print(format_table(rows))
        files = "table.md, table.csv and table.json"
        if "sizes" in self.offers:
            _draw(rows, spec.name, Path(options.out) / "figure.png")
            files = "figure.png, " + files
        print(f"\nwritten to {options.out}: {files}")
        return 0

    def _variants(
        self, spec: DatasetSpec, config: TrainConfig, options: argparse.Namespace
    ) -> list[Variant]:
        from mtlfast.training.reproduction.dtrn_tables import default_head
        from mtlfast.training.reproduction.variants import Choices

        chosen: dict[str, Any] = {"head": getattr(options, "head", None) or default_head(spec)}
        if getattr(options, "sizes", None):
            chosen["sizes"] = _sizes(options.sizes)
        if "width" in self.offers:
            chosen["width"] = options.width
            if "embed_dim" in config.model_options:
                chosen["embed_dim"] = config.model_options["embed_dim"]
        return self.load().variants(spec, Choices(**chosen))


def _sizes(asked: list[int]) -> tuple[int, ...]:
    if min(asked) < 1 or len(set(asked)) != len(asked):
        raise ValueError(f"--sizes: expected different widths of at least 1, found {asked}")
    return tuple(sorted(asked))


def _chosen(variants: list[Variant], rows: list[str] | None) -> list[Variant]:
    if rows is None:
        return variants
    names = [variant.name for variant in variants]
    unknown = [row for row in rows if row not in names]
    if unknown:
        raise ValueError(f"--rows: expected some of {', '.join(names)}, found {unknown[0]}")
    made_of = {variant.trimmed_from for variant in variants if variant.name in rows}
    return [variant for variant in variants if variant.name in rows or variant.name in made_of]


def _draw(rows: list[dict[str, Any]], data: str, path: Path) -> None:
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
