"""Two implementations of one model on the same batches, against each other and against float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mtlfast.data import Batch

__all__ = ["Parity", "compare"]

# A fused kernel may have at most so many times the error of plain PyTorch in the same dtype.
_FACTORS = {"logits": 2.0, "gradients": 5.0}
# A ReLU whose input is within rounding of zero may go either way, and its gradient with it: that
# says nothing about the kernel, and happens in a few batches of a hundred.
_SHARE = {"logits": 1.0, "gradients": 0.75}


class Errors(NamedTuple):
    """Largest differences of one quantity in one batch, relative to its largest float64 value."""

    fused_to_reference: float
    fused_to_exact: float
    reference_to_exact: float


@dataclass(frozen=True)
class Parity:
    """How far two implementations are apart in one quantity.

    Attributes:
        quantity: "logits" or "gradients" (of every weight; each relative to its own largest).
        batches: the errors in each batch.
    """

    quantity: str
    batches: tuple[Errors, ...]

    @property
    def worst(self) -> Errors:
        """The largest errors over all batches."""
        return Errors(*(max(column) for column in zip(*self.batches, strict=True)))

    @property
    def allowed(self) -> float:
        """How many times the reference's error against float64 the fused one may have."""
        return _FACTORS[self.quantity]

    @property
    def within(self) -> int:
        """In how many batches it has no more."""
        floor = torch.finfo(torch.float32).eps  # two roundings of the result itself
        return sum(
            errors.fused_to_exact <= self.allowed * max(errors.reference_to_exact, floor)
            for errors in self.batches
        )

    @property
    def holds(self) -> bool:
        """Whether enough batches are within: all for logits, three of four for gradients."""
        return self.within >= _SHARE[self.quantity] * len(self.batches)


def compare(fused: nn.Module, reference: nn.Module, batches: Sequence[Batch]) -> list[Parity]:
    """Logits and gradients of two models with the same weights.

    Args:
        fused, reference: models of :mod:`mtlfast.models`; run in eval mode.
        batches: inputs and labels; small ones tell more about gradients than one large one.

    Returns:
        The parity of the logits and of the gradients of the loss.
    """
    exact = copy.deepcopy(reference).double()
    found: dict[str, list[Errors]] = {name: [] for name in _FACTORS}
    for batch in batches:
        results = [_run(model, batch) for model in (fused, reference, exact)]
        found["logits"].append(_errors(*({"logits": logits} for logits, _ in results)))
        found["gradients"].append(_errors(*(grads for _, grads in results)))
    return [Parity(name, tuple(errors)) for name, errors in found.items()]


def _run(model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    model.eval()
    model.zero_grad(set_to_none=True)
    logits = model(*batch.inputs())
    cast(Any, model).loss(logits, batch.labels).backward()
    grads = {
        name: weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
    model.zero_grad(set_to_none=True)
    return logits.detach(), grads


def _errors(
    fused: dict[str, Tensor], reference: dict[str, Tensor], exact: dict[str, Tensor]
) -> Errors:
    return Errors(
        _largest(fused, reference, exact),
        _largest(fused, exact, exact),
        _largest(reference, exact, exact),
    )


def _largest(left: dict[str, Tensor], right: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """The largest relative difference of all entries; NaN counts as infinite."""
    if left.keys() != right.keys():
        raise ValueError(
            f"models: expected the same weights with gradients, found {sorted(left)} "
            f"and {sorted(right)}"
        )
    worst = 0.0
    for name, value in left.items():
        scale = exact[name].abs().max().item()
        error = (value.double() - right[name].double()).abs().max().item()
        if scale > 0 and error / scale >= 0:
            worst = max(worst, error / scale)
        elif error != 0:
            return float("inf")
    return worst
