"""The launches, in order. Tensors in, tensors out; arguments are those of the C++ ops."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from ..interpreter import repair
from .config import Config, Launch, config
from .decoder import absorb_queries, decoder_tail
from .decoder_backward import decoder_tail_backward, queries_backward
from .encoder import encode_and_pool
from .encoder_backward import encoder_backward
from .layout import Layout
from .parameters import pack_parameters, sum_parameter_gradients
from .segments import find_segments
from .self_attention import project_tokens, self_attention
from .self_attention_backward import (
    attention_backward_keys,
    attention_backward_queries,
    project_tokens_backward,
    tokens_backward,
)

if os.environ.get("TRITON_INTERPRET", "0") == "1":
    repair()

NUM_PARAMETERS = 18  # 8 encoder weights, 8 decoder weights, scale, shift
_SEGMENT_BLOCK, _PACK_BLOCK, _SUM_BLOCK, _SUMS = 128, 512, 256, 32


class Problem:
    """Sizes and helper tensors that forward and backward share."""

    def __init__(
        self,
        values: Tensor,
        offsets: Tensor,
        num_behaviors: int,
        target: Tensor,
        user_index: Tensor | None,
        parameters: Sequence[Tensor],
        num_heads: int,
    ) -> None:
        self.values, self.target = values, target
        self.offsets = offsets.contiguous()
        self.parameters = [parameter.contiguous() for parameter in parameters]
        scale, hidden = parameters[16], parameters[4]
        self.layout = Layout(values.shape[1], hidden.shape[0], num_heads)
        self.num_tokens, self.num_candidates = values.shape[0], target.shape[0]
        self.num_tasks, self.num_behaviors = scale.shape[0], num_behaviors
        self.num_segments = offsets.shape[0] - 1
        self.num_users = self.num_segments // num_behaviors
        self.dtype = values.dtype
        self.config: Config = config(self.layout, str(values.dtype).removeprefix("torch."))
        self.query_scale = 1.0 / math.sqrt(values.shape[1] // num_heads)
        self.precision = _precision(values)
        self.shared = user_index is not None
        # Kernels that do not read them still want pointers.
        self.order = self.user_index = self.candidate_begin = self.offsets
        if user_index is not None:
            self.user_index = user_index.contiguous()
            sorted_users, self.order = torch.sort(user_index, stable=True)
            users = torch.arange(self.num_users + 1, device=user_index.device)
            self.candidate_begin = torch.searchsorted(sorted_users, users)

    @property
    def empty(self) -> bool:
        return self.num_candidates == 0 or self.num_users == 0

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.values.new_empty(shape, dtype=dtype or self.dtype)

    def floats(self, *shape: int) -> Tensor:
        return self.new(*shape, dtype=torch.float32)

    def constants(self, *names: str, **others: Any) -> dict[str, Any]:
        known = {
            **self.layout.constants(),
            "DF": self.layout.d_f,
            "HD": self.layout.head_columns,
            "PRECISION": self.precision,
            "SHARED": self.shared,
        }
        return {name: known[name] for name in names} | others

    @property
    def strides(self) -> tuple[int, int]:
        return self.values.stride(0), self.values.stride(1)

    @property
    def target_strides(self) -> tuple[int, int]:
        return self.target.stride(0), self.target.stride(1)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return (
            self.num_candidates,
            self.num_users,
            self.num_behaviors,
            self.num_tasks,
            self.num_tokens,
        )

    @property
    def num_vectors(self) -> int:
        return self.layout.packed_vectors(self.num_tasks, self.num_behaviors)

    # ---- launches that both directions need ----

    def segments(self) -> Tensor:
        """[N]: the segment of every token, -1 where no candidate refers to its user."""
        kind = torch.int32 if self.num_segments < 1 << 31 else torch.int64
        segments = self.new(self.num_tokens, dtype=kind)
        find_segments[(triton.cdiv(self.num_tokens, _SEGMENT_BLOCK),)](
            self.offsets,
            self.candidate_begin,
            segments,
            self.num_tokens,
            self.num_segments,
            self.num_users,
            max(self.num_segments - 1, 0).bit_length(),
            SHARED=self.shared,
            BLOCK=_SEGMENT_BLOCK,
        )
        return segments

    def packed(self) -> tuple[Tensor, Tensor]:
        """The parameters in the kernels' layout: matrices in the products' dtype, vectors."""
        size = self.layout.packed_matrices()
        matrices, vectors = self.new(size), self.floats(self.num_vectors)
        pack_parameters[(triton.cdiv(size + self.num_vectors, _PACK_BLOCK),)](
            *self.parameters,
            matrices,
            vectors,
            self.num_tasks * self.num_behaviors,
            self.num_vectors,
            **self.constants("D", "DF", "H", "DP", "HP", "DHP", "FP", BLOCK=_PACK_BLOCK),
        )
        return matrices, vectors

    def queries(self, matrices: Tensor) -> Tensor:
        """[B, H, DP]: the decoder's queries absorbed into its key projection."""
        launch = self.config.queries
        queries = self.new(self.num_candidates, self.layout.heads, self.layout.dp)
        absorb_queries[(triton.cdiv(self.num_candidates, launch.rows),)](
            self.target,
            matrices,
            queries,
            *self.target_strides,
            self.num_candidates,
            self.query_scale,
            **self.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", ROWS=launch.rows),
            **_options(launch),
        )
        return queries


