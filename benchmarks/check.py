"""Correctness of what is timed: every result is compared with the float64 reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtlfast import reference
from mtlfast.jagged import JaggedSequences

from .cases import Mode
from .inputs import EPS, InterestInputs

# How many times the error of plain PyTorch in the same dtype an error may be.
FUSED_FACTOR: dict[str, float] = {"forward": 2.0, "serving": 2.0, "training": 5.0}
BASELINE_FACTOR = 10.0

Tensors = dict[str, Tensor]
"""The output as "out" and, when training, the gradient of every input by name."""


@dataclass(frozen=True)
class Verdict:
    """Outcome of a check.

    Attributes:
        failure: why no speed may be printed; empty when the check passed.
        error: norm of the difference to float64 over the norm, of the worst tensor.
        max_error: greatest difference of an element over the greatest element, of the worst tensor.
    """

    failure: str = ""
    error: float = 0.0
    max_error: float = 0.0


def errors(found: Tensor, truth: Tensor) -> tuple[float, float]:
    """``(norm, maximum)`` of the difference, relative to those of ``truth``; NaN stays NaN."""
    difference = found.double() - truth
    if not truth.numel():
        return 0.0, 0.0
    norm, most = float(truth.norm()), float(truth.abs().max())
    return (
        float(difference.norm()) / norm if norm else float(difference.norm()),
        float(difference.abs().max()) / most if most else float(difference.abs().max()),
    )


def judge(found: Tensors, truth: Tensors, plain: Mapping[str, float], factor: float) -> Verdict:
    """Compares all tensors of ``found`` with ``truth``.

    Args:
        plain: norm-wise error of plain PyTorch in the dtype of ``found``, per tensor.
        factor: how many times that is allowed; rounding the result once always is.
    """
    failures, worst, worst_max = [], 0.0, 0.0
    for name, expected in truth.items():
        if name not in found or found[name].shape != expected.shape:
            shape = list(found[name].shape) if name in found else "nothing"
            return Verdict(f"{name}: expected shape {list(expected.shape)}, found {shape}")
        error, most = errors(found[name], expected)
        allowed = max(factor * plain[name], torch.finfo(found[name].dtype).eps / 2)
        if not error <= allowed:
            failures.append(f"{name}: error {error:.1e} where {allowed:.1e} is allowed")
        worst, worst_max = max(worst, error), max(worst_max, most)
    return Verdict("; ".join(failures), worst, worst_max)


def split_by_user(
    inputs: InterestInputs, most_tokens: int = 16_384
) -> Iterator[tuple[Tensor, Tensor, InterestInputs]]:
    """Parts of the batch with whole users: ``(token rows, candidates, inputs)``."""
    sequences = inputs.sequences
    lengths = sequences.lengths()
    num_users = sequences.num_users
    starts = sequences.offsets[:-1].view_as(lengths)
    per_user = lengths.sum(0).tolist()
    users = torch.arange(num_users) if inputs.user_index is None else inputs.user_index
    first = 0
    while first < num_users:
        last, tokens = first + 1, per_user[first]
        while last < num_users and tokens + per_user[last] <= most_tokens:
            tokens += per_user[last]
            last += 1
        length = lengths[:, first:last]
        begin, flat = starts[:, first:last].reshape(-1), length.reshape(-1)
        rows = torch.arange(int(flat.sum()))
        rows = rows + (begin - (flat.cumsum(0) - flat)).repeat_interleave(flat)
        candidates = ((users >= first) & (users < last)).nonzero().squeeze(1)
        values = sequences.values[rows]
        part = replace(
            inputs,
            sequences=JaggedSequences.from_lengths(values, length, max_len=sequences.max_len),
            target=inputs.target[candidates],
            user_index=None if inputs.user_index is None else users[candidates] - first,
            grad_out=inputs.grad_out[candidates],
        )
        yield rows, candidates, part
        first = last


def reference_result(inputs: InterestInputs, mode: Mode, dtype: torch.dtype) -> Tensors:
    """Output and gradients of the reference computed in ``dtype``, a few users at a time."""
    total: Tensors = {}
    for rows, candidates, part in split_by_user(inputs):
        part = part.to(dtype)
        if mode == "training":
            part = part.requiring_grad()
        out = reference.conditional_interest(
            part.sequences,
            part.target,
            part.weights,
            part.scale,
            part.shift,
            num_heads=part.num_heads,
            eps=EPS,
            user_index=part.user_index,
        )
        found = {"out": out.detach()}
        if mode == "training":
            leaves = part.differentiable()
            grads = torch.autograd.grad(out, list(leaves.values()), part.grad_out)
            found |= dict(zip(leaves, grads, strict=True))
        for name, tensor in found.items():
            place = {"out": candidates, "target": candidates, "values": rows}.get(name)
            if name not in total:
                like = inputs.grad_out if name == "out" else inputs.differentiable()[name]
                # Sums over parts are kept in float64: they are not what is judged here.
                total[name] = torch.zeros(like.shape, dtype=torch.float64)
            if place is None:
                total[name] += tensor
            else:
                total[name][place] = tensor.double()
    return total
