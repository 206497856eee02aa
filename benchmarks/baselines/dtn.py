"""DTN as a plain loop of torch modules: one ``nn.Linear`` per map of every module of every group.

What a good engineer writes from the paper: every group's modules are modules of their own, called
one after the other. HCNet hashes with int64 tensors, the keys of the fields once, and shrinks
before it restores. :class:`PlainDTN` takes over the weights of a :class:`mtlfast.models.DTN`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtlfast.interactions import (
    GatedCrossNetwork,
    MaskNet,
    MemoNetInteraction,
    ProjectedInteraction,
)
from mtlfast.models import DTN
from mtlfast.models.loss import task_losses

_GOLD = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed number
_MULTIPLIERS = (-0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15)


def linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """An ``nn.Linear`` with a copy of these weights."""
    out, width = weight.shape
    module = nn.Linear(width, out, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        module.weight.copy_(weight)
        if bias is not None:
            module.bias.copy_(bias)
    return module


class GDCN(nn.Module):
    """Gated cross layers, then the map to the common width."""

    def __init__(self, source: GatedCrossNetwork, g: int, project: nn.Linear) -> None:
        super().__init__()
        width = source.input_dim
        self.cross = nn.ModuleList(
            linear(w[g, :width], b[g]) for w, b in zip(source.weights, source.biases, strict=True)
        )
        self.gate = nn.ModuleList(linear(w[g, width:]) for w in source.weights)
        self.project = project

    def forward(self, fields: Tensor, ids: Tensor) -> Tensor:
        x0 = x = fields.flatten(1)
        for cross, gate in zip(self.cross, self.gate, strict=True):
            x = x0 * cross(x) * torch.sigmoid(gate(x)) + x
        return self.project(x)


class Mask(nn.Module):
    """MaskNet of one block with layer-normed fields, then its hidden layers."""

    def __init__(self, source: MaskNet, g: int) -> None:
        super().__init__()
        blocks = source.blocks[0]
        fields = source.num_fields
        dtype = blocks.weight.dtype
        self.norms = nn.ModuleList(
            nn.LayerNorm(source.embed_dim, dtype=dtype) for _ in range(fields)
        )
        self.aggregate = linear(blocks.aggregate_weight[g], blocks.aggregate_bias[g])
        self.mask = linear(blocks.mask_weight[g], blocks.mask_bias[g])
        self.block = linear(blocks.weight[g])
        self.norm = nn.LayerNorm(blocks.units, dtype=dtype)
        self.mlp = nn.ModuleList(
            linear(w[g], b[g]) for w, b in zip(source.mlp.weights, source.mlp.biases, strict=True)
        )
        with torch.no_grad():
            for f, norm in enumerate(self.norms):
                norm.weight.copy_(source.field_norm_weight[g, f])
                norm.bias.copy_(source.field_norm_bias[g, f])
            self.norm.weight.copy_(blocks.norm_weight[g])
            self.norm.bias.copy_(blocks.norm_bias[g])

    def forward(self, fields: Tensor, ids: Tensor) -> Tensor:
        normed = torch.cat([norm(fields[:, f]) for f, norm in enumerate(self.norms)], dim=1)
        mask = self.mask(F.relu(self.aggregate(fields.flatten(1))))
        x = F.relu(self.norm(self.block(mask * normed)))
        for layer in self.mlp:
            x = F.relu(layer(x))
        return x


class MemoNet(nn.Module):
    """HCNet of all fields, order 2, shared codebook, attentive shrinking; then the projection."""

    def __init__(self, source: MemoNetInteraction, g: int, project: nn.Linear) -> None:
        super().__init__()
        book = source.codebooks[g]
        words = book.codebook[0, 0]
        self.hashes = book.num_hashes
        self.codebook = nn.Embedding(*words.shape, dtype=words.dtype)
        self.shrink1 = linear(book.shrink[0].linear1.weight)
        self.shrink2 = linear(book.shrink[0].linear2.weight)
        self.restore = linear(book.restore.weight)
        self.project = project
        pairs = list(combinations(range(source.num_fields), 2))
        self.register_buffer("pairs", torch.tensor(pairs).T.contiguous())
        incidence = torch.zeros(len(pairs), source.num_fields)
        for p, pair in enumerate(pairs):
            incidence[p, list(pair)] = 1
        self.register_buffer("incidence", incidence)
        with torch.no_grad():
            self.codebook.weight.copy_(words)

    def forward(self, fields: Tensor, ids: Tensor) -> Tensor:
        index = self._indices(ids)  # [B, P, m]
        words = self.codebook(index).flatten(2)  # [B, P, m*c]
        weight = self.shrink2(F.relu(self.shrink1(fields.flatten(1))))
        weight = weight.unsqueeze(-1) * self.incidence.to(weight)  # [B, P, F]
        shrunk = torch.bmm(weight.transpose(1, 2), words)
        return self.project(torch.cat((fields.flatten(1), self.restore(shrunk).flatten(1)), dim=1))

    def _indices(self, ids: Tensor) -> Tensor:
        field = torch.arange(1, ids.shape[1] + 1, device=ids.device)
        keys = _mix(ids + field * _GOLD)
        left, right = keys[:, self.pairs[0]], keys[:, self.pairs[1]]
        found = []
        for s in range(self.hashes):
            seed = _mix(torch.tensor(s + 1) * _GOLD)
            mixed = _mix(_mix(left ^ seed) ^ right)
            found.append((_shift(mixed, 32) * self.codebook.num_embeddings) >> 32)
        return torch.stack(found, dim=-1)


def _shift(z: Tensor, bits: int) -> Tensor:
    """A shift of the 64 bits as if they had no sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MULTIPLIERS[0]
    z = (z ^ _shift(z, 27)) * _MULTIPLIERS[1]
    return z ^ _shift(z, 31)


