"""Permutation feature importance per task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mtlfast._ranking import Ranking
from mtlfast.analysis.columns import BagColumn, Column, FieldColumn, SequenceColumn
from mtlfast.data import Batch, DatasetSpec
from mtlfast.errors import bad
from mtlfast.models import FieldModel

__all__ = ["Feature", "Importance", "features_of", "permutation_importance", "ranks"]

Floats = NDArray[np.floating[Any]]
Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Feature:
    """One input of a model.

    Attributes:
        name: of the field; of a behavior with ``_seq`` behind it.
        kind: a sparse field, or the sequences of one behavior.
        index: which field or behavior of the data set.
    """

    name: str
    kind: Literal["field", "sequence"]
    index: int

    def to_record(self) -> dict[str, Any]:
        """Plain values."""
        return {"name": self.name, "kind": self.kind, "index": self.index}


@dataclass(frozen=True)
class Importance:
    """What :func:`permutation_importance` measured.

    Attributes:
        features: the F features.
        tasks: the T tasks.
        base: ``[T]``, the AUC on the data as they are; NaN where a task has only one class.
        drops: ``[F, R, T]``, ``base`` minus the AUC with the feature permuted, for each of the R
            repeats.
        samples: N, evaluated each time.
        seed: of the permutations.
    """

    features: tuple[Feature, ...]
    tasks: tuple[str, ...]
    base: NDArray[np.float64]
    drops: NDArray[np.float64]
    samples: int
    seed: int

    @property
    def mean(self) -> NDArray[np.float64]:
        """``[F, T]``, the importance: the mean drop over the repeats."""
        return self.drops.mean(axis=1)

    @property
    def sd(self) -> NDArray[np.float64]:
        """``[F, T]``, the sample standard deviation over the repeats; NaN for a single one."""
        if self.drops.shape[1] < 2:
            return np.full(self.mean.shape, np.nan)
        return self.drops.std(axis=1, ddof=1)

    @property
    def ranks(self) -> NDArray[np.int64]:
        """``[F, T]``, 1 for the most important feature of a task; see :func:`ranks`."""
        return np.stack([ranks(self.mean[:, t]) for t in range(len(self.tasks))], axis=1)

    def to_record(self) -> dict[str, Any]:
        """Plain values, as JSON takes them: None for NaN."""
        return {
            "tasks": list(self.tasks),
            "samples": self.samples,
            "seed": self.seed,
            "repeats": self.drops.shape[1],
            "base_auc": _plain(self.base),
            "features": [feature.to_record() for feature in self.features],
            "drops": _plain(self.drops),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Importance:
        """Inverse of :meth:`to_record`; other keys are ignored."""
        return cls(
            tuple(Feature(**feature) for feature in record["features"]),
            tuple(record["tasks"]),
            np.array(record["base_auc"], dtype=np.float64),
            np.array(record["drops"], dtype=np.float64),
            record["samples"],
            record["seed"],
        )


def _plain(values: NDArray[np.float64]) -> list[Any]:
    """Nested lists with None for NaN."""
    objects = values.astype(object)
    objects[np.isnan(values)] = None
    plain: list[Any] = objects.tolist()
    return plain


def ranks(importance: Floats) -> NDArray[np.int64]:
    """Rank of each of ``[F]`` features, 1 for the largest; equal ones share the better rank."""
    descending = -np.asarray(importance, dtype=np.float64)
    return 1 + np.searchsorted(np.sort(descending), descending, side="left").astype(np.int64)


def features_of(
    model: nn.Module, spec: DatasetSpec, names: Sequence[str] | None = None
) -> tuple[Feature, ...]:
    """The features that ``model`` reads, or those of them with these ``names``.

    Every sparse field, and the sequences of every behavior unless it is a model on fields alone.

    Raises:
        ValueError: for a name that is none, saying which there are.
    """
    found = [Feature(name, "field", i) for i, name in enumerate(spec.fields)]
    if not isinstance(model, FieldModel):
        found += [Feature(f"{name}_seq", "sequence", i) for i, name in enumerate(spec.behaviors)]
    if names is None:
        return tuple(found)
    by_name = {feature.name: feature for feature in found}
    unknown = [name for name in names if name not in by_name]
    if unknown or not names:
        raise bad("features", f"some of {', '.join(by_name)}", ", ".join(unknown) or "none")
    return tuple(by_name[name] for name in dict.fromkeys(names))


@torch.no_grad()
def permutation_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    spec: DatasetSpec,
    *,
    features: Sequence[Feature] | None = None,
    repeats: int = 1,
    seed: int = 0,
    memory: int = 1 << 30,
    device: torch.device | str = "cpu",
    autocast: Autocast = nullcontext,
    on_samples: Callable[[int], None] | None = None,
) -> Importance:
    """How much AUC each task loses when one feature is permuted (DTN, arXiv 2408.11611, Eq. 1-2)::

        FI_t(f) = AUC_t - AUC_t with column f replaced by a permutation of itself

    The permutation runs over all samples of the evaluation set, not within batches; a sequence or
    the ids of a multi-valued field move as a whole, and labels and all other columns stay. Repeat
    ``r`` of a feature uses ``numpy.random.default_rng([seed, kind, index, r]).permutation(N)``,
    kind 0 for fields and 1 for sequences, whichever other features are measured: sample ``i``
    takes the value of sample ``permutation[i]``.

    The data are streamed: besides one batch, only logits, labels and the columns in work are held,
    and as many columns and repeats are done in one pass over the data as ``memory`` allows. The
    results do not depend on it. A sample whose value the permutation does not change keeps its
    logits, which presumes what every model here fulfils in eval mode: that the logits of a sample
    depend on no other sample.

    Args:
        model: called as ``model(*batch.inputs())``, gives logits ``[B, T]``; in eval
            mode meanwhile, and then as it was.
        batches: the evaluation set, the same in every pass, on the CPU; a list or a
            :class:`mtlfast.data.BatchStream`.
        spec: names of fields, behaviors and tasks.
        features: which to measure; by default all that the model reads.
        repeats: permutations per feature.
        seed: of the permutations.
        memory: bytes for columns and logits; at least one column is worked on.
        on_samples: called with numbers of samples that add up to ``N * (1 + F * repeats)``, for
            progress bars.

    Raises:
        ValueError: for empty data, or data that change between the passes.
    """
    if repeats < 1:
        raise bad("repeats", "at least 1", repeats)
    if seed < 0:
        raise bad("seed", "at least 0", seed)
    features = features_of(model, spec) if features is None else tuple(features)
    if not features:
        raise bad("features", "at least one", "none")
    was_training = model.training
    model.eval()
    try:
        score = _Scorer(model, device, autocast)
        run = _Run(score, batches, spec, on_samples or (lambda samples: None))
        drops = np.empty((len(features), repeats, spec.num_tasks))
        jobs = [(f, r) for f in range(len(features)) for r in range(repeats)]
        while jobs:
            count = run.fitting(jobs, features, memory)
            done, jobs = jobs[:count], jobs[count:]
            for (f, r), auc in zip(done, run.measure(done, features, seed), strict=True):
                drops[f, r] = run.base - auc
    finally:
        model.train(was_training)
    return Importance(features, spec.tasks, run.base, drops, run.samples, seed)


class _Scorer:
    """Logits of a batch as float32 ``[B, T]``."""

    def __init__(self, model: nn.Module, device: torch.device | str, autocast: Autocast) -> None:
        self._model, self._device, self._autocast = model, device, autocast

    def __call__(self, batch: Batch) -> Floats:
        batch = batch.to(self._device)
        with self._autocast():
            logits = self._model(*batch.inputs())
        # float64 models keep their digits.
        kept = logits if logits.dtype == torch.float64 else logits.float()
        array: Floats = kept.cpu().numpy()
        return array


class _Run:
    """The evaluation set: read once to begin with, then once or twice per group of jobs."""

    def __init__(
        self,
        score: _Scorer,
        batches: Iterable[Batch],
        spec: DatasetSpec,
        on_samples: Callable[[int], None],
    ) -> None:
        self._score, self._batches, self._spec = score, batches, spec
        self._on_samples = on_samples
        logits, labels = [], []
        self._tokens = np.zeros(spec.num_behaviors, np.int64)
        self._bag_ids = np.zeros(len(spec.multi_valued), np.int64)
        for batch in batches:
            if not len(batch):
                continue
            logits.append(score(batch))
            labels.append(batch.labels.numpy() > 0.5)
            if batch.sequences is not None:
                self._tokens += batch.sequences.lengths().sum(dim=1).numpy()
            if batch.bags is not None:
                self._bag_ids += batch.bags.ids.lengths().sum(dim=1).numpy()
            on_samples(len(batch))
        if not logits:
            raise bad("batches", "at least one sample", "none")
        self._logits = np.concatenate(logits)
        self._labels = np.concatenate(labels)
        self.samples = len(self._labels)
        if self._logits.shape != self._labels.shape:
            raise bad("model", f"logits of shape {self._labels.shape}", self._logits.shape)
        self.base = self._auc(self._logits)

    def _auc(self, logits: Floats) -> NDArray[np.float64]:
        """``[T]``; NaN where a task has one class only or a logit is not a number."""
        values = [
            np.nan if np.isnan(logits[:, t]).any() else Ranking(logits[:, t], labels).auc()
            for t, labels in enumerate(self._labels.T)
        ]
        return np.array(values, dtype=np.float64)

    def fitting(
        self, jobs: Sequence[tuple[int, int]], features: Sequence[Feature], memory: int
    ) -> int:
        """How many of the ``jobs`` (feature, repeat) fit into ``memory`` bytes; at least one."""
        needed, columns = 0, set()
        for count, (f, _) in enumerate(jobs):
            needed += self.samples * 8 + self._logits.nbytes  # a permutation, and its logits
            if f not in columns:
                columns.add(f)
                needed += self.samples * (16 if features[f].kind == "sequence" else 8)
                if features[f].kind == "sequence":
                    needed += 2 * 8 * int(self._tokens[features[f].index])
                elif features[f].index in self._spec.multi_valued:
                    place = self._spec.multi_valued.index(features[f].index)
                    needed += self.samples * 16 + 2 * 16 * int(self._bag_ids[place])
            if needed > memory and count:
                return count
        return len(jobs)

    def measure(
        self, jobs: Sequence[tuple[int, int]], features: Sequence[Feature], seed: int
    ) -> list[NDArray[np.float64]]:
        """The AUC ``[T]`` of each job (feature, repeat)."""
        columns = {f: self._column(features[f]) for f, _ in jobs}
        for batch in self._batches:
            for column in columns.values():
                column.add(batch)
        for column in columns.values():
            column.check_full()
        keys = [(seed, int(features[f].kind == "sequence"), features[f].index, r) for f, r in jobs]
        permutations = [np.random.default_rng(key).permutation(self.samples) for key in keys]
        logits = [self._logits.copy() for _ in jobs]
        first = 0
        for batch in self._batches:
            rows = slice(first, first + len(batch))
            for job, (f, _) in enumerate(jobs):
                which, changed = columns[f].permuted(batch, permutations[job][rows], first)
                if len(which):
                    logits[job][rows][which.numpy()] = self._score(changed)
                self._on_samples(len(batch))
            first += len(batch)
        return [self._auc(values) for values in logits]

    def _column(self, feature: Feature) -> Column:
        if feature.index in self._spec.multi_valued and feature.kind == "field":
            place = self._spec.multi_valued.index(feature.index)
            size = self._spec.vocab_sizes[feature.index]
            return BagColumn(self.samples, feature.index, place, size)
        if feature.kind == "field":
            return FieldColumn(self.samples, feature.index, self._spec.vocab_sizes[feature.index])
        return SequenceColumn(self.samples, feature.index)
