"""The workload ``conditional_layer_norm``: all tokens of all behaviors, for every task.

This is norm position 1 of DTRN, the largest one: ``x`` and ``residual`` are ``[T, N, d]``, and the
tokens of behavior b use the tables of (t, b). Tokens are sorted by behavior, so every backend is
free to go behavior by behavior with broadcast tables, or to gather a row of the tables per token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops, reference

from .baselines import conditional_layer_norm as baselines
from .cases import Case, Mode
from .check import BASELINE_FACTOR, FUSED_FACTOR, Tensors, Verdict, errors, judge
from .flops import Work, layer_norm_work
from .inputs import EPS, rotation_length, sample_lengths
from .timing import Variant
from .workload import FUSED, why_not_compiled, why_not_fused

Function = Callable[..., Tensor]
_NAMES = ("x", "residual", "scale", "shift")


def _by_behavior(function: Function) -> Callable[..., list[Tensor]]:
    """One call per behavior, tables broadcast over its tokens."""

    def run(x: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, sizes: list[int]) -> Any:
        parts = zip(x.split(sizes, 1), residual.split(sizes, 1), strict=True)
        return [
            function(part, scale[:, b, None], shift[:, b, None], residual=rest, eps=EPS)
            for b, (part, rest) in enumerate(parts)
        ]

    return run


def _gathered(x: Tensor, residual: Tensor, scale: Tensor, shift: Tensor, sizes: list[int]) -> Any:
    """One call for all tokens, a row of the tables gathered for each."""
    behavior = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    # Gathered in float32: the gradient of a row is the sum over all its tokens.
    gain, bias = (table.float()[:, behavior].to(x.dtype) for table in (scale, shift))
    out = baselines.eager(x, gain, bias, residual=residual, eps=EPS)
    return list(out.split(sizes, 1))


class LayerNormWorkload:
    """See :class:`~.workload.Workload`."""

    def __init__(self, case: Case, *, sets: int | None = None) -> None:
        self.case = case
        self.sizes = [int(n) for n in sample_lengths(case).sum(1)]
        generator = torch.Generator().manual_seed(0)
        dtype = getattr(torch, case.dtype)
        rows = (case.num_tasks, sum(self.sizes), case.d)
        tables = (case.num_tasks, len(self.sizes), case.d)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).to(dtype)

        scale, shift = 1 + 0.2 * normal(*tables), 0.2 * normal(*tables)
        nbytes = 3 * scale.element_size() * case.num_tasks * sum(self.sizes) * case.d
        self.sets = rotation_length(nbytes, most=8) if sets is None else sets
        self._inputs = [(normal(*rows), normal(*rows), scale, shift) for _ in range(self.sets)]
        self._grads = [normal(*rows) for _ in range(self.sets)]
        self._functions: dict[str, Callable[..., list[Tensor]]] = {}

    def backends(self, mode: Mode) -> tuple[str, ...]:
        return (FUSED, "eager", "gathered", "compiled", "reference")

    def unavailable(self, backend: str, mode: Mode) -> str:
        if backend != FUSED:
            return why_not_compiled(backend)
        x, residual, scale, shift = self._inputs[0]
        arguments = (x, scale[:, :1], shift[:, :1])
        return why_not_fused(ops.explain("conditional_layer_norm", *arguments, residual=residual))

    def variant(self, backend: str, mode: Mode) -> Variant:
        if backend not in self._functions:
            self._functions[backend] = self._make(backend)
        function, training = self._functions[backend], mode == "training"
        leaves = [
            [tensor.detach().requires_grad_(training) for tensor in inputs]
            for inputs in self._inputs
        ]
        grads = [list(grad.split(self.sizes, 1)) for grad in self._grads]

        def call(i: int) -> list[Tensor]:
            with torch.set_grad_enabled(training):
                out = function(*leaves[i], self.sizes)
                if not training:
                    return out
                found = torch.autograd.grad(out, leaves[i], grads[i])
                return [tensor.detach() for tensor in out] + list(found)

        return call

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        truth, plain = self._expected(mode == "training")
        factor = FUSED_FACTOR[mode] if backend == FUSED else BASELINE_FACTOR
        return judge(self._named(result), truth, plain, factor)

    def work(self, mode: Mode) -> Work:
        rows = self.case.num_tasks * sum(self.sizes)
        elements = rows * self.case.d
        return layer_norm_work(self.case, mode, rows, 2 * elements, elements)

    def _make(self, backend: str) -> Callable[..., list[Tensor]]:
        if backend == FUSED:
            fused = functools.partial(ops.conditional_layer_norm, backend="cpu")
            return _by_behavior(fused)
        if backend == "gathered":
            return _gathered
        if backend == "reference":
            return _by_behavior(reference.conditional_layer_norm)
        if backend == "compiled":
            return torch.compile(_by_behavior(baselines.eager), fullgraph=True, dynamic=False)
        return _by_behavior(baselines.eager)

    def _named(self, result: list[Tensor]) -> Tensors:
        count = len(self.sizes)
        named = {"out": torch.cat(result[:count], 1)}
        return named | dict(zip(_NAMES, result[count:], strict=False))

    @functools.cache  # noqa: B019 (lives as long as the worker process)
    def _expected(self, training: bool) -> tuple[Tensors, dict[str, float]]:
        def compute(dtype: torch.dtype) -> Tensors:
            leaves = [t.detach().to(dtype).requires_grad_(training) for t in self._inputs[0]]
            with torch.set_grad_enabled(training):
                result = _by_behavior(reference.conditional_layer_norm)(*leaves, self.sizes)
                if training:
                    grads = list(self._grads[0].to(dtype).split(self.sizes, 1))
                    result = [t.detach() for t in result] + list(
                        torch.autograd.grad(result, leaves, grads)
                    )
            return self._named(result)

        truth = compute(torch.float64)
        plain = compute(self._inputs[0][0].dtype)
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}
