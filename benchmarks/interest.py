"""The workload ``conditional_interest``: backends, calls, checks."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops, reference

from .baselines import conditional_interest as baselines
from .baselines.conditional_interest import Padded
from .cases import Case, Mode
from .check import (
    BASELINE_FACTOR,
    FUSED_FACTOR,
    Tensors,
    Verdict,
    errors,
    judge,
    reference_result,
)
from .flops import Work, interest_work
from .inputs import EPS, InterestInputs, interest_inputs, rotation, rotation_length
from .memory import total_memory
from .timing import Variant
from .workload import FUSED

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class _Backend:
    make: Callable[[], Function]
    pads: bool = False  # takes Padded, made before the clock starts
    compiles: bool = False
    dtype: torch.dtype | None = None  # runs on the inputs cast to this


_BACKENDS = {
    FUSED: _Backend(lambda: functools.partial(ops.conditional_interest, backend="cpu")),
    "fused_float32": _Backend(
        lambda: functools.partial(ops.conditional_interest, backend="cpu"), dtype=torch.float32
    ),
    "naive": _Backend(lambda: baselines.naive, pads=True),
    "batched": _Backend(lambda: baselines.batched, pads=True),
    "ragged": _Backend(lambda: baselines.ragged),
    "ragged_flat": _Backend(lambda: baselines.ragged_flat),
    "compiled_batched": _Backend(baselines.compiled_batched, pads=True, compiles=True),
    "compiled_ragged": _Backend(baselines.compiled_ragged, compiles=True),
    "repeated": _Backend(lambda: baselines.repeated, pads=True),
    "reference": _Backend(lambda: reference.conditional_interest),
}
_ALWAYS = (
    "naive",
    "batched",
    "ragged",
    "ragged_flat",
    "compiled_batched",
    "compiled_ragged",
    "reference",
)


class InterestWorkload:
    """See :class:`~.workload.Workload`. In the mode "serving", ``batched`` is eager code that runs
    the encoder once, and ``repeated`` eager code that runs it for every candidate."""

    def __init__(self, case: Case, *, sets: int | None = None) -> None:
        self.case = case
        first = interest_inputs(case)
        self.lengths = first.sequences.lengths()
        self.sets = rotation_length(first.nbytes()) if sets is None else sets
        self._inputs = rotation(first, self.sets)
        self._functions: dict[str, Function] = {}
        self._truth: dict[str, tuple[Tensors, dict[str, float]]] = {}

    def backends(self, mode: Mode) -> tuple[str, ...]:
        names = self._backends(mode)
        return names if self.case.dtype == "float32" else (FUSED, "fused_float32", *names[1:])

    def _backends(self, mode: Mode) -> tuple[str, ...]:
        if mode == "serving":
            return (
                FUSED,
                "batched",
                "repeated",
                "ragged",
                "compiled_batched",
                "compiled_ragged",
                "reference",
            )
        if self.case.users != self.case.batch:
            return (FUSED, *_ALWAYS, "repeated")
        return (FUSED, *_ALWAYS)

    def unavailable(self, backend: str, mode: Mode) -> str:
        if backend.startswith(FUSED):
            chosen = ops.explain("conditional_interest", **self._arguments(self._inputs[0]))
            return "" if chosen.backend != "reference" else chosen.reason
        if _BACKENDS[backend].compiles and not (shutil.which("g++") or shutil.which("clang++")):
            return "torch.compile needs a C++ compiler"
        need, have = self._estimated_bytes(backend, mode), total_memory()
        if need > 0.85 * have:
            return f"needs about {need / 2**30:.0f} GiB of {have / 2**30:.0f} GiB memory"
        return ""

    def variant(self, backend: str, mode: Mode) -> Variant:
        chosen = _BACKENDS[backend]
        if backend not in self._functions:
            self._functions[backend] = chosen.make()
        function = self._functions[backend]
        inputs = self._inputs
        if chosen.dtype is not None:
            inputs = [one.to(chosen.dtype) for one in inputs]
        prepared = [_Prepared(one, chosen.pads, mode) for one in inputs]
        return lambda i: prepared[i].call(function)

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        truth, plain = self._expected(mode)
        factor = FUSED_FACTOR[mode] if backend.startswith(FUSED) else BASELINE_FACTOR
        return judge(self._named(backend, result), truth, plain, factor)

    def work(self, mode: Mode) -> Work:
        return interest_work(self.case, mode, self.lengths)

    @staticmethod
    def _arguments(inputs: InterestInputs) -> dict[str, Any]:
        return {
            "sequences": inputs.sequences,
            "target": inputs.target,
            "weights": inputs.weights,
            "scale": inputs.scale,
            "shift": inputs.shift,
            "num_heads": inputs.num_heads,
            "eps": EPS,
            "user_index": inputs.user_index,
        }

    def _expected(self, mode: Mode) -> tuple[Tensors, dict[str, float]]:
        """The float64 result, and the error that plain PyTorch makes in the case's dtype."""
        kind = "training" if mode == "training" else "forward"
        if kind not in self._truth:
            inputs = self._inputs[0]
            truth = reference_result(inputs, mode, torch.float64)
            plain = reference_result(inputs, mode, inputs.target.dtype)
            self._truth[kind] = truth, {k: errors(plain[k], truth[k])[0] for k in truth}
        return self._truth[kind]

    def _named(self, backend: str, result: Any) -> Tensors:
        """The results by name, padded gradients without their padding."""
        if isinstance(result, Tensor):
            return {"out": result}
        out, *grads = result
        names = list(self._inputs[0].differentiable())
        if not _BACKENDS[backend].pads:
            return {"out": out, **dict(zip(names, grads, strict=True))}
        num_behaviors = self.lengths.shape[0]
        blocks, rest = grads[:num_behaviors], grads[num_behaviors:]
        valid = [
            block[torch.arange(block.shape[1]) < length[:, None]]
            for block, length in zip(blocks, self.lengths, strict=True)
        ]
        return {"out": out, "values": torch.cat(valid), **dict(zip(names[1:], rest, strict=True))}

    def _estimated_bytes(self, backend: str, mode: Mode) -> float:
        """Roughly what a padded backend allocates; enough to skip what cannot fit."""
        if backend not in ("naive", "batched", "compiled_batched", "repeated"):
            return 0.0
        case = self.case
        size = 2 if case.dtype == "bfloat16" else 4
        widths = [int(width) for width in self.lengths.amax(1)]
        users = case.batch if backend in ("naive", "repeated") else case.users
        if mode != "training":
            pairs = 1 if backend == "naive" else case.num_tasks
            return 3.0 * size * users * max(widths) * pairs * (case.d_f + case.d)
        per_token = case.d_f + 10 * case.d
        scores = 0
        if backend == "naive":
            per_token += case.d_f + 6 * case.d
            scores = 3 * case.num_heads * sum(width * width for width in widths)
        return 1.0 * size * users * case.num_tasks * (sum(widths) * per_token + scores)


class _Prepared:
    """One input set in the layout that a backend works on."""

    def __init__(self, inputs: InterestInputs, pads: bool, mode: Mode) -> None:
        self._training = mode == "training"
        if self._training:
            inputs = inputs.requiring_grad()
        self._inputs = inputs
        self._sequences: Any = inputs.sequences
        self._leaves = list(inputs.differentiable().values())
        if pads:
            padded = baselines.pad(inputs.sequences)
            blocks = [block.detach().requires_grad_(self._training) for block in padded.blocks]
            self._sequences = Padded(blocks, padded.lengths)
            self._leaves[:1] = blocks

    def call(self, function: Function) -> Any:
        """The output, and behind it the gradients of all leaves when training."""
        inputs = self._inputs
        with torch.set_grad_enabled(self._training):
            out = function(
                self._sequences,
                inputs.target,
                inputs.weights,
                inputs.scale,
                inputs.shift,
                num_heads=inputs.num_heads,
                eps=EPS,
                user_index=inputs.user_index,
            )
            if not self._training:
                return out
            # Where all sequences are empty, some leaves are in no graph.
            grads = torch.autograd.grad(out, self._leaves, inputs.grad_out, materialize_grads=True)
            return (out.detach(), *grads)
