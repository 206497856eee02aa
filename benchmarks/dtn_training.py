"""The workload ``dtn_training``: whole training steps of DTN on generated ids.

Forward, loss, backward and optimizer of the paper's set-up: 23 fields, output width 512, MaskNet,
MemoNet and GDCN in every group. The baseline is the same model with the same weights as a plain
loop of torch modules; both are trained with fused Adam on dense gradients.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from mtlfast import ops
from mtlfast.models import DTN, DTNConfig, Sizes

from .baselines.dtn import PlainDTN
from .cases import Case, Mode
from .check import BASELINE_FACTOR, FUSED_FACTOR, Tensors, Verdict, errors, judge
from .flops import Work
from .timing import Variant
from .workload import FUSED, why_not_fused

NUM_FIELDS = 23
VOCAB_SIZE = 1000
PLAIN = "plain"
_BATCHES = 4
_CHECK_BATCH = 128


def _sizes(case: Case) -> Sizes:
    parents = (None, *range(case.num_tasks - 1))
    return Sizes((VOCAB_SIZE,) * NUM_FIELDS, None, (), parents)


def _batch(case: Case, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Zipf-distributed ids and labels."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, NUM_FIELDS, generator=generator, dtype=torch.float64)
    ids = (1 + (VOCAB_SIZE**uniform - 1)).long().clamp(1, VOCAB_SIZE - 1)
    return ids, torch.rand(rows, case.num_tasks, generator=generator).round()


class DTNTrainingWorkload:
    """See :class:`~.workload.Workload`."""

    def __init__(self, case: Case, *, sets: int | None = None) -> None:
        self.case = case
        self.sets = _BATCHES if sets is None else sets
        torch.manual_seed(0)
        model = DTN(_sizes(case), DTNConfig(embed_dim=case.d))
        self.models: dict[str, Any] = {FUSED: model, PLAIN: PlainDTN(model)}
        self.optimizers = {
            name: torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
            for name, model in self.models.items()
        }
        self.batches = [_batch(case, case.batch, seed) for seed in range(self.sets)]

    def backends(self, mode: Mode) -> tuple[str, ...]:
        return (FUSED, PLAIN)

    def unavailable(self, backend: str, mode: Mode) -> str:
        if backend != FUSED:
            return ""
        book = torch.zeros(1, 8, self.case.d)
        ids = torch.zeros(2, NUM_FIELDS, dtype=torch.int64)
        return why_not_fused(ops.explain("multi_hash_lookup", ids, book, num_hashes=2))

    def variant(self, backend: str, mode: Mode) -> Variant:
        model, optimizer = self.models[backend], self.optimizers[backend]

        def step(i: int) -> float:
            ids, labels = self.batches[i]
            loss = model.loss(model(ids), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        return step

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        """Compares logits and gradients at other weights with float64."""
        truth, plain = self._expected()
        factor = FUSED_FACTOR["training"] if backend == FUSED else BASELINE_FACTOR
        models = {FUSED: self._small, PLAIN: self._small_plain}
        return judge(_gradients(models[backend], *self._check_batch), truth, plain, factor)

    def work(self, mode: Mode) -> Work:
        return Work(flops=0.0, bytes=0.0, padding=1.0)

    @property
    def _check_batch(self) -> tuple[Tensor, Tensor]:
        return _batch(self.case, _CHECK_BATCH, 99)

    @functools.cached_property
    def _small(self) -> DTN:
        torch.manual_seed(1)
        model = DTN(_sizes(self.case), DTNConfig(embed_dim=self.case.d, init_std=0.1))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "embedding.weight":
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
        return model

    @functools.cached_property
    def _small_plain(self) -> PlainDTN:
        return PlainDTN(self._small)

    @functools.cache  # noqa: B019 (lives as long as the worker process)
    def _expected(self) -> tuple[Tensors, dict[str, float]]:
        ids, labels = self._check_batch
        plain = _gradients(self._small_plain, ids, labels)
        truth = _gradients(self._small.double(), ids, labels.double())
        self._small.float()
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}


def _gradients(model: nn.Module, ids: Tensor, labels: Tensor) -> Tensors:
    """Logits, and the gradients of the tables and codebooks, which everything else flows into."""
    if isinstance(model, DTN):
        tables = [model.embedding.weight]
        books = [p for name, p in model.named_parameters() if name.endswith("codebook")]
    else:
        found = dict(model.named_parameters())
        tables = [p for name, p in found.items() if name.startswith("tables.")]
        books = [p for name, p in found.items() if name.endswith("codebook.weight")]
    logits = model(ids)
    loss: Any = model.loss
    grads = torch.autograd.grad(loss(logits, labels), [*tables, *books])
    return {
        "out": logits.detach(),
        "tables": torch.cat(grads[: len(tables)]),
        "codebooks": torch.cat([g.flatten(0, -2) for g in grads[len(tables) :]]),
    }
