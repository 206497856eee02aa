"""The weights of one transformer layer."""

from __future__ import annotations

from torch import nn

from mtlfast.ops import TransformerWeights

__all__ = ["TransformerLayer"]


class TransformerLayer(nn.Module):
    """The weights of one attention + feed-forward layer; the computation is the op's.

    Projections carry no bias (DTRN Eq. 3-4), the feed-forward network does (Eq. 5).
    """

    def __init__(self, embed_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.v_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.linear1 = nn.Linear(embed_dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights and zero biases."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.xavier_uniform_(parameter)

    def weights(self) -> TransformerWeights:
        """The parameters in the order that the op takes them."""
        return TransformerWeights(
            self.q_proj.weight,
            self.k_proj.weight,
            self.v_proj.weight,
            self.out_proj.weight,
            self.linear1.weight,
            self.linear1.bias,
            self.linear2.weight,
            self.linear2.bias,
        )
