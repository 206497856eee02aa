"""``multi_hash_lookup`` on a GPU: its inputs, variants and truth."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops

from ..baselines import multi_hash_lookup as baselines
from ..cases import Case, Mode
from ..check import Tensors
from ..flops import Work
from ..multi_hash import MultiHashWorkload
from .graphs import BACKENDS
from .variants import Failed, Variant, graphed

_SETS = 4


class MultiHash:
    """Zipf-distributed ids, one shared codebook, a weight for every pair.

    The codebook's gradient is dense or, by ``case.gradient``, sparse. CUDA graphs hold no sparse
    gradient: the host must learn how many rows it has.
    """

    def __init__(self, case: Case, mode: Mode, device: str, *, compiled: bool) -> None:
        self.case, self.device, self.compiled = case, device, compiled
        self.training = mode == "training"
        with torch.device("cpu"):
            self.workload = MultiHashWorkload(case, sets=_SETS)
            self.work: Work = self.workload.work(mode)
        self.sets = self.workload.sets
        self.ids = [ids.to(device) for ids in self.workload.ids]
        self.codebook = self._leaf(self.workload.codebook)
        self.books = self._leaf(self.workload.codebook[None])
        self.weights = [self._leaf(weights) for weights in self.workload.weights]
        self.grads = [grad.to(device) for grad in self.workload.grads]

    def variants(self) -> dict[str, Callable[[], Variant]]:
        make: dict[str, Callable[[], Variant]] = {}
        for backend in BACKENDS:
            make[backend] = functools.partial(self._fused, backend)
        make["eager"] = self._eager
        if self.case.dtype == "float32":
            make["bag"] = lambda: self._plain(baselines.bag)
        if self.case.gradient != "sparse":
            for backend in BACKENDS:
                make[f"{backend}_graph"] = lambda backend=backend: graphed(
                    self._fused(backend), self.sets, self.device
                )
            make["eager_graph"] = lambda: graphed(self._eager(), self.sets, self.device)
        if self.compiled:
            make["compiled"] = lambda: self._plain(torch.compile(baselines.eager, dynamic=False))
        return make

    def named(self, result: Any) -> Tensors:
        if not self.training:
            return {"out": result}
        out, codebook, weights = result
        dense = codebook.to_dense().view(self.codebook.shape)
        return {"out": out.detach(), "codebook": dense, "pair_weights": weights}

    def expected(self) -> tuple[Tensors, dict[str, float]]:
        with torch.device("cpu"):
            truth, plain = self.workload.expected(self.training)
        return {name: tensor.to(self.device) for name, tensor in truth.items()}, plain

    def _leaf(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(self.device).requires_grad_(self.training)

    def _fused(self, backend: str) -> Variant:
        options: dict[str, Any] = {"num_hashes": self.case.num_hashes, "backend": backend}
        if self.case.gradient == "sparse":
            options["sparse_grad"] = True

        def call(i: int) -> Tensor:
            return ops.multi_hash_lookup(
                self.ids[i], self.books, pair_weights=self.weights[i], **options
            )

        try:
            ops.explain(
                "multi_hash_lookup",
                self.ids[0],
                self.books,
                pair_weights=self.weights[0],
                **options,
            )
        except ValueError as reason:
            raise Failed(str(reason)) from None
        return self._run(call, self.books)

    def _eager(self) -> Variant:
        return self._plain(baselines.eager)

    def _plain(self, function: Callable[..., Tensor]) -> Variant:
        options = {
            "layout": baselines.layout(self.case.num_fields, self.codebook.dtype, self.device),
            "num_hashes": self.case.num_hashes,
            "sparse": self.case.gradient == "sparse",
        }
        return self._run(
            lambda i: function(self.ids[i], self.codebook, self.weights[i], **options),
            self.codebook,
        )

    def _run(self, call: Callable[[int], Tensor], codebook: Tensor) -> Variant:
        def variant(i: int) -> Any:
            with torch.set_grad_enabled(self.training):
                out = call(i)
                if not self.training:
                    return out
                leaves = (codebook, self.weights[i])
                return [out, *torch.autograd.grad(out, leaves, self.grads[i])]

        return variant