def forward(
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    target: Tensor,
    user_index: Tensor | None,
    parameters: Sequence[Tensor],
    num_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out ``[B, T, M, d]`` and what the backward needs: see :func:`saved_shapes`."""
    p = Problem(values, offsets, num_behaviors, target, user_index, parameters, num_heads)
    shapes = saved_shapes(p.num_tokens, p.num_candidates, p.num_tasks, p.num_behaviors, p.layout)
    out = p.new(p.num_candidates, p.num_tasks, p.num_behaviors, p.layout.d)
    normalized, pooled = p.new(*shapes[0]), p.new(*shapes[2])
    rstd, log_sums = p.floats(*shapes[1]), p.floats(*shapes[3])
    saved = (normalized, rstd, pooled, log_sums)
    if p.empty:
        return (out, *(tensor.zero_() for tensor in saved))  # type: ignore[return-value]
    with _on(values):
        matrices, vectors = p.packed()
        if p.num_tokens > 0:
            _self_attention(p, matrices, normalized, rstd, eps)
        queries = p.queries(matrices)
        launch = p.config.encoder
        candidates = launch.other // p.layout.hp
        encode_and_pool[(triton.cdiv(p.num_candidates, candidates), num_behaviors, p.num_tasks)](
            normalized,
            queries,
            p.offsets,
            p.order,
            p.user_index,
            matrices,
            vectors,
            pooled,
            log_sums,
            *p.sizes,
            eps,
            **p.constants("D", "H", "DP", "HP", "FP", "HD", "PRECISION", "SHARED"),
            CANDIDATES=candidates,
            TOKENS=launch.rows,
            BH=launch.hidden,
            **_options(launch),
        )
        launch = p.config.tail
        decoder_tail[(triton.cdiv(p.num_candidates, launch.rows), num_behaviors, p.num_tasks)](
            p.target,
            pooled,
            p.offsets,
            p.user_index,
            matrices,
            vectors,
            out,
            *p.target_strides,
            *p.sizes,
            eps,
            **p.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=launch.rows,
            BH=launch.hidden,
            **_options(launch),
        )
    return out, *saved


def saved_shapes(
    num_tokens: int, num_candidates: int, num_tasks: int, num_behaviors: int, layout: Layout
) -> tuple[tuple[int, ...], ...]:
    """Normalized tokens, their reciprocal deviations, pooled vectors, softmax statistics.

    The second and fourth are float32, the others have the dtype of the values.
    """
    rows = (num_candidates, num_tasks, num_behaviors, layout.heads)
    return (num_tokens, layout.dp), (num_tokens,), (*rows, layout.dp), rows


def _self_attention(
    p: Problem, matrices: Tensor, normalized: Tensor, rstd: Tensor, eps: float
) -> None:
    segments = p.segments()
    projected = p.new(3, p.num_tokens, p.layout.head_columns)
    launch = p.config.project
    project_tokens[(triton.cdiv(p.num_tokens, launch.rows),)](
        p.values,
        segments,
        matrices,
        projected,
        *p.strides,
        p.num_tokens,
        **p.constants("D", "DP", "HD", "PRECISION", ROWS=launch.rows),
        **_options(launch),
    )
    launch = p.config.attention
    self_attention[(triton.cdiv(p.num_tokens, launch.rows),)](
        p.values,
        projected,
        segments,
        p.offsets,
        matrices,
        normalized,
        rstd,
        *p.strides,
        p.num_tokens,
        p.query_scale,
        eps,
        **p.constants("D", "H", "DP", "DHP", "HD", "PRECISION"),
        ROWS=launch.rows,
        KEYS=launch.other,
        **_options(launch),
    )


def backward(
    grad_out: Tensor,
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    target: Tensor,
    user_index: Tensor | None,
    parameters: Sequence[Tensor],
    num_heads: int,
    eps: float,
    saved: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    """Gradients of values, target and the 18 parameters."""
    p = Problem(values, offsets, num_behaviors, target, user_index, parameters, num_heads)
    grad_values, grad_target = p.new(*values.shape), p.new(*target.shape)
    gradients = [parameter.new_empty(parameter.shape) for parameter in parameters]
    if p.empty:
        return tuple(t.zero_() for t in (grad_values, grad_target, *gradients))
    normalized, rstd, pooled, log_sums = saved
    layout, b, t, m = p.layout, p.num_candidates, p.num_tasks, p.num_behaviors
    most = _programs(values)
    with _on(values):
        matrices, vectors = p.packed()
        queries = p.queries(matrices)
        size = layout.packed_matrices() + p.num_vectors
        tail, encoder = p.config.tail_backward, p.config.encoder_backward
        candidates = encoder.other // layout.hp
        # How many programs there are decides in which order gradients are summed: nothing but
        # sizes and the device may enter.
        work = (
            triton.cdiv(b, tail.rows) * m,
            triton.cdiv(p.num_users, candidates) * m,
            triton.cdiv(p.num_tokens, p.config.tokens_backward.rows),
            triton.cdiv(b, p.config.queries_backward.rows),
        )
        programs = [max(1, min(most, items)) for items in work]
        sums = torch.zeros(max(programs), size, dtype=torch.float32, device=values.device)
        d_pooled, inner = p.new(*pooled.shape), p.floats(*log_sums.shape)
        d_items = p.floats(m, b, layout.dp)
        decoder_tail_backward[(programs[0],)](
            grad_out,
            p.target,
            pooled,
            p.offsets,
            p.user_index,
            matrices,
            vectors,
            sums,
            d_pooled,
            inner,
            d_items,
            *p.target_strides,
            *grad_out.stride(),
            *p.sizes,
            size,
            eps,
            **p.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=tail.rows,
            BH=tail.hidden,
            **_options(tail),
        )
        d_queries = torch.zeros(m, b, layout.heads, layout.dp, device=values.device)
        if p.num_tokens > 0:
            segments = p.segments()
            d_normalized = p.floats(p.num_tokens, layout.dp)
            encoder_backward[(programs[1],)](
                normalized,
                segments,
                queries,
                d_pooled,
                log_sums,
                inner,
                p.offsets,
                p.order,
                p.user_index,
                p.candidate_begin,
                matrices,
                vectors,
                sums,
                d_queries,
                d_normalized,
                *p.sizes,
                size,
                eps,
                **p.constants("D", "H", "DP", "HP", "FP", "HD", "PRECISION", "SHARED"),
                CANDIDATES=candidates,
                TOKENS=encoder.rows,
                BH=encoder.hidden,
                **_options(encoder),
            )
            _self_attention_backward(
                p,
                matrices,
                normalized,
                rstd,
                segments,
                d_normalized,
                sums,
                programs[2],
                grad_values,
            )
        launch = p.config.queries_backward
        queries_backward[(programs[3],)](
            p.target,
            matrices,
            d_queries,
            d_items,
            sums,
            grad_target,
            *p.target_strides,
            b,
            m,
            size,
            p.query_scale,
            **p.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", ROWS=launch.rows),
            **_options(launch),
        )
        sum_parameter_gradients[(triton.cdiv(size, _SUM_BLOCK),)](
            sums,
            *gradients,
            sums.shape[0],
            size,
            t * m,
            **p.constants("D", "DF", "H", "DP", "HP", "DHP", "FP"),
            BLOCK=_SUM_BLOCK,
            SUMS=_SUMS,
        )
    return grad_values, grad_target, *gradients


def _self_attention_backward(
    p: Problem,
    matrices: Tensor,
    normalized: Tensor,
    rstd: Tensor,
    segments: Tensor,
    gradient: Tensor,
    sums: Tensor,
    programs: int,
    grad_values: Tensor,
) -> None:
    n, heads, columns = p.num_tokens, p.layout.heads, p.layout.head_columns
    launch = p.config.project_backward
    projected = p.new(4, n, columns)
    project_tokens_backward[(triton.cdiv(n, launch.rows),)](
        p.values,
        segments,
        matrices,
        normalized,
        rstd,
        gradient,
        projected,
        *p.strides,
        n,
        **p.constants("D", "DP", "HD", "PRECISION", ROWS=launch.rows),
        **_options(launch),
    )
    launch = p.config.attention_backward
    mixed, d_query, d_key, d_value = (p.new(n, columns) for _ in range(4))
    log_sums, inner = p.floats(heads, n), p.floats(heads, n)
    grid = (triton.cdiv(n, launch.rows),)
    constants = p.constants("H", "DHP", "HD", "PRECISION", ROWS=launch.rows)
    attention_backward_queries[grid](
        projected,
        segments,
        p.offsets,
        mixed,
        log_sums,
        inner,
        d_query,
        n,
        p.query_scale,
        **constants,
        KEYS=launch.other,
        **_options(launch),
    )
    attention_backward_keys[grid](
        projected,
        segments,
        p.offsets,
        log_sums,
        inner,
        d_key,
        d_value,
        n,
        p.query_scale,
        **constants,
        QUERIES=launch.other,
        **_options(launch),
    )
    launch = p.config.tokens_backward
    tokens_backward[(programs,)](
        p.values,
        segments,
        matrices,
        gradient,
        mixed,
        d_query,
        d_key,
        d_value,
        sums,
        grad_values,
        *p.strides,
        n,
        sums.shape[1],
        **p.constants("D", "DP", "HD", "PRECISION", ROWS=launch.rows),
        FEATURES=min(columns, 64),
        **_options(launch),
    )


def _options(launch: Launch) -> dict[str, int]:
    return {"num_warps": launch.warps, "num_stages": launch.stages}


def _precision(values: Tensor) -> str:
    """float32 products are exact unless torch was asked for TF32."""
    tf32 = values.is_cuda and torch.backends.cuda.matmul.allow_tf32
    return "tf32" if tf32 and values.dtype == torch.float32 else "ieee"


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _programs(values: Tensor) -> int:
    """How many programs sum weight gradients, each in memory of its own."""
    if not values.is_cuda:
        return 3  # interpreted: few, so that each has several tiles to sum
    return 2 * _multiprocessors(values.device.index)


def _on(tensor: Tensor) -> AbstractContextManager[Any]:
    # Triton launches on the current device, which need not be that of the tensors.
    return torch.cuda.device_of(tensor) if tensor.is_cuda else contextlib.nullcontext()
