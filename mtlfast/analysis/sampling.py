"""A random sample of a stream of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch

from mtlfast.analysis.rows import concat_batches, select_rows, with_own_sequences
from mtlfast.data import Batch
from mtlfast.errors import bad

__all__ = ["sample_rows"]


def sample_rows(
    batches: Iterable[Batch],
    count: int,
    *,
    seed: int = 0,
    behavior: int | None = None,
    min_length: int = 0,
    on_samples: Callable[[int], None] | None = None,
) -> Batch:
    """``count`` candidates drawn without replacement, each as likely as any other.

    One pass; only the sample and one batch are held. Fewer come back where there are no more.

    Args:
        batches: on the CPU.
        count: how many.
        seed: the same seed draws the same candidates, whatever the size of the batches.
        behavior: with ``min_length``, the behavior it is about.
        min_length: draw only candidates whose sequence of ``behavior`` is at least so long.
        on_samples: called with the size of each batch, for progress bars.

    Returns:
        One batch without ``user_index``, in the order of the data.

    Raises:
        ValueError: if there is no such candidate.
    """
    if count < 1:
        raise bad("count", "at least 1", count)
    rng = np.random.default_rng(seed)
    kept: Batch | None = None
    kept_keys = np.empty(0)
    for batch in batches:
        # Every candidate draws a key, even one that is left out; the smallest keys win.
        keys = rng.random(len(batch))
        keys[~_long_enough(batch, behavior, min_length)] = np.inf
        every = np.concatenate([kept_keys, keys])
        winners = np.sort(np.argsort(every, kind="stable")[:count])
        winners = winners[np.isfinite(every[winners])]
        old, new = winners[winners < len(kept_keys)], winners[winners >= len(kept_keys)]
        if len(new):
            rows = torch.from_numpy(new - len(kept_keys))
            chosen = with_own_sequences(select_rows(batch, rows))
            if kept is None:
                kept = chosen
            else:
                kept = concat_batches([select_rows(kept, torch.from_numpy(old)), chosen])
            kept_keys = every[winners]
        if on_samples is not None:
            on_samples(len(batch))
    if kept is None:
        long = f" with a sequence of at least {min_length}" if min_length else ""
        raise bad("batches", f"at least one sample{long}", "none")
    return kept


def _long_enough(batch: Batch, behavior: int | None, min_length: int) -> np.ndarray:
    if behavior is None or min_length < 1:
        return np.ones(len(batch), dtype=bool)
    if batch.sequences is None:
        raise bad("batches", "data with sequences", "data without")
    lengths = batch.sequences.lengths()[behavior]
    if batch.user_index is not None:
        lengths = lengths[batch.user_index]
    return (lengths >= min_length).numpy()
