"""Two implementations of one model on the same batch, against each other and against float64."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mtlfast.data import Batch

__all__ = ["Parity", "compare"]

# A fused kernel may have at most so many times the error of plain PyTorch in the same dtype.
_FACTORS = {"logits": 2.0, "gradients": 5.0}


@dataclass(frozen=True)
class Parity:
    """Largest differences of one quantity, relative to its largest value in float64.

    Attributes:
        quantity: "logits" or "gradients" (of every weight; each relative to its own largest).
        fused_to_reference: fused against reference, both in float32.
        fused_to_exact, reference_to_exact: each against the reference in float64.
        allowed: how many times the reference's error the fused one may have.
    """

    quantity: str
    fused_to_reference: float
    fused_to_exact: float
    reference_to_exact: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the fused error is within what the reference's error allows."""
        floor = torch.finfo(torch.float32).eps  # two roundings of the result itself
        return self.fused_to_exact <= self.allowed * max(self.reference_to_exact, floor)


def compare(fused: nn.Module, reference: nn.Module, batch: Batch) -> list[Parity]:
    """Logits and gradients of two models with the same weights.

    Args:
        fused, reference: models of :mod:`mtlfast.models`; run in eval mode.
        batch: inputs and labels.

    Returns:
        The parity of the logits and of the gradients of the loss.
    """
    exact = copy.deepcopy(reference).double()
    results = [_run(model, batch) for model in (fused, reference, exact)]
    logits = [{"logits": r[0]} for r in results]
    return [
        _parity("logits", *logits),
        _parity("gradients", *(r[1] for r in results)),
    ]


def _run(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.eval()
    model.zero_grad(set_to_none=True)
    logits = model(batch.sparse, batch.sequences, batch.user_index)
    cast(Any, model).loss(logits, batch.labels).backward()
    grads = {
        name: weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return logits.detach(), grads


def _parity(
    quantity: str,
    fused: dict[str, Tensor],
    reference: dict[str, Tensor],
    exact: dict[str, Tensor],
) -> Parity:
    return Parity(
        quantity,
        _largest(fused, reference, exact),
        _largest(fused, exact, exact),
        _largest(reference, exact, exact),
        _FACTORS[quantity],
    )


def _largest(left: dict[str, Tensor], right: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    if left.keys() != right.keys():
        raise ValueError(
            f"models: expected the same weights with gradients, found {sorted(left)} "
            f"and {sorted(right)}"
        )
    worst = 0.0
    for name, value in left.items():
        scale = exact[name].abs().max().item()
        error = (value.double() - right[name].double()).abs().max().item()
        if scale > 0:
            worst = max(worst, error / scale)
        elif error > 0:
            return float("inf")
    return worst
