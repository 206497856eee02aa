"""The workload ``gated_cross``: one layer of GDCN for the networks of several task groups."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops, reference

from .baselines import gated_cross as baselines
from .cases import Case, Mode
from .check import BASELINE_FACTOR, FUSED_FACTOR, Tensors, Verdict, errors, judge
from .flops import Work, gated_cross_work
from .inputs import rotation_length
from .timing import Variant
from .workload import FUSED, why_not_compiled, why_not_fused

_NAMES = ("x", "x0", "weight", "bias")


class GatedCrossWorkload:
    """See :class:`~.workload.Workload`. ``case.num_tasks`` networks, ``num_fields * d`` wide."""

    def __init__(self, case: Case, *, sets: int | None = None) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        groups, width = case.num_tasks, case.num_fields * case.d

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        weight, bias = normal(groups, 2 * width, width) * width**-0.5, normal(groups, width)
        rows = (groups, case.batch, width)
        nbytes = 12 * groups * case.batch * width
        self.sets = rotation_length(nbytes, most=8) if sets is None else sets
        self._inputs = [(normal(*rows), normal(*rows), weight, bias) for _ in range(self.sets)]
        self._grads = [normal(*rows) for _ in range(self.sets)]
        self._functions: dict[str, Callable[..., Tensor]] = {
            FUSED: functools.partial(ops.gated_cross, backend="cpu"),
            "eager": baselines.eager,
            "modules": baselines.modules,
            "compiled": torch.compile(baselines.eager, fullgraph=True, dynamic=False),
            "reference": reference.gated_cross,
        }

    def backends(self, mode: Mode) -> tuple[str, ...]:
        return (FUSED, "eager", "modules", "compiled", "reference")

    def unavailable(self, backend: str, mode: Mode) -> str:
        if backend != FUSED:
            return why_not_compiled(backend)
        return why_not_fused(ops.explain("gated_cross", *self._inputs[0]))

    def variant(self, backend: str, mode: Mode) -> Variant:
        function, training = self._functions[backend], mode == "training"
        leaves = [
            [tensor.detach().requires_grad_(training) for tensor in inputs]
            for inputs in self._inputs
        ]

        def call(i: int) -> list[Tensor]:
            with torch.set_grad_enabled(training):
                out = function(*leaves[i])
                if not training:
                    return [out]
                found = torch.autograd.grad(out, leaves[i], self._grads[i])
                return [out.detach(), *found]

        return call

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        truth, plain = self._expected(mode == "training")
        factor = FUSED_FACTOR[mode] if backend == FUSED else BASELINE_FACTOR
        return judge(self._named(result), truth, plain, factor)

    def work(self, mode: Mode) -> Work:
        return gated_cross_work(self.case, mode)

    def _named(self, result: list[Tensor]) -> Tensors:
        return dict(zip(("out", *_NAMES), result, strict=False))

    @functools.cache  # noqa: B019 (lives as long as the worker process)
    def _expected(self, training: bool) -> tuple[Tensors, dict[str, float]]:
        def compute(dtype: torch.dtype) -> Tensors:
            leaves = [t.detach().to(dtype).requires_grad_(training) for t in self._inputs[0]]
            with torch.set_grad_enabled(training):
                out = reference.gated_cross(*leaves)
                result = [out.detach()]
                if training:
                    result += torch.autograd.grad(out, leaves, self._grads[0].to(dtype))
            return self._named(result)

        truth, plain = compute(torch.float64), compute(torch.float32)
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}
