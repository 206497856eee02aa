"""The launches of the backward, in order. Tensors in, tensors out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import triton
from torch import Tensor

from .._device import on_device
from .config import Launch
from .decoder_backward import (
    decoder_input_backward,
    decoder_output_backward,
    decoder_values_backward,
    queries_backward,
)
from .encoder_backward import encode_tokens, encoder_input_backward, encoder_output_backward
from .feed_forward_backward import feed_forward_weights_backward
from .parameters import sum_parameter_gradients
from .problem import (
    Problem,
    Run,
    capability_of,
    launch_kernel,
    most_programs,
    options,
)
from .self_attention_backward import (
    attention_backward_keys,
    attention_backward_queries,
    project_tokens_backward,
    tokens_backward,
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
    run: Run = launch_kernel,
    capability: int | None = None,
    launches: Mapping[str, Launch] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of values, target and the 18 parameters."""
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
    grad_values, grad_target = p.new(*values.shape), p.new(*target.shape)
    gradients = [parameter.new_empty(parameter.shape) for parameter in parameters]
    if p.empty:
        return tuple(tensor.zero_() for tensor in (grad_values, grad_target, *gradients))
    with on_device(values):
        _Backward(p, eps).run(grad_out, saved, grad_values, grad_target, gradients)
    return grad_values, grad_target, *gradients


