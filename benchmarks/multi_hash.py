"""The workload ``multi_hash_lookup``: pairs of fields, looked up and shrunk; zipf-distributed ids.

Three kinds of training, by ``case.gradient``: the codebook's gradient is dense, or sparse, or an
Adagrad step is part of the call.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mtlfast import nn as mtlfast_nn
from mtlfast import ops, reference

from .baselines import multi_hash_lookup as baselines
from .cases import Case, Gradient, Mode
from .check import BASELINE_FACTOR, FUSED_FACTOR, Tensors, Verdict, errors, judge
from .flops import Work
from .timing import Variant
from .workload import FUSED, why_not_compiled, why_not_fused

_SETS = 16
_LR = 0.01
Function = Callable[..., Tensor]


def zipf_ids(case: Case, sets: int) -> list[Tensor]:
    """Ids ``[B, F]``: vocabularies from 10 to 10^6, ids by a zipf law with exponent 1.05."""
    generator = torch.Generator().manual_seed(0)
    columns = []
    for field in range(case.num_fields):
        size = int(10 ** (1 + 5 * field / (case.num_fields - 1)))
        shares = torch.arange(1, size + 1, dtype=torch.float64) ** -1.05
        edges = shares.cumsum(0) / shares.sum()
        drawn = torch.rand(sets, case.batch, generator=generator, dtype=torch.float64)
        columns.append(torch.searchsorted(edges, drawn).clamp(max=size - 1))
    return list(torch.stack(columns, -1))


class MultiHashWorkload:
    """See :class:`~.workload.Workload`."""

    def __init__(self, case: Case, *, sets: int | None = None) -> None:
        self.case = case
        self.sets = _SETS if sets is None else sets
        generator = torch.Generator().manual_seed(0)
        pairs = case.num_fields * (case.num_fields - 1) // 2
        dtype = getattr(torch, case.dtype)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.ids = zipf_ids(case, self.sets)
        self.codebook = normal(case.num_codewords, case.d).to(dtype)
        self.weights = [normal(case.batch, pairs).to(dtype) for _ in range(self.sets)]
        width = case.num_hashes * case.d
        self.grads = [
            normal(case.batch, case.num_fields, width).to(dtype) for _ in range(self.sets)
        ]

    def backends(self, mode: Mode) -> tuple[str, ...]:
        if mode == "training" and self.case.gradient == "sparse":
            # Eager's sparse gradient has a row for every codeword used; coalesced, each row once.
            return (FUSED, "eager", "eager_coalesced", "bag")
        if mode == "training" and self.case.gradient == "step":
            return (FUSED, "fused_rowwise", "fused_unfused_step", "eager", "eager_sparse")
        return (FUSED, "eager", "bag", "compiled", "reference")

    def unavailable(self, backend: str, mode: Mode) -> str:
        if backend == "bag" and self.case.dtype != "float32":
            return "embedding_bag with weights is float32 only"
        if not backend.startswith(FUSED):
            return why_not_compiled(backend)
        chosen = ops.explain(
            "multi_hash_lookup",
            self.ids[0],
            self.codebook[None],
            num_hashes=self.case.num_hashes,
            pair_weights=self.weights[0],
        )
        return why_not_fused(chosen)

    def variant(self, backend: str, mode: Mode) -> Variant:
        if mode == "training" and self.case.gradient == "step":
            return self._step(backend)
        training = mode == "training"
        function = _function(backend, self.case)
        codebook = self.codebook.detach().requires_grad_(training)
        weights = [w.detach().requires_grad_(training) for w in self.weights]

        def call(i: int) -> Any:
            with torch.set_grad_enabled(training):
                out = function(self.ids[i], codebook, weights[i])
                if not training:
                    return out
                found = torch.autograd.grad(out, (codebook, weights[i]), self.grads[i])
                if backend == "eager_coalesced":
                    found = (found[0].coalesce(), found[1])
                return (out.detach(), *found)

        return call

    def check(self, backend: str, mode: Mode, result: Any) -> Verdict:
        training = mode == "training"
        factor = FUSED_FACTOR[mode] if backend.startswith(FUSED) else BASELINE_FACTOR
        if training and self.case.gradient == "step":
            return self._check_step(backend, factor)
        named: Tensors = {"out": result[0] if training else result}
        if training:
            named |= {"codebook": result[1].to_dense(), "pair_weights": result[2]}
            named["codebook"] = named["codebook"].view(self.codebook.shape)
        truth, plain = self.expected(training)
        return judge(named, truth, plain, factor)

    def work(self, mode: Mode) -> Work:
        case = self.case
        size = 2 if case.dtype == "bfloat16" else 4
        pairs = case.num_fields * (case.num_fields - 1) // 2
        rows = case.batch * pairs * case.num_hashes
        out = case.batch * case.num_fields * case.num_hashes * case.d
        # A multiplication and two additions per element of a codeword; the backward as much for
        # each of the two gradients.
        flops = 3.0 * rows * case.d * (3 if mode == "training" else 1)
        moved = size * (rows * case.d + out) + 4 * case.batch * pairs
        if mode == "training":
            moved += size * (rows * case.d + out) + 4 * case.batch * pairs
            if case.gradient == "dense":
                moved += size * case.num_codewords * case.d
        return Work(flops=flops, bytes=float(moved), padding=1.0)

    @functools.cache  # noqa: B019 (lives as long as the worker process)
    def expected(self, training: bool) -> tuple[Tensors, dict[str, float]]:
        """The truth of the first input set, and the error of plain PyTorch in the case's dtype."""

        def compute(dtype: torch.dtype) -> Tensors:
            codebook = self.codebook.to(dtype).requires_grad_(training)
            weights = self.weights[0].to(dtype).requires_grad_(training)
            with torch.set_grad_enabled(training):
                out = _reference(self.ids[0], codebook, weights, self.case)
                named = {"out": out.detach()}
                if training:
                    found = torch.autograd.grad(out, (codebook, weights), self.grads[0].to(dtype))
                    named |= dict(zip(("codebook", "pair_weights"), found, strict=True))
            return named

        truth = compute(torch.float64)
        plain = compute(self.codebook.dtype)
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}

    # ---- with the optimizer's step ----

    def _step(self, backend: str) -> Variant:
        case = self.case
        module = _Lookup(self.codebook, case)
        optimizer = module.optimizer(backend)
        weights = [w.detach().requires_grad_() for w in self.weights]

        def call(i: int) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            module(backend, self.ids[i], weights[i]).backward(self.grads[i])
            optimizer.step()
            found = weights[i].grad
            assert found is not None
            weights[i].grad = None
            return found

        return call

    def _check_step(self, backend: str, factor: float) -> Verdict:
        """Two steps of a smaller case of the same kind, against float64."""
        small = MultiHashWorkload(replace(self.case, batch=256, num_codewords=5000), sets=2)

        def codebook_after(name: str, dtype: torch.dtype) -> Tensor:
            module = _Lookup(small.codebook.to(dtype), small.case)
            optimizer = module.optimizer(name)
            for i in range(2):
                optimizer.zero_grad(set_to_none=True)
                out = module(name, small.ids[i], small.weights[i].to(dtype))
                out.backward(small.grads[i].to(dtype))
                optimizer.step()
            return module.rows().detach()

        rowwise = backend == "fused_rowwise"
        truth = codebook_after("reference_rowwise" if rowwise else "reference", torch.float64)
        plain = codebook_after("reference_rowwise" if rowwise else "reference", torch.float32)
        # What the steps changed is judged, not the codebook they started from.
        start = small.codebook.double()
        found = codebook_after(backend, torch.float32).double() - start
        expected = truth - start
        return judge(
            {"update": found},
            {"update": expected},
            {"update": errors(plain.double() - start, expected)[0]},
            factor,
        )


