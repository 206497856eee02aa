"""The progress bar: loss, samples per second, time to go."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["Progress"]


class Progress:
    """Counts samples on a terminal; into a file or pipe it prints a line now and then.

    Args:
        total: samples of the whole run.
        done: samples behind us already (a resumed run).
        label: shown in front.
        unit: what is counted.
        delay: seconds before it shows at all.
        quiet: show nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        done: int = 0,
        label: str = "",
        unit: str = " samples",
        delay: float = 0.0,
        quiet: bool = False,
    ) -> None:
        from tqdm import tqdm

        live = sys.stderr.isatty()
        self._bar: Any = tqdm(
            total=total,
            initial=done,
            desc=label,
            unit=unit,
            unit_scale=True,
            delay=delay,
            dynamic_ncols=live,
            ncols=None if live else 100,
            mininterval=0.2 if live else 5.0,
            maxinterval=10.0,
            disable=quiet,
            # A pipe cannot go back to the start of the line: end the line instead.
            file=sys.stderr if live else _Lines(),
        )

    def advance(self, samples: int) -> None:
        """Count ``samples`` (or whatever is counted) more."""
        self._bar.update(samples)

    def show(self, **values: float) -> None:
        """Values shown behind the bar, such as the loss."""
        self._bar.set_postfix({k: f"{v:.4f}" for k, v in values.items()}, refresh=False)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()


class _Lines:
    """A stream that turns tqdm's carriage returns into lines."""

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        if line:
            sys.stderr.write(line + "\n")
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()
