"""Inputs for ``conditional_interest``, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mtlfast.jagged import JaggedSequences
from mtlfast.reference import ConditionalTransformerWeights, TransformerWeights

PARAMETERS = [
    *(f"encoder.{field}" for field in TransformerWeights._fields),
    *(f"decoder.{field}" for field in TransformerWeights._fields),
    "scale",
    "shift",
]
FLOATING = ["values", "target", *PARAMETERS]


@dataclass
class Case:
    """The arguments of one call; ``tensors`` holds the floating ones by their names in FLOATING."""

    tensors: dict[str, Tensor]
    offsets: Tensor
    num_behaviors: int
    max_len: int
    num_heads: int
    user_index: Tensor | None = None
    eps: float = 1e-5

    @property
    def sequences(self) -> JaggedSequences:
        return JaggedSequences(
            self.tensors["values"], self.offsets, self.num_behaviors, self.max_len
        )

    @property
    def weights(self) -> ConditionalTransformerWeights:
        parameters = [self.tensors[name] for name in PARAMETERS]
        return ConditionalTransformerWeights(
            TransformerWeights(*parameters[:8]), TransformerWeights(*parameters[8:16])
        )

    @property
    def args(self) -> tuple[Any, ...]:
        tensors = self.tensors
        return self.sequences, tensors["target"], self.weights, tensors["scale"], tensors["shift"]

    @property
    def kwargs(self) -> dict[str, Any]:
        return {"num_heads": self.num_heads, "eps": self.eps, "user_index": self.user_index}

    @property
    def lengths(self) -> Tensor:
        return self.sequences.lengths()

    def call(self, op: Callable[..., Tensor], **options: Any) -> Tensor:
        return op(*self.args, **self.kwargs, **options)

    def map(self, function: Callable[[Tensor], Tensor]) -> Case:
        """Another case whose floating tensors are leaves with gradients."""
        tensors = {
            name: function(tensor.detach()).detach().requires_grad_()
            for name, tensor in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def to(self, dtype: torch.dtype) -> Case:
        return self.map(lambda tensor: tensor.clone().to(dtype))

    def with_tensors(self, **tensors: Tensor) -> Case:
        """Some floating tensors replaced; ``**{"encoder.q_proj": ...}`` where a name has a dot."""
        return replace(self, tensors={**self.tensors, **tensors})

    def gradients(self, out: Tensor, upstream: Tensor, **options: Any) -> dict[str, Tensor]:
        inputs = [self.tensors[name] for name in FLOATING]
        return dict(
            zip(FLOATING, torch.autograd.grad(out, inputs, upstream, **options), strict=True)
        )


def make(
    lengths: Tensor | list[list[int]],
    *,
    d: int = 16,
    d_f: int = 32,
    num_tasks: int = 2,
    num_heads: int = 2,
    num_candidates: int | None = None,
    dtype: torch.dtype = torch.float32,
    index_dtype: torch.dtype = torch.int64,
    max_len: int | None = None,
    seed: int = 0,
    kinks: bool = True,
) -> Case:
    """A case with the given lengths ``[M, U]``.

    With ``num_candidates`` candidates draw their users at random; without, there is one per user.
    Without ``kinks`` every hidden unit of the FFNs is far from the kink of its ReLU, on one side
    or the other: next to it, the gradients of any two implementations may differ by a whole row.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
        drawn = torch.randn(*shape, generator=generator, dtype=torch.float64) * std + mean
        return drawn.to(dtype).requires_grad_()

    lengths = torch.as_tensor(lengths)
    num_behaviors, num_users = lengths.shape
    tensors = {"values": draw(int(lengths.sum()), d)}
    for side in ("encoder", "decoder"):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors[f"{side}.{name}"] = draw(d, d, std=d**-0.5)
        tensors[f"{side}.linear1_weight"] = draw(d_f, d, std=d**-0.5)
        tensors[f"{side}.linear1_bias"] = draw(d_f, std=0.5)
        if not kinks:
            tensors[f"{side}.linear1_bias"].data.sign_().mul_(5)
        tensors[f"{side}.linear2_weight"] = draw(d, d_f, std=d_f**-0.5)
        tensors[f"{side}.linear2_bias"] = draw(d, std=0.5)
    tensors["scale"] = draw(num_tasks, num_behaviors, 4, d, std=0.3, mean=1.0)
    tensors["shift"] = draw(num_tasks, num_behaviors, 4, d, std=0.3)
    user_index = None
    if num_candidates is not None:
        user_index = torch.randint(0, max(num_users, 1), (num_candidates,), generator=generator)
    tensors["target"] = draw(num_users if num_candidates is None else num_candidates, d)
    structure = JaggedSequences.from_lengths(tensors["values"], lengths.to(index_dtype))
    longest = structure.max_len if max_len is None else max_len
    return Case(tensors, structure.offsets, num_behaviors, longest, num_heads, user_index)


def fuzz(seed: int, dtype: torch.dtype = torch.float32, kinks: bool = True) -> Case:
    """Any shape: B 0-600, U <= B, T 1-8, M 1-6, d 8-256, lengths 0-500 and mostly empty."""
    generator = torch.Generator().manual_seed(seed)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    num_tasks, num_behaviors = pick(1, 8), pick(1, 6)
    d = 8 * (pick(2, 16) if pick(0, 3) else pick(1, 32))
    d_f = 8 * pick(1, 32)
    num_heads = [h for h in (1, 2, 3, 4, 5, 8, 16) if d % h == 0][pick(0, 2)]
    num_candidates = [pick(0, 5), pick(6, 60), pick(61, 600)][pick(0, 2)]
    # The float64 reference, not the op, sets the limits here and below: a fraction of a second.
    per_row = d * (d_f + 2 * d)
    num_candidates = min(num_candidates, max(5, int(4e8 / (num_tasks * num_behaviors * per_row))))
    shared = num_candidates > 0 and pick(0, 1) == 1
    num_users = pick(1, num_candidates) if shared else num_candidates

    tokens = max(500, int(2e8 / (num_tasks * per_row)))
    lengths = torch.zeros(num_behaviors, num_users, dtype=torch.int64)
    cells = torch.randperm(lengths.numel(), generator=generator).tolist()
    for cell in cells[: len(cells) // 3 + 1]:
        length = min([pick(1, 3), pick(1, 20), pick(1, 500)][pick(0, 2)], tokens)
        lengths.view(-1)[cell] = length
        tokens -= length
    return make(
        lengths,
        d=d,
        d_f=d_f,
        num_tasks=num_tasks,
        num_heads=num_heads,
        num_candidates=num_candidates if shared else None,
        dtype=dtype,
        index_dtype=torch.int64 if pick(0, 1) else torch.int32,
        max_len=int(lengths.max()) + pick(0, 50) if lengths.numel() else pick(0, 50),
        seed=seed,
        kinks=kinks,
    )


def nan_like(case: Case, name: str, index: Any) -> Case:
    """The case with a NaN at ``index`` of one floating tensor."""
    poisoned = case.to(case.tensors[name].dtype)
    with torch.no_grad():
        poisoned.tensors[name][index] = float("nan")
    return poisoned


def subsets(size: int, pieces: int) -> Iterator[Tensor]:
    """``range(size)`` cut into ``pieces`` consecutive parts."""
    yield from torch.arange(size).tensor_split(pieces)
