"""torch.compile of the eager baselines."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from .batched import batched
from .ragged import block, ragged


def compiled_batched() -> Callable[..., Tensor]:
    """``batched`` as one graph, specialized to the shapes it is called with."""
    return torch.compile(batched, fullgraph=True, dynamic=False)


def compiled_ragged() -> Callable[..., Tensor]:
    """``ragged`` with everything between sorting and the decoder's tail compiled.

    A graph of the whole would be unrolled over some hundred blocks; one graph of a block with
    dynamic shapes serves all of them and all batches.
    """
    return functools.partial(ragged, block_function=torch.compile(block, dynamic=True))
