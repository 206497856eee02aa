"""Task and behavior injected into other weights than the layer norms': DTRN's Table 6."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from mtlfast._checks import check_count
from mtlfast.dtypes import without_autocast
from mtlfast.errors import bad
from mtlfast.jagged import JaggedSequences, require_behaviors
from mtlfast.nn.conditional_transformer import (
    EmptyRule,
    InterestFunction,
    TransformerLayer,
    empty_as_zero,
)
from mtlfast.nn.hypernetwork import NUM_NORMS
from mtlfast.nn.separate_transformers import one_interest
from mtlfast.ops import ConditionalTransformerWeights, TransformerWeights

Injection = Literal["qkv", "ffn1", "ffn2"]
Where = Literal["both", "encoder", "decoder"]

_INJECTED: dict[str, tuple[str, ...]] = {
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "ffn1": ("linear1_weight", "linear1_bias"),
    "ffn2": ("linear2_weight", "linear2_bias"),
}


class WeightHypernetwork(nn.Module):
    """A two-layer ReLU network that writes the relative change of one weight tensor.

    Starts at no change (``linear2 = 0``).

    Args:
        input_dim: width of the conditional input.
        hidden_dim: hidden width ``u``.
        shape: of the weight.
    """

    def __init__(self, input_dim: int, hidden_dim: int, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape
        self.linear1 = nn.Linear(input_dim, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, shape.numel())
        nn.init.xavier_uniform_(self.linear1.weight)
        for parameter in (self.linear1.bias, self.linear2.weight, self.linear2.bias):
            nn.init.zeros_(parameter)

    def forward(self, condition: Tensor) -> Tensor:
        """``[P, input_dim]`` to ``[P, *shape]``."""
        return self.linear2(self.linear1(condition).relu()).unflatten(1, self.shape)


class InjectedTransformer(nn.Module):
    """Interests of every task and behavior, told apart by modulated weights.

    What DTRN (CIKM 2023, section 5.2.2, Table 6) compares its conditional layer norms with: for
    every pair of task and behavior ``W' = W * (1 + dW)``, where a hypernetwork of its own writes
    ``dW`` of each modulated tensor from the two embeddings. Layer norms are ordinary. Modulated
    are with "qkv" the query, key and value projections, with "ffn1" the first linear map of the
    feed-forward network with its bias, with "ffn2" the second. All pairs start equal.

    Runs :func:`mtlfast.ops.conditional_interest` once per pair: made for comparison, not for speed.

    Args:
        embed_dim: embedding width ``d``.
        num_heads: attention heads, a divisor of ``embed_dim``.
        ffn_dim: hidden width of the feed-forward networks.
        num_tasks: ``T``.
        num_behaviors: ``M``.
        injection: which weights.
        where: in the encoder, the decoder, or both.
        hyper_dim: hidden width of the hypernetworks; ``embed_dim`` when None.
        eps, backend, empty, share_enc_dec: see :class:`ConditionalTransformer`.

    Raises:
        ValueError: for sizes that are not positive, heads that do not divide the width, or an
            unknown injection or place.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        ffn_dim: int,
        num_tasks: int,
        num_behaviors: int,
        *,
        injection: Injection,
        where: Where = "both",
        hyper_dim: int | None = None,
        eps: float = 1e-5,
        backend: str | InterestFunction = "auto",
        empty: EmptyRule = "no_attention",
        share_enc_dec: bool = False,
    ) -> None:
        super().__init__()
        hyper_dim = embed_dim if hyper_dim is None else hyper_dim
        for name, size in (
            ("embed_dim", embed_dim),
            ("num_heads", num_heads),
            ("ffn_dim", ffn_dim),
            ("num_tasks", num_tasks),
            ("num_behaviors", num_behaviors),
            ("hyper_dim", hyper_dim),
        ):
            check_count(name, size)
        if embed_dim % num_heads:
            raise bad("num_heads", f"a divisor of embed_dim = {embed_dim}", num_heads)
        if injection not in _INJECTED:
            raise bad("injection", f"one of {list(_INJECTED)}", repr(injection))
        if where not in ("both", "encoder", "decoder"):
            raise bad("where", "both, encoder or decoder", repr(where))
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_tasks = num_tasks
        self.num_behaviors = num_behaviors
        self.injection = injection
        self.eps = eps
        self.backend = backend
        self.empty = empty
        self.task_embedding = nn.Embedding(num_tasks, embed_dim)
        self.behavior_embedding = nn.Embedding(num_behaviors, embed_dim)
        for table in (self.task_embedding, self.behavior_embedding):
            nn.init.normal_(table.weight, std=embed_dim**-0.5)
        self.norm_weight = nn.Parameter(torch.ones(NUM_NORMS, embed_dim))
        self.norm_bias = nn.Parameter(torch.zeros(NUM_NORMS, embed_dim))
        self.encoder = TransformerLayer(embed_dim, ffn_dim)
        self.decoder = self.encoder if share_enc_dec else TransformerLayer(embed_dim, ffn_dim)
        self.hypernetworks = nn.ModuleDict()
        for side, layer in (("encoder", self.encoder), ("decoder", self.decoder)):
            if where in ("both", side):
                shapes = layer.weights()._asdict()
                self.hypernetworks[side] = nn.ModuleDict(
                    {
                        name: WeightHypernetwork(2 * embed_dim, hyper_dim, shapes[name].shape)
                        for name in _INJECTED[injection]
                    }
                )

    @property
    def output_dim(self) -> int:
        """``M * d``."""
        return self.num_behaviors * self.embed_dim

    def forward(
        self, sequences: JaggedSequences, target: Tensor, *, user_index: Tensor | None = None
    ) -> Tensor:
        """``[B, T, M*d]``, behavior-major in the last axis.

        Args:
            sequences: embeddings ``[N, d]`` of the tokens of ``M`` behaviors of ``U`` users.
            target: embeddings ``[B, d]`` of the candidates.
            user_index: int64 ``[B]``, whose sequences each candidate uses; None when ``U == B``.

        Raises:
            ValueError: for another number of behaviors than the module's, and for everything that
                :func:`mtlfast.ops.conditional_interest` refuses.
        """
        require_behaviors(sequences, self.num_behaviors)
        encoders = self._weights("encoder", self.encoder)
        decoders = self._weights("decoder", self.decoder)
        rows: list[list[Tensor]] = [[] for _ in range(self.num_tasks)]
        for b in range(self.num_behaviors):
            of_behavior = sequences.behavior(b)
            for t in range(self.num_tasks):
                pair = t * self.num_behaviors + b
                weights = ConditionalTransformerWeights(encoders[pair], decoders[pair])
                rows[t].append(
                    one_interest(
                        of_behavior,
                        target,
                        weights,
                        self.norm_weight,
                        self.norm_bias,
                        num_heads=self.num_heads,
                        eps=self.eps,
                        user_index=user_index,
                        backend=self.backend,
                    )
                )
        found = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)  # [B, T, M, d]
        if self.empty == "zero_interest":
            found = empty_as_zero(found, sequences, user_index)
        return found.flatten(2)

    def _weights(self, side: str, layer: TransformerLayer) -> list[TransformerWeights]:
        """The weights of a layer for each pair, task-major."""
        base, pairs = layer.weights(), self.num_tasks * self.num_behaviors
        if side not in self.hypernetworks:
            return [base] * pairs
        task, behavior = self.task_embedding.weight, self.behavior_embedding.weight
        # Autocast does not lower the precision of what all samples share.
        with without_autocast(task.device):
            condition = torch.cat(
                (
                    task.repeat_interleave(self.num_behaviors, dim=0),
                    behavior.repeat(self.num_tasks, 1),
                ),
                dim=-1,
            )
            networks = self.hypernetworks[side]
            if not isinstance(networks, nn.ModuleDict):
                raise TypeError("hypernetworks must hold one ModuleDict per layer")
            changed = {
                name: getattr(base, name) * (1 + network(condition))
                for name, network in networks.items()
            }
            return [
                base._replace(**{name: tensor[pair] for name, tensor in changed.items()})
                for pair in range(pairs)
            ]
