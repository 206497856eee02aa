"""The launches of the forward, in order. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import triton
from torch import Tensor

from .._device import on_device
from .config import Launch
from .decoder import decoder_tail
from .encoder import encode_and_pool
from .layout import Layout
from .problem import Problem, Run, capability_of, launch_kernel, options
from .self_attention import project_tokens, self_attention


def forward(
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    target: Tensor,
    user_index: Tensor | None,
    parameters: Sequence[Tensor],
    num_heads: int,
    eps: float,
    run: Run = launch_kernel,
    capability: int | None = None,
    launches: Mapping[str, Launch] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """out ``[B, T, M, d]`` and what the backward needs: see :func:`saved_shapes`."""
    capability = capability or capability_of(values)
    p = Problem(
        values,
        offsets,
        num_behaviors,
        target,
        user_index,
        parameters,
        num_heads,
        run,
        capability,
        launches,
    )
    shapes = saved_shapes(p.num_tokens, p.num_candidates, p.num_tasks, p.num_behaviors, p.layout)
    out = p.new(p.num_candidates, p.num_tasks, p.num_behaviors, p.layout.d)
    normalized, pooled = p.new(*shapes[0]), p.new(*shapes[2])
    rstd, statistics = p.floats(*shapes[1]), p.floats(*shapes[3])
    saved = (normalized, rstd, pooled, statistics)
    if p.empty:
        return out, normalized.zero_(), rstd.zero_(), pooled.zero_(), statistics.zero_()
    with on_device(values):
        matrices, vectors = p.packed()
        if p.num_tokens > 0:
            _self_attention(p, matrices, normalized, rstd, eps)
        queries = p.queries(matrices)
        launch = p.config.encoder
        candidates = launch.other // p.layout.hp
        p.run(
            encode_and_pool,
            (triton.cdiv(p.num_candidates, candidates), num_behaviors, p.num_tasks),
            normalized,
            queries,
            p.offsets,
            p.users,
            matrices,
            vectors,
            pooled,
            statistics,
            *p.sizes,
            eps,
            **p.constants("D", "H", "DP", "HP", "FP", "HD", "PRECISION", "SHARED"),
            CANDIDATES=candidates,
            TOKENS=launch.rows,
            BH=launch.hidden,
            COLUMNS=launch.columns,
            **options(launch),
        )
        launch = p.config.tail
        p.run(
            decoder_tail,
            (triton.cdiv(p.num_candidates, launch.rows), num_behaviors, p.num_tasks),
            p.target,
            pooled,
            p.offsets,
            p.order,
            p.users,
            matrices,
            vectors,
            out,
            *p.target_strides,
            *p.sizes,
            eps,
            **p.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=launch.rows,
            BH=launch.hidden,
            COLUMNS=launch.columns,
            **options(launch),
        )
    return out, *saved


def saved_shapes(
    num_tokens: int, num_candidates: int, num_tasks: int, num_behaviors: int, layout: Layout
) -> tuple[tuple[int, ...], ...]:
    """Normalized tokens, their reciprocal deviations, pooled vectors, softmax statistics.

    The second and fourth are float32, the others have the dtype of the values.
    """
    rows = (num_candidates, num_tasks, num_behaviors, layout.heads)
    return (num_tokens, layout.dp), (num_tokens,), (*rows, layout.dp), (*rows, 2)


def _self_attention(
    p: Problem, matrices: Tensor, normalized: Tensor, rstd: Tensor, eps: float
) -> None:
    segments = p.segments()
    projected = p.new(3, p.num_tokens, p.layout.head_columns)
    launch = p.config.project
    p.run(
        project_tokens,
        (triton.cdiv(p.num_tokens, launch.rows),),
        p.values,
        segments,
        matrices,
        projected,
        *p.strides,
        p.num_tokens,
        **p.constants("D", "DP", "HD", "PRECISION"),
        ROWS=launch.rows,
        COLUMNS=launch.columns,
        **options(launch),
    )
    launch = p.config.attention
    p.run(
        self_attention,
        (triton.cdiv(p.num_tokens, launch.rows),),
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
        **options(launch),
    )
