"""More encoder layers in front of the conditional transformer's."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.dtypes import without_autocast
from mtlfast.jagged import JaggedSequences
from mtlfast.nn.hypernetwork import LayerNormHypernetwork
from mtlfast.nn.transformer_layer import TransformerLayer

__all__ = ["ConditionalEncoder"]


class ConditionalEncoder(nn.Module):
    """Encoder layers with conditional layer norms, DTRN (CIKM 2023) Eq. 3-6, several of them.

    The paper has one, which is part of :func:`mtlfast.ops.conditional_interest`. Every layer here
    has weights of its own and two more norm positions: after self-attention and after the
    feed-forward network. Its tokens differ between tasks, so that nothing but the first layer's
    attention is shared by them; plain PyTorch, padded to the longest sequence.

    Args:
        embed_dim: ``d``.
        num_heads: attention heads, a divisor of ``d``.
        ffn_dim: hidden width of the feed-forward networks.
        num_layers: how many.
        hyper_dim: hidden width of the hypernetwork.
        eps: added to the variance inside the root of every layer norm.
        share_positions: see :class:`LayerNormHypernetwork`.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_layers: int,
        *,
        hyper_dim: int,
        eps: float = 1e-5,
        share_positions: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.eps = num_heads, eps
        self.layers = nn.ModuleList(TransformerLayer(embed_dim, ffn_dim) for _ in range(num_layers))
        self.hypernetwork = LayerNormHypernetwork(
            2 * embed_dim,
            hyper_dim,
            embed_dim,
            share_positions=share_positions,
            num_positions=2 * num_layers,
        )
        self.norm_weight = nn.Parameter(torch.ones(2 * num_layers, embed_dim))
        self.norm_bias = nn.Parameter(torch.zeros(2 * num_layers, embed_dim))

    def reset_parameters(self) -> None:
        """Start again: identity layer norms, Xavier-uniform weights."""
        for layer in self._layers():
            layer.reset_parameters()
        self.hypernetwork.reset_parameters()
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)

    def forward(self, sequences: JaggedSequences, condition: Tensor) -> Tensor:
        """Tokens ``[T, N, d]`` as every task has them, in the order of ``sequences.values``.

        Args:
            sequences: embeddings ``[N, d]`` of the tokens of ``M`` behaviors of ``U`` users.
            condition: ``[T, M, 2 d]``, what the hypernetwork reads of each pair.
        """
        num_tasks, num_behaviors = condition.shape[:2]
        with without_autocast(condition.device):
            tables = self.hypernetwork(condition.flatten(0, 1))
            tables = tables.unflatten(2, (num_tasks, num_behaviors))  # [2, P, T, M, d]
            scale = tables[0] * self.norm_weight[:, None, None]
            shift = tables[1] + self.norm_bias[:, None, None]
        users, lengths, values = sequences.num_users, sequences.lengths(), sequences.values
        if not users:
            return values.expand(num_tasks, -1, -1)
        longest = sequences.max_len
        if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
            longest = int(lengths.max())
        longest = max(longest, 1)
        segment = sequences.segment_ids()
        place = torch.arange(len(segment), device=segment.device) - sequences.offsets[segment]
        # Clamped, so that wrong offsets stay the op's to report.
        index = segment * longest + place.clamp(0, longest - 1)
        rows = num_behaviors * users * longest
        flat = values.new_zeros(rows, values.shape[1]).index_copy(0, index, values)
        x = flat.view(1, num_behaviors, users, longest, -1)
        real = torch.arange(longest, device=lengths.device) < lengths.unsqueeze(2)
        # A row without keys attends to all; nobody reads what it gets.
        keys = (real | ~real.any(dim=2, keepdim=True))[:, :, None, None, :]
        for i, layer in enumerate(self._layers()):
            x = self._norm(x + self._attend(x, keys, layer), scale[2 * i], shift[2 * i])
            hidden = layer.linear2(layer.linear1(x).relu())
            x = self._norm(x + hidden, scale[2 * i + 1], shift[2 * i + 1])
        return x.flatten(1, 3).index_select(1, index)

    def _attend(self, x: Tensor, keys: Tensor, layer: TransformerLayer) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)

        query, key, value = (heads(proj(x)) for proj in (layer.q_proj, layer.k_proj, layer.v_proj))
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=keys)
        out: Tensor = layer.out_proj(found.transpose(-2, -3).flatten(-2))
        return out

    def _norm(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Eq. 6 for all tasks: ``[1 or T, M, U, L, d]`` to ``[T, ...]``, tables ``[T, M, d]``."""
        normalized = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        return scale[:, :, None, None] * normalized + shift[:, :, None, None]

    def _layers(self) -> list[TransformerLayer]:
        return [layer for layer in self.layers if isinstance(layer, TransformerLayer)]
