"""torch.compile of the eager baselines."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlfast.jagged import JaggedSequences

from .batched import batched
from .common import Padded, pad, slots
from .ragged import block, ragged


def compiled_batched() -> Callable[..., Tensor]:
    """``batched`` as one graph, specialized to the shapes it is called with.

    Only the arrangement of candidates by user, which depends on data, is done before.
    """
    graph = torch.compile(batched, fullgraph=True, dynamic=False)

    def run(
        sequences: JaggedSequences | Padded,
        *inputs: Any,
        user_index: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        padded = pad(sequences)
        lengths = padded[1]
        return graph(padded, *inputs, by_user=slots(user_index, lengths.shape[1]), **options)

    return run


def compiled_ragged() -> Callable[..., Tensor]:
    """``ragged`` with everything between sorting and the decoder's tail compiled.

    A graph of the whole would be unrolled over some hundred blocks; one graph of a block with
    dynamic shapes serves all of them and all batches.
    """
    return functools.partial(ragged, block_function=torch.compile(block, dynamic=True))
