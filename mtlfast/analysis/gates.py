"""Mean gate weights per task: which interactions and experts a model uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlfast.data import Batch, DatasetSpec
from mtlfast.errors import bad
from mtlfast.heads import PLE, MMoE
from mtlfast.heads.ple import ExtractionLevel
from mtlfast.models import DTN, TFI

__all__ = ["Candidate", "GateReport", "GateWeight", "gate_report"]


class Candidate(NamedTuple):
    """What a gate weighs.

    Attributes:
        task: whose gate.
        gate: which of the task's gates: "own" or "other" in DTN, "mixture" in TFI and MMoE,
            "level 1" and so on in PLE.
        group: the task that owns the module or expert, or "shared".
        method: of feature interaction, or "expert".
        number: which of several with the same group and method, from 0.
    """

    task: str
    gate: str
    group: str
    method: str
    number: int


@dataclass(frozen=True)
class GateWeight:
    """Mean and standard deviation (of the population) of one weight over all samples."""

    candidate: Candidate
    mean: float
    sd: float


@dataclass(frozen=True)
class GateReport:
    """What :func:`gate_report` measured.

    Attributes:
        tasks: the T tasks.
        weights: task by task, gate by gate; the means of one gate add up to 1.
        samples: how many were seen.
    """

    tasks: tuple[str, ...]
    weights: tuple[GateWeight, ...]
    samples: int


# The weights [B, n] of every gate for one batch, with its n candidates.
Gates = list[tuple[list[Candidate], Tensor]]


@torch.no_grad()
def gate_report(
    model: nn.Module,
    batches: Iterable[Batch],
    spec: DatasetSpec,
    *,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    on_samples: Callable[[int], None] | None = None,
) -> GateReport:
    """Mean weights of all gates of all tasks (DTN, arXiv 2408.11611, Figure 4), streamed.

    DTN: the gate over a task's own modules and that over the others, before the scaling by
    probabilities. TFI: over own and shared modules. Models with an MMoE or PLE head: over the
    experts. The model is in eval mode meanwhile.

    Raises:
        ValueError: for a model without gates, or if there is no sample.
    """
    read = _reader(model, spec)
    was_training = model.training
    model.eval()
    # Sum of the weights, sum of their squared distances from ``centers``, which loses no digits.
    sums: dict[Candidate, NDArray[np.float64]] = {}
    centers: dict[Candidate, float] = {}
    samples = 0
    try:
        for batch in batches:
            with autocast():
                gates = read(batch.to(device))
            for candidates, weights in gates:
                values = weights.double()
                center = 1.0 / len(candidates)
                moments = torch.stack([values.sum(0), (values - center).square().sum(0)], dim=1)
                for candidate, moment in zip(candidates, moments.cpu().numpy(), strict=True):
                    sums[candidate] = sums.get(candidate, 0) + moment
                    centers[candidate] = center
            samples += len(batch)
            if on_samples is not None:
                on_samples(len(batch))
    finally:
        model.train(was_training)
    if not samples:
        raise bad("batches", "at least one sample", "none")
    found = []
    for candidate, (total, squares) in sums.items():
        mean = total / samples
        variance = max(squares / samples - (mean - centers[candidate]) ** 2, 0.0)
        found.append(GateWeight(candidate, float(mean), float(variance**0.5)))
    return GateReport(spec.tasks, tuple(found), samples)


def _reader(model: nn.Module, spec: DatasetSpec) -> Callable[[Batch], Gates]:
    """What reads the gates of a batch."""
    if isinstance(model, DTN):
        return lambda batch: _of_dtn(model, batch, spec)
    if isinstance(model, TFI):
        return lambda batch: _of_tfi(model, batch, spec)
    head = getattr(model, "head", None)
    if isinstance(head, (MMoE, PLE)):
        return lambda batch: _of_head(model, head, batch, spec)
    found = type(model).__name__ + (f" with the head {type(head).__name__}" if head else "")
    raise bad("model", "a model with gates: DTN, TFI, or one with an MMoE or PLE head", found)


def _of_dtn(model: DTN, batch: Batch, spec: DatasetSpec) -> Gates:
    gates = model(*batch.inputs(), return_gates=True).gates  # [B, T, 2, n]
    groups = [*spec.tasks, "shared"]
    methods = [config.name for config in model.config.interactions]
    # Two entries of one method are told apart by their numbers.
    first = {m: methods[:m].count(methods[m]) for m in range(len(methods))}
    found: Gates = []
    for t, task in enumerate(spec.tasks):
        for g, gate in ((1, "own"), (0, "other")):
            places = [
                i for i, key in enumerate(model.module_keys) if (key.group == t) == (gate == "own")
            ]
            if not places:
                continue
            keys = [model.module_keys[i] for i in places]
            candidates = [
                Candidate(
                    task,
                    gate,
                    groups[key.group],
                    methods[key.method],
                    first[key.method] * model.config.modules_per_group + key.number,
                )
                for key in keys
            ]
            # Group by group rather than method by method.
            order = sorted(range(len(keys)), key=lambda i: (keys[i].group, i))
            chosen = torch.tensor([places[i] for i in order], device=gates.device)
            found.append(([candidates[i] for i in order], gates[:, t, g, chosen]))
    return found


def _of_tfi(model: TFI, batch: Batch, spec: DatasetSpec) -> Gates:
    gates = model(*batch.inputs(), return_gates=True).gates  # [B, T, 2*J]
    method, numbers = model.config.interaction.name, range(model.modules_per_group)
    return [
        (
            [Candidate(task, "mixture", g, method, j) for g in (task, "shared") for j in numbers],
            gates[:, t],
        )
        for t, task in enumerate(spec.tasks)
    ]


def _of_head(model: nn.Module, head: MMoE | PLE, batch: Batch, spec: DatasetSpec) -> Gates:
    inputs: list[Tensor] = []
    watched: list[nn.Module] = list(head.levels) if isinstance(head, PLE) else [head]
    hooks = [
        module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for module in watched
    ]
    try:
        model(*batch.inputs())
    finally:
        for hook in hooks:
            hook.remove()
    found: Gates = []
    for level, (module, x) in enumerate(zip(watched, inputs, strict=True), start=1):
        gate, own = "mixture", 0
        if isinstance(module, ExtractionLevel):
            gates, gate = module.task_gates(x), f"level {level}"  # [T, B, n]
            own = module.num_task_experts
        elif isinstance(module, MMoE):
            gates = module.gates(x.unsqueeze(0) if x.dim() == 2 else x.transpose(0, 1))
        else:
            raise TypeError(f"expected MMoE or a level of PLE, found {type(module).__name__}")
        for t, task in enumerate(spec.tasks):
            candidates = [Candidate(task, gate, task, "expert", i) for i in range(own)]
            candidates += [
                Candidate(task, gate, "shared", "expert", i) for i in range(gates.shape[-1] - own)
            ]
            found.append((candidates, gates[t]))
    return found
