"""The workload ``dtrn_training``: whole training steps of DTRN on generated data.

Forward, loss, backward and optimizer on batches that are ready in memory. One model serves all
backends: only the function that computes the conditional transformer is exchanged, so everything
else is the same by construction.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast import ops
from mtlfast.data import Batch
from mtlfast.data.synthetic import SyntheticSource
from mtlfast.heads import MMoEConfig
from mtlfast.models import DTRN, DTRNConfig
from mtlfast.training.optimizers import build_optimizers

from .baselines import conditional_interest as baselines
from .cases import Case, Mode
from .check import BASELINE_FACTOR, FUSED_FACTOR, Tensors, Verdict, errors, judge
from .flops import Work
from .inputs import shape_of
from .timing import Variant
from .workload import FUSED, why_not_fused

_BATCHES = 4
_CHECK_BATCH = 128


def _config(case: Case) -> DTRNConfig:
    return DTRNConfig(
        embed_dim=case.d,
        num_heads=case.num_heads,
        head=MMoEConfig(num_experts=4, expert_units=(128, 64), tower_units=(64,)),
    )


def _backend(name: str) -> str | Callable[..., Tensor]:
    backends: dict[str, str | Callable[..., Tensor]] = {
        FUSED: "cpu",
        "reference": "reference",
        "batched": baselines.batched,
        "ragged": baselines.ragged,
        "ragged_flat": baselines.ragged_flat,
    }
    return backends[name]


class TrainingWorkload:
    """See :class:`~.workload.Workload`."""

    def __init__(self, case: Case, *, sets: int | None = None) -> None:
        self.case = case
        self.sets = _BATCHES if sets is None else sets
        torch.manual_seed(0)
        self.source = SyntheticSource(shape_of(case), lengths=case.lengths)  # type: ignore[arg-type]
        self.model = DTRN(self.source.spec, _config(case))
        self.optimizers = build_optimizers(self.model, learning_rate=1e-3)
        start = time.perf_counter()
        self.batches = [self.source.train_batch(case.batch, 0, step) for step in range(self.sets)]
        self.batch_seconds = (time.perf_counter() - start) / max(self.sets, 1)

    def backends(self, mode: Mode) -> tuple[str, ...]:
        return (FUSED, "batched", "ragged", "ragged_flat", "reference")

    def unavailable(self, backend: str, mode: Mode) -> str:
        if backend != FUSED:
            return ""
        d = self.case.d
        found: list[ops.Explanation] = []

        def note(*args: Any, **kwargs: Any) -> Tensor:
            found.append(ops.explain("conditional_interest", *args, **kwargs))
            return torch.zeros(len(args[1]), *args[3].shape[:2], d)

        batch = self.source.train_batch(2, 0, 0)
        with torch.no_grad():
            self._with_backend(note)(batch.sparse, batch.sequences)
        return why_not_fused(found[0])

    def variant(self, backend: str, mode: Mode) -> Variant:
        function = _backend(backend)

        def step(i: int) -> float:
            return self.step(self._with_backend(function), self.batches[i])

        return step

    def step(self, model: nn.Module, batch: Batch) -> float:
        """One training step; the loss."""
        model.train()
        logits = model(batch.sparse, batch.sequences, batch.user_index)
        loss = self.model.loss(logits, batch.labels)
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        """Compares logits and gradients of a smaller model of the same kind with float64."""
        truth, plain = self._expected()
        factor = FUSED_FACTOR["training"] if backend == FUSED else BASELINE_FACTOR
        found = _gradients(self._small[0], self._small[1], _backend(backend))
        return judge(found, truth, plain, factor)

    def work(self, mode: Mode) -> Work:
        return Work(flops=0.0, bytes=0.0, padding=_padding(self.batches))

    def _with_backend(self, function: Any) -> nn.Module:
        self.model.tim.transformer.backend = function
        return self.model

    @functools.cached_property
    def _small(self) -> tuple[DTRN, Batch]:
        source = SyntheticSource(shape_of(self.case), num_users=500, num_items=500)
        torch.manual_seed(1)
        model = DTRN(source.spec, _config(self.case))
        with torch.no_grad():  # away from the start, where all tasks are alike
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return model, source.train_batch(_CHECK_BATCH, 0, 0)

    @functools.cache  # noqa: B019 (lives as long as the worker process)
    def _expected(self) -> tuple[Tensors, dict[str, float]]:
        model, batch = self._small
        plain = _gradients(model, batch, "reference")
        labels = batch.labels
        batch.labels = labels.double()
        truth = _gradients(model.double(), batch, "reference")
        model.float()
        batch.labels = labels
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}


def _gradients(model: DTRN, batch: Batch, backend: Any) -> Tensors:
    model.tim.transformer.backend = backend
    logits = model(batch.sparse, batch.sequences, batch.user_index)
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(model.loss(logits, batch.labels), list(named.values()))
    return {"out": logits.detach(), **dict(zip(named, grads, strict=True))}


def _padding(batches: list[Batch]) -> float:
    ratios = []
    for batch in batches:
        lengths = batch.sequences.lengths()
        cells = lengths.amax(1).clamp(min=1).sum() * lengths.shape[1]
        ratios.append(float(cells) / max(int(lengths.sum()), 1))
    return statistics.fmean(ratios) if ratios else 1.0


def profile(case: Case, backend: str = FUSED, steps: int = 4) -> list[tuple[str, float]]:
    """``(kind of work, share of the step's CPU time)``, largest first, by ``torch.profiler``."""
    workload = TrainingWorkload(case)
    call = workload.variant(backend, "training")
    call(0)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as trace:
        for i in range(steps):
            call(i % workload.sets)
    totals: dict[str, float] = {}
    for event in trace.key_averages():
        kind = _kind(event.key)
        totals[kind] = totals.get(kind, 0.0) + event.self_cpu_time_total
    whole = sum(totals.values())
    shares = [(kind, time / whole) for kind, time in totals.items()]
    return sorted(shares, key=lambda item: -item[1])


_KINDS = (
    ("conditional_interest", ("conditional_interest",)),
    ("optimizer", ("_fused_adam", "Optimizer.step", "lerp", "addcdiv")),
    ("dense products", ("::addmm", "::mm", "::bmm", "::linear", "::baddbmm")),
    ("attention", ("scaled_dot_product", "softmax")),
    ("embedding and gathers", ("embedding", "::index", "gather", "scatter", "coalesce", "unique")),
    ("copies", ("copy_", "::cat", "::clone", "contiguous", "::fill_", "::zero")),
)


def _kind(name: str) -> str:
    for kind, parts in _KINDS:
        if any(part in name for part in parts):
            return kind
    return "element-wise and the rest"
