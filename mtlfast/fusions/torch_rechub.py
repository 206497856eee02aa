"""torch-rechub's mixture of experts. Imported only when a model has one."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch_rechub.basic.layers import MLP
from torch_rechub.models.multi_task.mmoe import MMOE

from mtlfast.fusions import stacked_mlps
from mtlfast.ops import explain

# With fewer, what stacking and folding the weights takes eats what it saves: nothing is gained with
# 512 or 1024 rows.
_FEWEST_ROWS = 2048
_FEWEST_EXPERTS = 4

# What this was written for and compared with: torch-rechub 0.9.0.
_KNOWN_FORWARDS = {MMOE: "9a5b70b4d9b24b05", MLP: "f59028532cc27526"}


class FusedMMOE(MMOE):
    """MMOE with all experts, all gates and, where they are alike, all towers in one product each.

    The experts are mixed by a batched product. In inference without gradients batch norms are
    folded into the maps. Batches of fewer than 2048, other dtypes than float32, and autocast take
    the original's steps, unless a graph is compiled. Dropout draws its numbers for all experts at
    once: the same law, but not the numbers that the original draws with the same seed.
    """

    replaces = MMOE
    backend: str

    @staticmethod
    def why_not(module: Any, backend: str) -> str | None:
        for owner, digest in _KNOWN_FORWARDS.items():
            if _digest(owner.forward) != digest:
                return f"{owner.__name__}.forward is not that of torch-rechub 0.9.0"
        for name in ("experts", "gates"):
            reason = stacked_mlps.why_not(_perceptrons(getattr(module, name)))
            if reason:
                return f"{name}: {reason}"
        if len(module.experts) < _FEWEST_EXPERTS:
            return f"fewer than {_FEWEST_EXPERTS} experts gain nothing"
        linear = _perceptrons(module.experts)[0].get_submodule("0")
        weight = linear.get_parameter("weight").detach()
        x = weight.new_zeros(1, _FEWEST_ROWS, weight.shape[1])
        try:
            found = explain("stacked_linear", x, weight.unsqueeze(0), backend=backend)
        except ValueError as error:
            return str(error)
        return found.reason if found.backend == "reference" != backend else None

    @classmethod
    def from_unfused(cls, module: MMOE, backend: str) -> FusedMMOE:
        fused = cls.__new__(cls)
        fused.__dict__.update(module.__dict__)
        fused.backend = backend
        return fused

    def forward(self, x: Any) -> Tensor:
        rows = self.embedding(x, self.features, squeeze_dim=True)
        gains = _gains(rows)
        mixed = self._mixed(rows) if gains else self._mixed_as_original(rows)
        towers = _perceptrons(self.towers)
        outputs: Iterable[Tensor]
        if gains and not stacked_mlps.why_not(towers):
            outputs = stacked_mlps.run(towers, mixed, self.backend)
        else:
            outputs = [tower(row) for tower, row in zip(self.towers, mixed, strict=True)]
        layers = zip(self.predict_layers, outputs, strict=True)
        return torch.cat([layer(output) for layer, output in layers], dim=1)

    def _mixed(self, rows: Tensor) -> Tensor:
        """``[B, in]`` to the inputs of the towers ``[T, B, out]``."""
        inputs = rows.unsqueeze(0)
        experts = stacked_mlps.run(_perceptrons(self.experts), inputs, self.backend)  # [E, B, out]
        gates = stacked_mlps.run(_perceptrons(self.gates), inputs, self.backend)  # [T, B, E]
        return torch.bmm(gates.transpose(0, 1), experts.transpose(0, 1)).transpose(0, 1)

    def _mixed_as_original(self, rows: Tensor) -> Tensor:
        experts = torch.stack([expert(rows) for expert in self.experts], dim=1)  # [B, E, out]
        gates = [gate(rows).unsqueeze(-1) for gate in self.gates]
        return torch.stack([(gate * experts).sum(dim=1) for gate in gates])


@functools.cache
def _digest(function: Callable[..., Any]) -> str:
    """Of a function's lines without comments."""
    try:
        lines = inspect.getsource(function).splitlines()
    except (OSError, TypeError):
        return ""
    code = [stripped for line in lines if (stripped := line.partition("#")[0].strip())]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def _perceptrons(modules: Iterable[nn.Module]) -> list[nn.Module]:
    return [module.get_submodule("mlp") if type(module) is MLP else module for module in modules]


def _gains(rows: Tensor) -> bool:
    if rows.dtype != torch.float32 or rows.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    # A compiled graph must not depend on the batch size.
    return torch.compiler.is_compiling() or rows.shape[0] >= _FEWEST_ROWS
