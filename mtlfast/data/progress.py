"""What a data source tells of long work; who shows it is the caller's affair."""

from __future__ import annotations

from typing import Protocol

__all__ = ["MakeProgress", "ProgressBar", "no_progress"]


class ProgressBar(Protocol):
    """Counts towards a total."""

    def advance(self, amount: int) -> None:
        """Count ``amount`` more."""

    def close(self) -> None:
        """Leave the bar as it stands."""


class MakeProgress(Protocol):
    """Opens a bar, for example :class:`mtlfast.training.progress.Progress`."""

    def __call__(self, total: int, *, label: str, unit: str) -> ProgressBar:
        """A bar from 0 to ``total``; ``unit`` is what is counted, such as " rows" or "B"."""


def no_progress(total: int, *, label: str, unit: str) -> ProgressBar:
    """Shows nothing."""
    return _Silent()


class _Silent:
    def advance(self, amount: int) -> None:
        pass

    def close(self) -> None:
        pass
