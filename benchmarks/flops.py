"""Operations and bytes that a case needs, whoever computes it.

Multiply-adds count as two operations. Counted are the matrix products of the best exact algorithm
known: DTRN (CIKM 2023) with the self-attention shared by all tasks and the decoder's keys and
values absorbed, or projected where candidates share histories and that is cheaper. Not counted:
layer norms, softmax, biases, padding, anything computed twice. So a backend that pads or recomputes
shows a lower rate, and rates of all backends of a case compare like their times.
The backward of a matrix product is two of them: training counts three times the forward.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .cases import Case, Mode


@dataclass(frozen=True)
class Work:
    """What one call has to do at least.

    Attributes:
        flops: floating-point operations.
        bytes: reads of every input and writes of every output, once each.
        padding: tokens of the padded layout divided by the tokens that are there.
    """

    flops: float
    bytes: float
    padding: float


def interest_flops(case: Case, lengths: Tensor, *, algorithm: str = "best") -> float:
    """Forward operations of ``conditional_interest`` for lengths ``[M, U]``.

    Args:
        algorithm: "best"; or what the formulas of other ways to compute it cost: "naive" (a
            transformer per pair), "shared" (self-attention once), "absorbed" (and the decoder's
            keys and values absorbed). All without padding.
    """
    d, d_f, h, num_tasks = case.d, case.d_f, case.num_heads, case.num_tasks
    num_behaviors, num_users = lengths.shape
    per_user = case.batch / max(num_users, 1)
    length = lengths.double()
    tokens = float(length.sum())
    squares = float((length * length).sum())
    attended = float((length > 0).sum()) * per_user  # pairs (candidate, behavior) with keys
    pairs = num_behaviors * case.batch

    self_attention = tokens * 4 * d * d + squares * 2 * d
    encoder_ffn = tokens * 2 * d * d_f
    decoder_ffn = pairs * 2 * d * d_f
    query = case.batch * d * d

    # Scores and pooling per candidate, in the full width d per head, or in d_h per head after
    # projecting every token; then W_O, and W_V where pooling came first.
    absorbed = tokens * per_user * 2 * h * d + attended * 2 * d * d
    projected = tokens * 2 * d * d + tokens * per_user * 2 * d + attended * d * d
    absorbing = case.batch * d * d  # the query times W_K, once per candidate

    if algorithm == "naive":
        attention = projected + pairs * d * d  # and the query once per pair
        total = num_tasks * (self_attention + encoder_ffn + attention + decoder_ffn)
    elif algorithm == "shared":
        total = self_attention + query + num_tasks * (encoder_ffn + projected + decoder_ffn)
    else:
        cheaper = absorbing + num_tasks * absorbed
        if algorithm == "best":
            cheaper = min(cheaper, num_tasks * projected)
        total = self_attention + query + num_tasks * (encoder_ffn + decoder_ffn) + cheaper
    return 2.0 * total


def interest_work(case: Case, mode: Mode, lengths: Tensor) -> Work:
    """Operations, bytes and padding of ``conditional_interest``."""
    size = 2 if case.dtype == "bfloat16" else 4
    num_behaviors, num_users = lengths.shape
    d, d_f = case.d, case.d_f
    tokens = int(lengths.sum())
    weights = 2 * (4 * d * d + 2 * d * d_f + d_f + d) + 8 * case.num_tasks * num_behaviors * d
    inputs = size * (tokens * d + case.batch * d + weights) + 8 * (num_behaviors * num_users + 1)
    output = size * case.batch * case.num_tasks * num_behaviors * d
    times = 3 if mode == "training" else 1
    # The backward reads the inputs and the incoming gradient, and writes a gradient per input.
    moved = inputs + output if mode != "training" else 3 * inputs + 2 * output
    widths = lengths.amax(1).clamp(min=1)
    return Work(
        flops=times * interest_flops(case, lengths),
        bytes=float(moved),
        padding=float(widths.sum() * num_users) / max(tokens, 1),
    )


def layer_norm_work(case: Case, mode: Mode, rows: int, read: int, written: int) -> Work:
    """Operations and bytes of ``conditional_layer_norm``: 8 operations per element and way.

    Args:
        rows: rows of the output, each ``d`` wide.
        read, written: elements of all inputs and of the output.
    """
    size = 2 if case.dtype == "bfloat16" else 4
    ways = 3 if mode == "training" else 1
    moved = read + written if ways == 1 else 3 * read + 2 * written
    return Work(flops=8.0 * ways * rows * case.d, bytes=float(size * moved), padding=1.0)


def gated_cross_work(case: Case, mode: Mode) -> Work:
    """Operations of the two products of ``gated_cross``, bytes of its inputs and outputs."""
    width = case.num_fields * case.d
    elements, weights = case.num_tasks * case.batch * width, 2 * case.num_tasks * width * width
    ways = 3 if mode == "training" else 1
    moved = 3 * elements + weights
    if (
        mode == "training"
    ):  # forward, then everything read again, two gradients of rows, the weights'
        moved = 9 * elements + 3 * weights
    return Work(flops=4.0 * ways * elements * width, bytes=4.0 * moved, padding=1.0)
