"""The definition of ``conditional_interest`` in plain PyTorch.

Source: DTRN (CIKM 2023), Eq. 3-8: one encoder layer and one decoder layer whose layer norms are
conditioned on the pair (task, behavior). Readable before fast: sequences of equal length are
stacked, so that nothing is padded and nothing is masked.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear, relu, softmax

from ..dtypes import activation_and_compute_dtype, require_floating, without_autocast
from ..errors import bad, check_user_index, describe, number, require_tensor, shape_text, sizes_text
from ..jagged import JaggedSequences


class TransformerWeights(NamedTuple):
    """One Transformer layer: attention without biases and FFN, in the layout of ``nn.Linear``."""

    q_proj: Tensor  # [d, d]
    k_proj: Tensor  # [d, d]
    v_proj: Tensor  # [d, d]
    out_proj: Tensor  # [d, d]
    linear1_weight: Tensor  # [d_f, d]
    linear1_bias: Tensor  # [d_f]
    linear2_weight: Tensor  # [d, d_f]
    linear2_bias: Tensor  # [d]


class ConditionalTransformerWeights(NamedTuple):
    """The weights that all pairs (task, behavior) share."""

    encoder: TransformerWeights
    decoder: TransformerWeights


def conditional_interest(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    *,
    num_heads: int,
    eps: float = 1e-5,
    user_index: Tensor | None = None,
) -> Tensor:
    """The interest of every candidate for every pair (task, behavior).

    Source: DTRN (CIKM 2023) Eq. 3-8. An empty sequence contributes a zero attention term.
    Differentiable any number of times. Computes in the promoted dtype of its inputs; under autocast
    the output has the autocast dtype and everything is computed in float32.

    Args:
        sequences: embedded behaviors of ``U`` users, values ``[N, d]``.
        target: candidate item embeddings ``[B, d]``.
        weights: encoder and decoder weights; ``d_f`` may differ between the two.
        scale: effective conditional scales ``[T, M, 4, d]``; axis 2 is the norm position: after
            self-attention, encoder FFN, target attention, decoder FFN.
        shift: effective conditional shifts ``[T, M, 4, d]``.
        num_heads: attention heads ``h``, a divisor of ``d``.
        eps: added to the variance in every layer norm.
        user_index: ``[B]`` int64 in ``[0, U)``, whose sequences each candidate uses; None means
            candidate ``i`` uses user ``i``, and ``B == U``.

    Returns:
        ``[B, T, M, d]``.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options, or wrong data in ``offsets``,
            ``max_len`` or ``user_index`` (reading them is a host sync on CUDA).
    """
    check_arguments(sequences, target, weights, scale, shift, num_heads, eps, user_index)
    check_data(sequences, user_index)
    parameters = (*weights.encoder, *weights.decoder, scale, shift)
    activation, compute = activation_and_compute_dtype(
        (sequences.values, target), parameters, target.device
    )
    with without_autocast(target.device):
        interests = _interests(
            sequences.values.to(activation).to(compute),
            sequences.offsets,
            target.to(activation).to(compute),
            TransformerWeights(*(weight.to(compute) for weight in weights.encoder)),
            TransformerWeights(*(weight.to(compute) for weight in weights.decoder)),
            scale.to(compute),
            shift.to(compute),
            num_heads,
            eps,
            user_index,
        )
    return interests.to(activation)


def _interests(
    values: Tensor,
    offsets: Tensor,
    target: Tensor,
    encoder: TransformerWeights,
    decoder: TransformerWeights,
    scale: Tensor,
    shift: Tensor,
    num_heads: int,
    eps: float,
    user_index: Tensor | None,
) -> Tensor:
    num_candidates, device = target.shape[0], target.device
    num_tasks, num_behaviors = scale.shape[:2]
    num_users = (offsets.shape[0] - 1) // num_behaviors
    users = torch.arange(num_candidates, device=device) if user_index is None else user_index

    # One row per pair (behavior b, candidate i), numbered b*B + i, and the segment it attends to.
    behavior_of = torch.arange(num_behaviors, device=device).repeat_interleave(num_candidates)
    candidate_of = torch.arange(num_candidates, device=device).repeat(num_behaviors)
    segment_of = behavior_of * num_users + users.repeat(num_behaviors)
    segment_length = offsets.diff()
    length_of = segment_length[segment_of]

    # Length 0 is always there: it keeps every input in the graph, whatever the batch holds.
    lengths = sorted({0, *length_of.tolist()})
    groups = [(length_of == length).nonzero().squeeze(1) for length in lengths]
    shared = [segment_of[rows].unique(return_inverse=True) for rows in groups]
    tokens = [
        (offsets[segments, None] + torch.arange(length, device=device)).reshape(-1)
        for length, (segments, _) in zip(lengths, shared, strict=True)
    ]
    blocks = values.index_select(0, torch.cat(tokens)).split([len(token) for token in tokens])

    def norm(u: Tensor, position: int, behavior: Tensor) -> Tensor:
        """Eq. 6 for all tasks: ``u [(T,) n, L, d]``, row n of which belongs to ``behavior[n]``."""
        normalized = layer_norm(u, (u.shape[-1],), eps=eps)
        gamma, beta = (table[:, behavior, position, None] for table in (scale, shift))
        return gamma * normalized + beta  # [T, n, L, d]

    interests = []
    for length, rows, (segments, sharing), block in zip(
        lengths, groups, shared, blocks, strict=True
    ):
        # Encoder, once per segment.
        x = block.view(len(segments), length, values.shape[1])
        behavior = segments.div(max(num_users, 1), rounding_mode="floor")
        out0 = norm(x + attention(x, x, encoder, num_heads), 0, behavior)
        out_enc = norm(out0 + feed_forward(out0, encoder), 1, behavior)
        # Decoder, once per candidate. With no keys the attention is an empty sum: zero.
        item = target[candidate_of[rows], None]  # [n, 1, d]
        out_enc = out_enc[:, sharing]
        behavior = behavior_of[rows]
        out3 = norm(item + attention(item, out_enc, decoder, num_heads), 2, behavior)
        out_dec = norm(out3 + feed_forward(out3, decoder), 3, behavior)
        interests.append(out_dec.squeeze(2))

    in_order = torch.cat(groups).argsort()
    by_behavior = torch.cat(interests, dim=1).index_select(1, in_order)  # [T, M*B, d]
    shape = (num_tasks, num_behaviors, num_candidates, target.shape[1])
    return by_behavior.view(shape).permute(2, 0, 1, 3).contiguous()


def attention(
    queries: Tensor, keys_values: Tensor, weights: TransformerWeights, num_heads: int
) -> Tensor:
    """Multi-head attention, Eq. 3-4: ``[..., q, d]`` over ``[..., k, d]`` gives ``[..., q, d]``."""

    def heads(x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight).unflatten(-1, (num_heads, -1)).transpose(-2, -3)

    q = heads(queries, weights.q_proj)
    k = heads(keys_values, weights.k_proj)
    v = heads(keys_values, weights.v_proj)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    mixed = softmax(scores, dim=-1) @ v  # [..., h, q, d_h]
    return linear(mixed.transpose(-2, -3).flatten(-2), weights.out_proj)


def feed_forward(u: Tensor, weights: TransformerWeights) -> Tensor:
    """Position-wise FFN, Eq. 5."""
    hidden = relu(linear(u, weights.linear1_weight, weights.linear1_bias))
    return linear(hidden, weights.linear2_weight, weights.linear2_bias)


def check_arguments(
    sequences: JaggedSequences,
    target: Tensor,
    weights: ConditionalTransformerWeights,
    scale: Tensor,
    shift: Tensor,
    num_heads: int,
    eps: float,
    user_index: Tensor | None,
) -> None:
    """Raises ValueError where a shape, dtype, device or option is wrong; reads no data."""
    if not isinstance(sequences, JaggedSequences):
        raise bad("sequences", "a JaggedSequences", describe(sequences))
    values = sequences.values
    if values.dim() != 2:
        raise bad("sequences.values", "shape [N, d]", f"shape {shape_text(values)}")
    require_floating("sequences.values", values)
    d, device, num_behaviors = values.shape[1], values.device, sequences.num_behaviors

    _check("target", target, ("B", d), device)
    if not (isinstance(weights, tuple) and len(weights) == 2):
        raise bad("weights", "ConditionalTransformerWeights", describe(weights))
    for side, layer in zip(ConditionalTransformerWeights._fields, weights, strict=True):
        _check_layer(f"weights.{side}", layer, d, device)
    _check("scale", scale, ("T", num_behaviors, 4, d), device)
    if scale.shape[0] < 1:
        raise bad("scale", "shape [T, M, 4, d] with T >= 1", f"shape {shape_text(scale)}")
    _check("shift", shift, tuple(scale.shape), device)

    if not isinstance(num_heads, int) or isinstance(num_heads, bool):
        raise bad("num_heads", "an int", type(num_heads).__name__)
    if num_heads < 1 or d % num_heads != 0:
        raise bad("num_heads", f"a positive divisor of d = {number(d)}", num_heads)
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise bad("eps", "a float", type(eps).__name__)
    if not 0 <= eps < math.inf:
        raise bad("eps", "a finite number of at least 0", eps)

    if user_index is None:
        if target.shape[0] != sequences.num_users:
            raise bad(
                "target",
                f"shape [U = {number(sequences.num_users)}, d] since user_index is None",
                f"shape {shape_text(target)}",
            )
        return
    require_tensor("user_index", user_index)
    if user_index.dtype != torch.int64:
        raise bad("user_index", "dtype int64", describe(user_index))
    if user_index.dim() != 1 or user_index.shape[0] != target.shape[0]:
        raise bad(
            "user_index",
            f"shape [B = {number(target.shape[0])}]",
            f"shape {shape_text(user_index)}",
        )
    if user_index.device != device:
        raise bad("user_index", f"device {device} (that of sequences)", user_index.device)


def check_data(sequences: JaggedSequences, user_index: Tensor | None) -> None:
    """Raises ValueError where ``offsets``, ``max_len`` or ``user_index`` hold wrong data."""
    sequences.validate()
    if user_index is not None:
        check_user_index(user_index, sequences.num_users)


def _check_layer(name: str, layer: TransformerWeights, d: int, device: torch.device) -> None:
    fields = TransformerWeights._fields
    if not (isinstance(layer, tuple) and len(layer) == len(fields)):
        raise bad(name, "TransformerWeights", describe(layer))
    hidden = layer[4]
    require_tensor(f"{name}.linear1_weight", hidden)
    d_f = hidden.shape[0] if hidden.dim() else 0
    shapes = ((d, d),) * 4 + ((d_f, d), (d_f,), (d, d_f), (d,))
    for field, weight, shape in zip(fields, layer, shapes, strict=True):
        _check(f"{name}.{field}", weight, shape, device)
    if d_f < 1:
        raise bad(f"{name}.linear1_weight", "shape [d_f, d] with d_f >= 1", describe(hidden))


def _check(name: str, tensor: Tensor, shape: tuple[int | str, ...], device: torch.device) -> None:
    """A letter as the first size in ``shape`` stands for any number of rows."""
    require_tensor(name, tensor)
    if isinstance(shape[0], str):
        fits = tensor.dim() == len(shape) and tensor.shape[1:] == shape[1:]
    else:
        fits = tensor.shape == shape
    if not fits:
        raise bad(name, f"shape {sizes_text(shape)}", f"shape {shape_text(tensor)}")
    require_floating(name, tensor)
    if tensor.device != device:
        raise bad(name, f"device {device} (that of sequences)", tensor.device)
