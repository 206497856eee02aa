"""Optimizers that update the codebooks of MultiHashCodebook during the backward pass.

A batch uses a small part of a codebook. The backward sorts the codewords in use by row and sums
their gradients anyway; these optimizers update each row right there, so that no gradient of a
million rows is written, read and applied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from mtlfast.errors import bad
from mtlfast.nn.multi_hash_codebook import MultiHashCodebook
from mtlfast.ops import FusedStep


class _FusedOptimizer(torch.optim.Optimizer):
    """What :class:`FusedAdagrad` and :class:`FusedAdam` share."""

    def __init__(
        self, codebooks: MultiHashCodebook | Iterable[MultiHashCodebook], defaults: dict[str, Any]
    ) -> None:
        modules = [codebooks] if isinstance(codebooks, MultiHashCodebook) else list(codebooks)
        for module in modules:
            if not isinstance(module, MultiHashCodebook):
                raise bad("codebooks", "MultiHashCodebook modules", type(module).__name__)
        for name in ("lr", "eps"):
            if not defaults[name] >= 0:
                raise bad(name, "at least 0", defaults[name])
        super().__init__([module.codebook for module in modules], defaults)
        for module in modules:
            module.fused_step = self.next_step

    def next_step(self, codebook: Tensor, order: int) -> FusedStep:
        """The step of one order's codebooks, with the options as they are now."""
        for group in self.param_groups:
            if any(parameter is codebook for parameter in group["params"]):
                return self._step(group, self._state_of(codebook, group), order)
        raise bad("codebook", "the one that the optimizer was made with", "another")

    def _state_of(self, codebook: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[codebook]
        if not state:
            state.update(self._new_state(codebook, group))
        return state

    def _new_state(self, codebook: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    def _step(self, group: dict[str, Any], state: dict[str, Any], order: int) -> FusedStep:
        raise NotImplementedError

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Does nothing: the backward has updated the codebooks already."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        # Torch gives states the dtype of their parameter; these are float32 always.
        groups = zip(self.param_groups, state_dict["param_groups"], strict=True)
        for group, saved_group in groups:
            for codebook, index in zip(group["params"], saved_group["params"], strict=True):
                for name, value in state_dict["state"].get(index, {}).items():
                    if isinstance(value, Tensor):
                        self.state[codebook][name] = value.to(codebook.device, copy=True)


def _zeros(codebook: Tensor, per_row: bool) -> Tensor:
    shape = codebook.shape[:-1] if per_row else codebook.shape
    return torch.zeros(shape, dtype=torch.float32, device=codebook.device)


class FusedAdagrad(_FusedOptimizer):
    """Adagrad on the codewords that a batch uses, as part of the backward.

    With ``g`` the gradient of a row, summed over the batch::

        G += mean(g^2)  (rowwise, one number per row)   or   G += g^2  (one per element)
        w -= lr * g / (sqrt(G) + eps)

    Without ``rowwise`` the updates are those of ``torch.optim.Adagrad``.

    The codebooks get no ``grad``: gradients of theirs can be neither clipped, scaled, accumulated
    over several backwards, nor seen by another optimizer; every backward is a step. Learning rate
    schedulers and ``state_dict`` work as with any optimizer. Eager mode on the C++ backend only.

    Args:
        codebooks: one or several :class:`MultiHashCodebook`; the optimizer stays with them.
        lr: learning rate.
        eps: added to the root.
        rowwise: one number of state per row instead of ``codeword_dim``.

    Raises:
        ValueError: for anything but codebooks, or a negative ``lr`` or ``eps``.
    """

    def __init__(
        self,
        codebooks: MultiHashCodebook | Iterable[MultiHashCodebook],
        lr: float = 1e-2,
        *,
        eps: float = 1e-10,
        rowwise: bool = True,
    ) -> None:
        super().__init__(codebooks, {"lr": lr, "eps": eps, "rowwise": rowwise})

    def _new_state(self, codebook: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {"sum": _zeros(codebook, group["rowwise"])}

    def _step(self, group: dict[str, Any], state: dict[str, Any], order: int) -> FusedStep:
        none = torch.empty(0)
        squares = state["sum"][order]
        return FusedStep(
            squares, none, False, group["rowwise"], group["lr"], group["eps"], 0.0, 0.0, 1
        )


class FusedAdam(_FusedOptimizer):
    """Adam on the codewords that a batch uses, as part of the backward.

    Rows that a batch does not use keep their moments, as in ``torch.optim.SparseAdam``, whose
    updates these are without ``rowwise``. With it, the second moment is one number per row, that of
    ``mean(g^2)``.

    What :class:`FusedAdagrad` says of gradients, schedulers and backends holds here too.

    Args:
        codebooks: one or several :class:`MultiHashCodebook`; the optimizer stays with them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root.
        rowwise: one second moment per row.

    Raises:
        ValueError: for anything but codebooks, a negative ``lr`` or ``eps``, or betas outside
            [0, 1).
    """

    def __init__(
        self,
        codebooks: MultiHashCodebook | Iterable[MultiHashCodebook],
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        rowwise: bool = True,
    ) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise bad("betas", "two numbers in [0, 1)", betas)
        super().__init__(codebooks, {"lr": lr, "betas": betas, "eps": eps, "rowwise": rowwise})

    def _new_state(self, codebook: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {
            "steps": [0] * codebook.shape[0],
            "exp_avg": _zeros(codebook, False),
            "exp_avg_sq": _zeros(codebook, group["rowwise"]),
        }

    def _step(self, group: dict[str, Any], state: dict[str, Any], order: int) -> FusedStep:
        state["steps"][order] += 1
        beta1, beta2 = group["betas"]
        return FusedStep(
            state["exp_avg"][order],
            state["exp_avg_sq"][order],
            True,
            group["rowwise"],
            group["lr"],
            group["eps"],
            beta1,
            beta2,
            state["steps"][order],
        )
