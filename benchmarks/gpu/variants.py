"""What is timed: a function of the number of an input set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .graphs import capture

Variant = Callable[[int], Any]


class Failed(Exception):
    """A variant that cannot be had; the text says why."""


def graphed(variant: Variant, sets: int, device: str) -> Variant:
    """The same work from one CUDA graph per input set."""
    if device != "cuda":
        raise Failed("there are no CUDA graphs on a CPU")
    graphs = [capture(functools.partial(variant, i)) for i in range(sets)]

    def replay(i: int) -> Any:
        graphs[i][0].replay()
        return graphs[i][1]

    return replay