class _Lookup(torch.nn.Module):
    """A codebook with any backend's lookup and optimizer."""

    def __init__(self, codebook: Tensor, case: Case) -> None:
        super().__init__()
        self.case = case
        self.module = mtlfast_nn.MultiHashCodebook(
            case.num_fields, 1, case.d, 1, num_hashes=case.num_hashes, shrinking="sum"
        )
        self.module.codebook = torch.nn.Parameter(codebook.detach().clone()[None, None])
        self.flat = torch.nn.Parameter(codebook.detach().clone())

    def optimizer(self, backend: str) -> torch.optim.Optimizer:
        if backend in (FUSED, "fused_rowwise"):
            return mtlfast_nn.FusedAdagrad(self.module, _LR, rowwise=backend == "fused_rowwise")
        if backend == "reference_rowwise":
            return _RowwiseAdagrad([self.flat], {"lr": _LR})
        return torch.optim.Adagrad([self.flat], _LR)

    def forward(self, backend: str, ids: Tensor, weights: Tensor) -> Tensor:
        if backend in (FUSED, "fused_rowwise"):
            return ops.multi_hash_lookup(
                ids,
                self.module.codebook[0],
                num_hashes=self.case.num_hashes,
                pair_weights=weights,
                # The optimizer has set it.
                fused_step=lambda: self.module.fused_step(self.module.codebook, 0),  # type: ignore[misc]
                backend="cpu",
            )
        if backend.startswith("reference"):
            return _reference(ids, self.flat, weights, self.case)
        if backend == "fused_unfused_step":
            return _function(FUSED, replace(self.case, gradient="sparse"))(ids, self.flat, weights)
        kind: Gradient = "sparse" if backend == "eager_sparse" else "dense"
        return _function("eager", replace(self.case, gradient=kind))(ids, self.flat, weights)

    def rows(self) -> Tensor:
        """The codebook that was trained."""
        fused = self.module.fused_step is not None
        return self.module.codebook[0, 0] if fused else self.flat