class PlainDTN(nn.Module):
    """See the module's docstring; the paper's gates, concatenation and stopped gradients."""

    def __init__(self, model: DTN) -> None:
        super().__init__()
        self.num_tasks = tasks = model.num_tasks
        self.ancestors, self.order = model.ancestors, model.order
        embedding = model.embedding
        self.tables = nn.ModuleList(
            nn.Embedding(size, embedding.embed_dim, padding_idx=0, dtype=embedding.weight.dtype)
            for size in embedding.vocab_sizes
        )
        with torch.no_grad():
            for f, table in enumerate(self.tables):
                table.weight.copy_(embedding.table(f))
        self.keys = list(model.module_keys)
        self.modules_ = nn.ModuleList()
        for method in model.interactions:
            for g in range(method.num_groups):
                self.modules_.append(_module(method, g))
        places = range(len(self.keys))
        own = [[p for p in places if self.keys[p].group == t] for t in range(tasks)]
        other = [[p for p in places if self.keys[p].group != t] for t in range(tasks)]
        self.places = list(zip(other, own, strict=True))
        self.gates = nn.ModuleList(
            nn.ModuleList(
                linear(model.gates.weight[t, chosen], model.gates.bias[t, chosen])
                for chosen in self.places[t]
            )
            for t in range(tasks)
        )
        hidden, towers = model.towers.hidden, model.towers
        self.towers = nn.ModuleList()
        for t in range(tasks):
            layers: list[nn.Module] = []
            for weight, bias in zip(hidden.weights, hidden.biases, strict=True):
                layers += [linear(weight[t], bias[t]), nn.ReLU()]
            layers.append(linear(towers.weight[t], towers.bias[t : t + 1]))
            self.towers.append(nn.Sequential(*layers))

    def forward(self, sparse: Tensor, *unused: object) -> Tensor:
        """Logits ``[B, T]``."""
        fields = torch.stack([table(sparse[:, f]) for f, table in enumerate(self.tables)], dim=1)
        outputs = [module(fields, sparse) for module in self.modules_]
        x = fields.flatten(1)
        logits: dict[int, Tensor] = {}
        for task in self.order:
            parts = []
            for places, gate in zip(self.places[task], self.gates[task], strict=True):
                vectors = []
                for place in places:
                    group = self.keys[place].group
                    vector = outputs[place]
                    if group in self.ancestors[task]:
                        vector = vector * torch.sigmoid(logits[group]).detach()
                    vectors.append(vector)
                weight = torch.softmax(gate(x), dim=-1)
                parts.append((weight.unsqueeze(-1) * torch.stack(vectors, dim=1)).sum(dim=1))
            logits[task] = self.towers[task](torch.cat(parts, dim=-1))
        return torch.cat([logits[t] for t in range(self.num_tasks)], dim=1)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of the tasks' cross-entropies."""
        return task_losses(logits, labels).sum()


def _module(method: nn.Module, g: int) -> nn.Module:
    if isinstance(method, MaskNet):
        return Mask(method, g)
    if not isinstance(method, ProjectedInteraction):
        raise TypeError(f"no plain form of {type(method).__name__}")
    project = linear(method.weight[g], method.bias[g])
    makers: dict[type, Callable[..., nn.Module]] = {
        GatedCrossNetwork: GDCN,
        MemoNetInteraction: MemoNet,
    }
    return makers[type(method.interaction)](method.interaction, g, project)
