"""What the analyses of data alone share: options, batches, and where the results go."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlfast.commands.settings import add_settings, given_settings
from mtlfast.training.config import TrainConfig

if TYPE_CHECKING:
    from mtlfast.data import Batch

_SETTINGS = ("data", "data_options", "on_error", "batch_size", "prefetch")


def add_data_arguments(parser: argparse.ArgumentParser, parts: Iterable[str], default: str) -> None:
    """Declare which part of which data to look at, and where the results go."""
    parser.add_argument(
        "--part", choices=[*parts], default=default, help=f"of the data (default: {default})"
    )
    parser.add_argument(
        "--max-batches",
        type=int,
        metavar="N",
        help="look at so many batches of a part (default: all)",
    )
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write to (default: runs/analysis-<data>)"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    add_settings(parser, TrainConfig, _SETTINGS)


class AskedData:
    """The data that the options ask for.

    Attributes:
        source: of the data.
        output: folder of the results.

    Raises:
        ValueError: naming a wrong option.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from mtlfast.training.assemble import make_source
        from mtlfast.training.runs import data_label

        if options.max_batches is not None and options.max_batches < 1:
            raise ValueError(f"--max-batches: expected at least 1, found {options.max_batches}")
        self._config = TrainConfig.from_dict(given_settings(options, TrainConfig), "settings")
        self._most, self._quiet = options.max_batches, options.quiet
        self.source = make_source(self._config, quiet=options.quiet)
        folder = f"runs/analysis-{data_label(self._config.data)}"
        self.output = Path(folder if options.output is None else options.output)

    def over(self, part: str, label: str, look: Any, *arguments: Any) -> Any:
        """``look(batches, spec, *arguments, on_samples=...)`` over "train" or "test"."""
        from itertools import islice

        from mtlfast.training.prefetch import prefetch
        from mtlfast.training.progress import Progress

        source, size, test = self.source, self._config.batch_size, part == "test"
        samples = source.num_test_samples if test else source.num_train_samples
        if self._most is not None:
            samples = min(samples, self._most * size)
        batches = (source.test_batches if test else source.train_batches)(size)
        ahead: Iterable[Batch] = prefetch(islice(batches, self._most), self._config.prefetch)
        progress = Progress(samples, label=label, quiet=self._quiet)
        try:
            return look(ahead, source.spec, *arguments, on_samples=progress.advance)
        finally:
            progress.close()
