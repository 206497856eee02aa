"""One training recipe for every model of a table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mtlfast.data import TableSource
from mtlfast.errors import bad
from mtlfast.nn import FieldEmbedding, MultiHashCodebook
from mtlfast.training.prefetch import prefetch
from mtlfast.training.progress import Progress

__all__ = ["Recipe", "fit", "predict"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes:
        batch_size: samples per step.
        epochs: passes over the training data.
        learning_rate: of Adam at the start; it falls to 0 along half a cosine.
        embedding_rate: learning rate of the fields' embeddings, relative to ``learning_rate``.
            They start near 0, so that an id that is hardly seen stays without influence, and those
            that are seen often have a long way to go.
        codebook_rate: the same of MemoNet's codebooks. Few samples share a codeword, so that
            codebooks overfit first.
        hidden: share of the training samples' ids that are replaced by the unknown id 0.
        averaged: share of the steps, the last ones, whose weights are averaged.

    Raises:
        ValueError: naming the field.
    """

    batch_size: int = 2048
    epochs: int = 3
    learning_rate: float = 2e-3
    embedding_rate: float = 4.0
    codebook_rate: float = 0.5
    hidden: float = 0.05
    averaged: float = 0.3

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            if getattr(self, name) < 1:
                raise bad(name, "at least 1", getattr(self, name))
        for name in ("learning_rate", "embedding_rate", "codebook_rate"):
            if not getattr(self, name) > 0:
                raise bad(name, "a positive number", getattr(self, name))
        for name in ("hidden", "averaged"):
            if not 0 <= getattr(self, name) <= 1:
                raise bad(name, "a share in [0, 1]", getattr(self, name))


def fit(
    model: Any, source: TableSource, recipe: Recipe, *, label: str = "", quiet: bool = False
) -> nn.Module:
    """Train ``model`` and return a copy with the averaged weights, in eval mode."""
    optimizer = torch.optim.Adam(_groups(model, recipe), fused=True)
    steps = recipe.epochs * len(source.train_batches(recipe.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    )
    averaged = AveragedModel(model)
    first_averaged = steps - max(1, round(steps * recipe.averaged))
    progress = Progress(recipe.epochs * source.num_train_samples, label=label, quiet=quiet)
    model.train()
    rng = torch.Generator().manual_seed(source.seed)
    step = 0
    try:
        for epoch in range(recipe.epochs):
            batches = prefetch(source.train_batches(recipe.batch_size, epoch), 2)
            for batch in batches:
                hidden = torch.rand(batch.sparse.shape, generator=rng) < recipe.hidden
                ids = batch.sparse.masked_fill(hidden, 0)
                loss = model.loss(model(ids, batch.sequences, batch.user_index), batch.labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                if step >= first_averaged:
                    averaged.update_parameters(model)
                step += 1
                progress.advance(len(batch))
    finally:
        progress.close()
    module: nn.Module = averaged.module
    return module.eval()


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """The parameters with their learning rates."""
    rates = {}
    for module in model.modules():
        if isinstance(module, FieldEmbedding):
            rates.update(dict.fromkeys(map(id, module.parameters()), recipe.embedding_rate))
        elif isinstance(module, MultiHashCodebook):
            rates[id(module.codebook)] = recipe.codebook_rate
    groups: dict[float, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        groups.setdefault(rates.get(id(parameter), 1.0), []).append(parameter)
    return [{"params": found, "lr": recipe.learning_rate * rate} for rate, found in groups.items()]


@torch.no_grad()
def predict(model: nn.Module, source: TableSource, batch_size: int = 8192) -> NDArray[np.float64]:
    """Logits ``[N, T]`` on the test part of ``source``."""
    model.eval()
    found = [
        model(batch.sparse, batch.sequences, batch.user_index).double()
        for batch in source.test_batches(batch_size)
    ]
    return torch.cat(found).numpy()