class _Backward:
    """The packed parameters, and the sums of their gradients: a row for every program."""

    def __init__(self, p: Problem, eps: float) -> None:
        self.p, self.eps = p, eps
        self.matrices, self.vectors = p.packed()
        # Nothing but the sizes and the device decides which program sums what, in which order.
        self.most = most_programs(p.values)
        self.size = p.layout.packed_matrices() + p.num_vectors
        self.sums = torch.zeros(self.most, self.size, dtype=torch.float32, device=p.values.device)

    def grid(self, items: int) -> tuple[int]:
        return (max(1, min(self.most, items)),)

    def run(
        self,
        grad_out: Tensor,
        saved: Sequence[Tensor],
        grad_values: Tensor,
        grad_target: Tensor,
        gradients: Sequence[Tensor],
    ) -> None:
        p, layout = self.p, self.p.layout
        normalized, rstd, pooled, statistics = saved
        d_pooled, inner = p.new(*pooled.shape), p.floats(*pooled.shape[:-1])
        d_items = p.floats(p.num_behaviors, p.num_candidates, layout.dp)
        self.decoder(grad_out, pooled, d_pooled, inner, d_items)
        d_queries = torch.zeros(
            p.num_behaviors, p.num_candidates, layout.heads, layout.dp, device=p.values.device
        )
        if p.num_tokens > 0:
            segments = p.segments()
            gradient = p.floats(p.num_tokens, layout.dp)
            self.encoder(
                normalized, rstd, segments, d_pooled, statistics, inner, d_queries, gradient
            )
            self.self_attention(segments, gradient, grad_values)
        launch = p.config.queries_backward
        p.run(
            queries_backward,
            self.grid(triton.cdiv(p.num_candidates, launch.rows)),
            p.target,
            p.order,
            self.matrices,
            d_queries,
            d_items,
            self.sums,
            grad_target,
            *p.target_strides,
            p.num_candidates,
            p.num_behaviors,
            self.size,
            p.query_scale,
            **p.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=launch.rows,
            COLUMNS=launch.columns,
            **options(launch),
        )
        together = 32 if self.most > 4 else 4
        block = min(1024, 8192 // together)
        p.run(
            sum_parameter_gradients,
            (triton.cdiv(self.size, block),),
            self.sums,
            *gradients,
            self.most,
            self.size,
            p.num_tasks * p.num_behaviors,
            **p.constants("D", "DF", "H", "DP", "HP", "DHP", "FP"),
            BLOCK=block,
            SUMS=together,
        )

    def decoder(
        self, grad_out: Tensor, pooled: Tensor, d_pooled: Tensor, inner: Tensor, d_items: Tensor
    ) -> None:
        p = self.p
        rows = (p.num_candidates, p.num_tasks, p.num_behaviors)
        shape = (*rows, p.layout.dp)
        normalized, rstd, gradient = p.new(*shape), p.floats(*rows), p.new(*shape)
        launch = p.config.tail_output_backward
        p.run(
            decoder_output_backward,
            self.grid(triton.cdiv(p.num_candidates, launch.rows) * p.num_behaviors),
            grad_out,
            p.target,
            pooled,
            p.offsets,
            p.order,
            p.users,
            self.matrices,
            self.vectors,
            self.sums,
            normalized,
            rstd,
            gradient,
            *p.target_strides,
            *grad_out.stride(),
            *p.sizes,
            self.size,
            self.eps,
            **p.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=launch.rows,
            BH=launch.hidden,
            COLUMNS=launch.columns,
            **options(launch),
        )
        # These need the gradient that the next launch writes over.
        self.feed_forward_weights(normalized, gradient, None)
        launch = p.config.tail_input_backward
        p.run(
            decoder_input_backward,
            self.grid(triton.cdiv(p.num_candidates, launch.rows) * p.num_behaviors),
            self.matrices,
            self.vectors,
            normalized,
            rstd,
            gradient,
            self.sums,
            d_items,
            p.num_candidates,
            p.num_behaviors,
            p.num_tasks,
            self.size,
            **p.constants("D", "DP", "FP", "HD", "PRECISION"),
            ROWS=launch.rows,
            BH=launch.hidden,
            COLUMNS=launch.columns,
            **options(launch),
        )
        launch = p.config.tail_values_backward
        p.run(
            decoder_values_backward,
            self.grid(triton.cdiv(p.num_candidates, launch.rows) * p.num_behaviors),
            gradient,
            pooled,
            p.offsets,
            p.users,
            self.matrices,
            self.vectors,
            self.sums,
            d_pooled,
            inner,
            *p.sizes,
            self.size,
            **p.constants("H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=launch.rows,
            **options(launch),
        )

    def feed_forward_weights(
        self, normalized: Tensor, gradient: Tensor, segments: Tensor | None
    ) -> None:
        """Of the encoder where ``segments`` are given, of the decoder without."""
        p, layout = self.p, self.p.layout
        launch = p.config.weights_backward
        encoder = segments is not None
        side = 0 if encoder else layout.side_size
        bias = 0 if encoder else layout.fp + layout.dp
        tables = 2 * (layout.fp + layout.dp)
        rows = gradient.numel() // layout.dp
        blocks = layout.fp // launch.hidden
        shares = min(max(1, self.most // blocks), triton.cdiv(rows, launch.rows))
        p.run(
            feed_forward_weights_backward,
            (blocks, shares),
            normalized,
            gradient,
            segments if segments is not None else p.offsets,
            self.matrices[side:],
            self.vectors[bias:],
            self.vectors[tables:],
            self.sums[0, side:],
            self.sums[0, layout.packed_matrices() + bias :],
            rows,
            p.num_tokens if encoder else p.num_tasks * p.num_behaviors,
            p.num_users,
            p.num_behaviors,
            self.size,
            **p.constants("DP", "FP", "HD", "PRECISION"),
            ROWS=launch.rows,
            BH=launch.hidden,
            ENCODER=encoder,
            COLUMNS=launch.columns,
            **options(launch),
        )

    def encoder(
        self,
        normalized: Tensor,
        rstd: Tensor,
        segments: Tensor,
        d_pooled: Tensor,
        statistics: Tensor,
        inner: Tensor,
        d_queries: Tensor,
        gradient: Tensor,
    ) -> None:
        p, layout = self.p, self.p.layout
        d_encoded = p.new(p.num_tasks, p.num_tokens, layout.dp)
        deviations, ahead = d_encoded, p.config.encoder_ahead
        if ahead.rows:
            deviations = p.floats(p.num_tasks, p.num_tokens)
            p.run(
                encode_tokens,
                (triton.cdiv(p.num_tokens, ahead.rows) + p.num_behaviors, p.num_tasks),
                normalized,
                segments,
                p.offsets,
                self.matrices,
                self.vectors,
                d_encoded,
                deviations,
                p.num_users,
                p.num_behaviors,
                p.num_tokens,
                self.eps,
                **p.constants("D", "DP", "FP", "HD", "PRECISION"),
                TOKENS=ahead.rows,
                BH=ahead.hidden,
                COLUMNS=ahead.columns,
                **options(ahead),
            )
        launch = p.config.encoder_output_backward
        candidates = launch.other // layout.hp
        p.run(
            encoder_output_backward,
            self.grid(triton.cdiv(p.num_users, candidates) * p.num_behaviors),
            normalized,
            segments,
            p.queries(self.matrices),
            d_pooled,
            statistics,
            inner,
            p.offsets,
            p.users,
            p.candidate_begin,
            self.matrices,
            self.vectors,
            self.sums,
            d_queries,
            d_encoded,
            deviations,
            *p.sizes,
            self.size,
            self.eps,
            **p.constants("D", "H", "DP", "HP", "FP", "HD", "PRECISION", "SHARED"),
            ENCODED=ahead.rows > 0,
            CANDIDATES=candidates,
            TOKENS=launch.rows,
            BH=launch.hidden,
            COLUMNS=launch.columns,
            **options(launch),
        )
        launch = p.config.encoder_input_backward
        p.run(
            encoder_input_backward,
            self.grid(triton.cdiv(p.num_tokens, launch.rows) + p.num_behaviors),
            normalized,
            rstd,
            segments,
            p.offsets,
            self.matrices,
            self.vectors,
            d_encoded,
            self.sums,
            gradient,
            p.num_users,
            p.num_behaviors,
            p.num_tasks,
            p.num_tokens,
            self.size,
            **p.constants("D", "DP", "FP", "HD", "PRECISION"),
            ROWS=launch.rows,
            BH=launch.hidden,
            COLUMNS=launch.columns,
            **options(launch),
        )
        self.feed_forward_weights(normalized, d_encoded, segments)

    def self_attention(self, segments: Tensor, gradient: Tensor, grad_values: Tensor) -> None:
        """From the gradient of x + MHSA(x)."""
        p = self.p
        n, heads, columns = p.num_tokens, p.layout.heads, p.layout.head_columns
        launch = p.config.project_backward
        projected = p.new(4, n, columns)
        p.run(
            project_tokens_backward,
            (triton.cdiv(n, launch.rows),),
            p.values,
            segments,
            self.matrices,
            gradient,
            projected,
            *p.strides,
            n,
            **p.constants("D", "DP", "HD", "PRECISION"),
            ROWS=launch.rows,
            COLUMNS=launch.columns,
            **options(launch),
        )
        mixed, d_query, d_key, d_value = (p.new(n, columns) for _ in range(4))
        statistics, inner = p.floats(2, heads, n), p.floats(heads, n)
        launch = p.config.attention_queries_backward
        p.run(
            attention_backward_queries,
            (triton.cdiv(n, launch.rows),),
            projected,
            segments,
            p.offsets,
            mixed,
            statistics,
            inner,
            d_query,
            n,
            p.query_scale,
            **self._attention(launch),
            KEYS=launch.other,
        )
        launch = p.config.attention_keys_backward
        p.run(
            attention_backward_keys,
            (triton.cdiv(n, launch.rows),),
            projected,
            segments,
            p.offsets,
            statistics,
            inner,
            d_key,
            d_value,
            n,
            p.query_scale,
            **self._attention(launch),
            QUERIES=launch.other,
        )
        launch = p.config.tokens_backward
        p.run(
            tokens_backward,
            self.grid(triton.cdiv(n, launch.rows)),
            p.values,
            segments,
            self.matrices,
            gradient,
            mixed,
            d_query,
            d_key,
            d_value,
            self.sums,
            grad_values,
            *p.strides,
            n,
            self.size,
            **p.constants("D", "H", "DP", "DHP", "HD", "PRECISION", ROWS=launch.rows),
            FEATURES=min(columns, launch.other),
            **options(launch),
        )

    def _attention(self, launch: Launch) -> dict[str, int | str | bool]:
        constants = self.p.constants("H", "DHP", "HD", "PRECISION", ROWS=launch.rows)
        return constants | options(launch)