class _RowwiseAdagrad(torch.optim.Optimizer):
    """The formula of :class:`mtlfast.nn.FusedAdagrad`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        (parameter,) = self.param_groups[0]["params"]
        state = self.state[parameter]
        squares = parameter.grad.square().mean(1)
        state["sum"] = state.get("sum", 0) + squares
        scale = self.param_groups[0]["lr"] / (state["sum"].sqrt() + 1e-10)
        parameter -= scale[:, None] * parameter.grad


def _reference(ids: Tensor, codebook: Tensor, weights: Tensor, case: Case) -> Tensor:
    return reference.multi_hash_lookup(
        ids, codebook[None], num_hashes=case.num_hashes, pair_weights=weights
    )


@functools.lru_cache(maxsize=16)
def _function(backend: str, case: Case) -> Function:
    """``function(ids, codebook [n, c], pair_weights)``."""
    sparse = case.gradient == "sparse"
    if backend == FUSED:

        def fused(ids: Tensor, codebook: Tensor, weights: Tensor) -> Tensor:
            if sparse:
                codebook = _OneBook.apply(codebook)
            else:
                codebook = codebook[None]
            return ops.multi_hash_lookup(
                ids,
                codebook,
                num_hashes=case.num_hashes,
                pair_weights=weights,
                sparse_grad=sparse,
                backend="cpu",
            )

        return fused
    if backend == "reference":
        return functools.partial(_reference, case=case)
    function = functools.partial(
        baselines.bag if backend == "bag" else baselines.eager,
        layout=baselines.layout(case.num_fields, getattr(torch, case.dtype)),
        num_hashes=case.num_hashes,
        sparse=sparse,
    )
    if backend == "compiled":
        return torch.compile(function, fullgraph=True, dynamic=False)
    return function


class _OneBook(torch.autograd.Function):
    """``codebook[None]`` for sparse gradients, which views do not have."""

    @staticmethod
    def forward(ctx: Any, codebook: Tensor) -> Tensor:
        return codebook[None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.sparse_coo_tensor(
            grad.indices()[1:],
            grad.values(),
            grad.shape[1:],
            check_invariants=False,
            is_coalesced=True,
        )
