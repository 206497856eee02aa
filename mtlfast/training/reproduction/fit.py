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

from mtlfast.data import DataSource
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
        averaged: share of the steps, the last ones, whose weights are averaged.
    """

    batch_size: int = 1024
    epochs: int = 3
    learning_rate: float = 1e-3
    averaged: float = 0.3


def fit(
    model: Any, source: DataSource, recipe: Recipe, *, label: str = "", quiet: bool = False
) -> nn.Module:
    """Train ``model`` and return a copy with the averaged weights, in eval mode."""
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    steps = recipe.epochs * len(source.train_batches(recipe.batch_size))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    )
    averaged = AveragedModel(model)
    first_averaged = steps - max(1, round(steps * recipe.averaged))
    progress = Progress(recipe.epochs * source.num_train_samples, label=label, quiet=quiet)
    model.train()
    step = 0
    try:
        for epoch in range(recipe.epochs):
            batches = prefetch(source.train_batches(recipe.batch_size, epoch), 2)
            for batch in batches:
                loss = model.loss(
                    model(batch.sparse, batch.sequences, batch.user_index), batch.labels
                )
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


@torch.no_grad()
def predict(model: nn.Module, source: DataSource, batch_size: int = 8192) -> NDArray[np.float64]:
    """Logits ``[N, T]`` on the test part of ``source``."""
    model.eval()
    found = [
        model(batch.sparse, batch.sequences, batch.user_index).double()
        for batch in source.test_batches(batch_size)
    ]
    return torch.cat(found).numpy()
