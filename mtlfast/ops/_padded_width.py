"""``conditional_interest`` at widths that the C++ kernels do not have, by widths that they have.

The kernels want a width ``d`` and a hidden width ``d_f`` that are multiples of 8, and one ``d_f``
on both sides. Zero columns alone would change the layer norms: they are part of mean and variance.
They are not when every added column holds the mean of the others. The mean is then right, the
variance too small by ``d / width``, which ``eps`` and the scales take up. The columns get there
without a change to the kernel: through inputs, output projections and second FFN layers that carry
the mean of their own outputs; and, as the affine map of a norm is elementwise and cannot, through
two hidden units of the FFN behind it: ``relu(z) - relu(-z) = z`` with ``z`` the mean of the FFN's
input.

The added columns stand in front: a sum that begins with equal terms is small while they are added,
where behind a large partial sum each of them would be rounded the same way.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..reference.conditional_interest import TransformerWeights

_MULTIPLE = 8
# relu has no gradient at 0, which a mean of 0 (a row of zeros, normalized) must not meet.
_FROM_KINK = 1 / 64


class Padded(NamedTuple):
    """Inputs of the kernel; the last ``d`` columns of its output are the result."""

    values: Tensor
    target: Tensor
    parameters: tuple[Tensor, ...]  # 8 encoder weights, 8 decoder weights, scale, shift
    eps: float


def width(d: int, num_heads: int) -> int:
    """The smallest width of the kernels, with heads of equal size, that holds ``d`` columns."""
    # math.lcm is not for the symbolic sizes of compiled graphs.
    common = next(n for n in (8, 4, 2, 1) if num_heads % n == 0)
    return _up(d, _MULTIPLE // common * num_heads)


def hidden_width(d: int, num_heads: int, *d_f: int) -> int:
    """Hidden units that the FFNs need: those they have and, where columns are added, two."""
    return _up(max(d_f) + (0 if width(d, num_heads) == d else 2), _MULTIPLE)


def pad(
    values: Tensor, target: Tensor, parameters: tuple[Tensor, ...], num_heads: int, eps: float
) -> Padded:
    """What the kernel takes in place of these inputs; they themselves where it takes them.

    Args:
        values, target, parameters, num_heads, eps: of ``conditional_interest``; one dtype.
    """
    d = target.shape[1]
    encoder, decoder = TransformerWeights(*parameters[:8]), TransformerWeights(*parameters[8:16])
    d_f = encoder.linear1_bias.shape[0], decoder.linear1_bias.shape[0]
    to, hidden = width(d, num_heads), hidden_width(d, num_heads, *d_f)
    if to == d and d_f == (hidden, hidden):
        return Padded(values, target, parameters, eps)
    layers = [_ffn(layer, to, hidden) for layer in (encoder, decoder)]
    scale, shift = parameters[16:]
    if to != d:
        layers = [_attention(layer, to, num_heads) for layer in layers]
        values, target = _with_mean(values, 1, to), _with_mean(target, 1, to)
        scale, shift = (F.pad(t, (to - d, 0)) for t in (scale * math.sqrt(d / to), shift))
    return Padded(values, target, (*layers[0], *layers[1], scale, shift), eps * d / to)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _with_mean(x: Tensor, dim: int, to: int) -> Tensor:
    """``x`` with the mean along ``dim`` in front, so often that ``to`` entries are there."""
    sizes = list(x.shape)
    sizes[dim] = to - sizes[dim]
    return torch.cat([x.mean(dim, keepdim=True).expand(sizes), x], dim)


def _attention(layer: TransformerWeights, to: int, num_heads: int) -> TransformerWeights:
    """Heads of ``to / num_heads`` columns, the added ones 0; the output carries its mean."""
    d = layer.q_proj.shape[1]
    columns = to // num_heads - d // num_heads

    def of_heads(weight: Tensor) -> Tensor:  # [d, d] -> [to, to]
        padded = F.pad(weight.unflatten(0, (num_heads, -1)), (to - d, 0, 0, columns))
        return padded.flatten(0, 1)

    out = F.pad(layer.out_proj.unflatten(1, (num_heads, -1)), (0, columns)).flatten(1)  # [d, to]
    return layer._replace(
        # The kernel divides scores by the root of the wider heads.
        q_proj=of_heads(layer.q_proj * math.sqrt(to / d)),
        k_proj=of_heads(layer.k_proj),
        v_proj=of_heads(layer.v_proj),
        out_proj=_with_mean(out, 0, to),
    )


def _ffn(layer: TransformerWeights, to: int, hidden: int) -> TransformerWeights:
    """``hidden`` units; where columns are added, the output carries its mean and its input's."""
    d_f, d = layer.linear1_weight.shape
    more, columns = hidden - d_f, to - d
    first = F.pad(layer.linear1_weight, (columns, 0, 0, more))
    first_bias = F.pad(layer.linear1_bias, (0, more))
    second = F.pad(layer.linear2_weight, (0, more))
    second_bias = layer.linear2_bias
    if columns:
        # [..., the mean of the input, its negative, 0 ...]; built of host numbers alone.
        sign = torch.zeros(hidden, dtype=first.dtype, device=first.device)
        sign[d_f], sign[d_f + 1] = 1.0, -1.0
        first = first + F.pad((sign / d)[:, None].expand(hidden, d), (columns, 0))
        first_bias = first_bias + sign * _FROM_KINK
        mean = second.mean(0, keepdim=True) + sign
        second = torch.cat([mean.expand(columns, hidden), second])
        mean_bias = second_bias.mean(0, keepdim=True) - _FROM_KINK
        second_bias = torch.cat([mean_bias.expand(columns), second_bias])
    return layer._replace(
        linear1_weight=first,
        linear1_bias=first_bias,
        linear2_weight=second,
        linear2_bias=second_bias,
    )
