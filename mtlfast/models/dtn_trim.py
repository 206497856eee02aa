"""DTN-trim: a trained DTN without its least used feature-interaction modules."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

from mtlfast.bags import FieldBags
from mtlfast.errors import bad
from mtlfast.models.dtn import DTN


class HasIds(Protocol):
    """Anything with the ids of the fields, such as :class:`mtlfast.data.Batch`."""

    sparse: Tensor


@torch.no_grad()
def gate_usage(model: DTN, batches: Iterable[HasIds | Tensor]) -> Tensor:
    """Mean gate weights ``[T, 2, n]`` over all samples of ``batches``, in float64.

    Axis 1: the gate over the other groups, the gate over the own; modules as in
    ``model.module_keys``. The model is in eval mode meanwhile.

    Args:
        batches: batches of a data source, or ids ``[B, F]``.

    Raises:
        ValueError: if there is no sample.
    """
    device = model.embedding.weight.device
    total = torch.zeros(
        model.num_tasks, 2, len(model.module_keys), dtype=torch.float64, device=device
    )
    samples = 0
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            ids = (batch if isinstance(batch, Tensor) else batch.sparse).to(device)
            bags: FieldBags | None = getattr(batch, "bags", None)
            if bags is not None:
                bags = bags.map(lambda tensor: tensor.to(device))
            out = model(ids, bags=bags, return_gates=True)
            total += out.gates.sum(dim=0, dtype=torch.float64)
            samples += len(ids)
    finally:
        model.train(was_training)
    if not samples:
        raise bad("batches", "at least one sample", "none")
    return total / samples


def trim(
    model: DTN,
    n: int = 1,
    *,
    batches: Iterable[HasIds | Tensor] | None = None,
    score: str | Tensor = "mean_gate",
) -> DTN:
    """A copy of ``model`` without its ``n`` least used modules (DTN, arXiv 2408.11611).

    A module is removed for all its consumers: its weights are gone, the softmax of every gate runs
    over the rest. All other weights stay, so that the copy can serve at once or be trained further.
    With ``n = 0`` it computes what the model computes.

    Args:
        model: a trained DTN.
        n: modules to remove; at least one stays.
        batches: samples to measure the gates on; needed for "mean_gate".
        score: "mean_gate", the sum of a module's mean weights over all gates; or the score of every
            module ``[n_modules]``, in the order of ``model.module_keys``.

    Raises:
        ValueError: naming what is wrong.
    """
    count = len(model.module_keys)
    if not 0 <= n < count:
        raise bad("n", f"0 to {count - 1} of {count} modules", n)
    if isinstance(score, Tensor):
        usage = score.detach().double()
    elif score != "mean_gate":
        raise bad("score", "mean_gate or a tensor", repr(score))
    elif n == 0:
        usage = torch.zeros(count)
    elif batches is None:
        raise bad("batches", "samples to measure the gates on", "None")
    else:
        usage = gate_usage(model, batches).sum(dim=(0, 1))
    if usage.shape != (count,) or bool(usage.isnan().any()):
        raise bad("score", f"{count} numbers, one per module", list(usage.shape))
    trimmed = copy.deepcopy(model)
    trimmed.remove_modules(usage.argsort(stable=True)[:n].tolist())
    return trimmed
