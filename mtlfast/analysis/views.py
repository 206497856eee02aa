"""Representations inside a model that are worth a look together: interactions, interests, ..."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast.analysis.rows import select_rows
from mtlfast.data import Batch, DatasetSpec
from mtlfast.errors import bad
from mtlfast.heads import MultiTaskHead
from mtlfast.models import DTN, DTRN, MTL, SFM, TFI

__all__ = ["Series", "View", "view_vectors", "views_of"]

Series = tuple[str, Tensor]
"""A name and vectors ``[n, W]``, one per sample."""
Read = Callable[[Batch], list[Series]]


@dataclass(frozen=True)
class View:
    """Several representations of the same samples, all of one width.

    Attributes:
        name: how it is asked for.
        title: what it shows.
        read: the representations of a batch.
        published: one of those that the model's paper shows.
        behavior: for interests, whose.
    """

    name: str
    title: str
    read: Read
    published: bool = True
    behavior: int | None = None


def views_of(model: nn.Module, spec: DatasetSpec) -> tuple[View, ...]:
    """The views that ``model`` offers.

    DTN (arXiv 2408.11611, Figure 5): of each method the modules of all groups, of each group the
    modules of all methods. TFI: the modules of all groups. SFM: the methods. DTRN (CIKM 2023,
    Figures 5 and 6): of each behavior the interests of all tasks, and what the heads read of each
    task. Every model with a multi-task head: what the towers read of each task.

    Raises:
        ValueError: for a model with none of these.
    """
    found: list[View] = []
    if isinstance(model, DTN):
        found += _of_dtn(model, spec)
    elif isinstance(model, TFI):
        found.append(View("modules", "modules by group", lambda batch: _of_tfi(model, batch, spec)))
    elif isinstance(model, DTRN):
        found += _of_dtrn(model, spec)
    elif isinstance(model, SFM):
        found.append(View("methods", "interactions by method", lambda batch: _of_sfm(model, batch)))
    head = getattr(model, "head", None)
    if isinstance(head, MultiTaskHead):
        found.append(
            View(
                "towers",
                "input of the towers by task",
                lambda batch: _of_head(model, head, batch, spec),
                published=type(model) is MTL,
            )
        )
    if not found:
        raise bad("model", "a model with interactions, interests or a head", type(model).__name__)
    return tuple(found)


@torch.no_grad()
def view_vectors(
    model: nn.Module,
    view: View,
    samples: Batch,
    *,
    batch_size: int = 2048,
    device: torch.device | str = "cpu",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Series]:
    """The representations of all ``samples`` as float32 on the CPU.

    The model is in eval mode meanwhile.
    """
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    try:
        for first in range(0, len(samples), batch_size):
            rows = torch.arange(first, min(first + batch_size, len(samples)))
            with autocast():
                series = view.read(select_rows(samples, rows).to(device))
            for name, vectors in series:
                parts.setdefault(name, []).append(vectors.float().cpu())
    finally:
        model.train(was_training)
    return [(name, torch.cat(vectors)) for name, vectors in parts.items()]


def _of_dtn(model: DTN, spec: DatasetSpec) -> list[View]:
    keys = model.module_keys
    groups = [*spec.tasks, "shared"]
    methods = [config.name for config in model.config.interactions]
    # Two entries of one method are told apart.
    names = [f"{name}{m}" if methods.count(name) > 1 else name for m, name in enumerate(methods)]
    numbered = model.config.modules_per_group > 1

    def read(places: Sequence[int], labels: Sequence[str]) -> Read:
        def series(batch: Batch) -> list[Series]:
            modules = torch.cat(model(*batch.inputs(), return_modules=True).modules)
            return [(label, modules[i]) for label, i in zip(labels, places, strict=True)]

        return series

    def label(name: str, i: int) -> str:
        return f"{name} {keys[i].number}" if numbered else name

    views = []
    for m in range(len(methods)):
        places = [i for i, key in enumerate(keys) if key.method == m]
        labels = [label(groups[keys[i].group], i) for i in places]
        if places:
            title = f"{names[m]}, modules by group"
            views.append(View(names[m], title, read(places, labels), published=m == 0))
    for g, group in enumerate(groups):
        places = [i for i, key in enumerate(keys) if key.group == g]
        labels = [label(names[keys[i].method], i) for i in places]
        if places:
            name = f"group-{group}"
            title = f"group of {group}, modules by method"
            views.append(View(name, title, read(places, labels), published=g == 0))
    return views


def _of_tfi(model: TFI, batch: Batch, spec: DatasetSpec) -> list[Series]:
    modules = model(*batch.inputs(), return_modules=True).modules
    per_group = model.modules_per_group
    names = [
        f"{group} {j}" if per_group > 1 else group
        for group in (*spec.tasks, "shared")
        for j in range(per_group)
    ]
    return list(zip(names, modules, strict=True))


def _of_sfm(model: SFM, batch: Batch) -> list[Series]:
    outputs = model.modules_of(model.embedding(batch.sparse, batch.bags), batch.sparse)
    methods = [f"{i} {type(method).__name__}" for i, method in enumerate(model.interactions)]
    return list(zip(methods, outputs, strict=True))


def _of_dtrn(model: DTRN, spec: DatasetSpec) -> list[View]:
    def interests(behavior: int) -> Read:
        def series(batch: Batch) -> list[Series]:
            found = model(batch.sparse, batch.sequences, batch.user_index, return_interests=True)
            return [(task, found.interests[:, t, behavior]) for t, task in enumerate(spec.tasks)]

        return series

    def bottom(batch: Batch) -> list[Series]:
        found = model(batch.sparse, batch.sequences, batch.user_index, return_bottom=True)
        return [(task, found.refined[:, t]) for t, task in enumerate(spec.tasks)]

    # The paper shows two behaviors, those of most tasks' names.
    shown = [b for b, name in enumerate(spec.behaviors) if name in ("watch", "click")] or [0]
    views = [
        View(
            f"interests-{name}",
            f"interests in the {name} sequence by task",
            interests(b),
            published=b in shown,
            behavior=b,
        )
        for b, name in enumerate(spec.behaviors)
    ]
    return [*views, View("bottom", "task-specific bottom representations", bottom)]


def _of_head(
    model: nn.Module, head: MultiTaskHead, batch: Batch, spec: DatasetSpec
) -> list[Series]:
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        model(*batch.inputs())
    finally:
        hook.remove()
    _, representations = head(inputs[0], return_task_repr=True)  # [B, T, W]
    return [(task, representations[:, t]) for t, task in enumerate(spec.tasks)]
