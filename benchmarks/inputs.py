"""Random inputs of a case, the same for every backend; several sets so that caches stay honest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mtlfast.data.synthetic.lengths import LengthSampler
from mtlfast.data.synthetic.random_bits import RandomBits
from mtlfast.data.synthetic.shapes import ECOMMERCE, TENREC, Shape
from mtlfast.jagged import JaggedSequences
from mtlfast.reference import ConditionalTransformerWeights, TransformerWeights

from .cases import Case

EPS = 1e-5


def shape_of(case: Case) -> Shape:
    """The published data set whose sizes the case has."""
    return {"ecommerce": ECOMMERCE, "tenrec": TENREC}[case.shape]


def sample_lengths(case: Case, seed: int = 0) -> Tensor:
    """Lengths ``[M, U]`` int64 of the case's users."""
    sampler = LengthSampler(shape_of(case), case.lengths)  # type: ignore[arg-type]
    return torch.from_numpy(sampler(RandomBits((seed,)), case.users))


@dataclass(frozen=True)
class InterestInputs:
    """The arguments of ``conditional_interest`` and the gradient that comes back to it."""

    sequences: JaggedSequences
    target: Tensor  # [B, d]
    weights: ConditionalTransformerWeights
    scale: Tensor  # [T, M, 4, d]
    shift: Tensor  # [T, M, 4, d]
    num_heads: int
    user_index: Tensor | None  # [B]
    grad_out: Tensor  # [B, T, M, d]

    def differentiable(self) -> dict[str, Tensor]:
        """Every floating input by name, in a fixed order."""
        named = {"values": self.sequences.values, "target": self.target}
        for side, layer in zip(self.weights._fields, self.weights, strict=True):
            named |= {f"{side}.{k}": w for k, w in zip(layer._fields, layer, strict=True)}
        return named | {"scale": self.scale, "shift": self.shift}

    def replaced(self, named: dict[str, Tensor]) -> InterestInputs:
        """The same structure around other tensors, named as in :meth:`differentiable`."""
        layers = [
            TransformerWeights(*(named[f"{side}.{k}"] for k in TransformerWeights._fields))
            for side in ConditionalTransformerWeights._fields
        ]
        return replace(
            self,
            sequences=self.sequences.with_values(named["values"]),
            target=named["target"],
            weights=ConditionalTransformerWeights(*layers),
            scale=named["scale"],
            shift=named["shift"],
        )

    def requiring_grad(self) -> InterestInputs:
        """Leaves that share the storage of these tensors and ask for gradients."""
        return self.replaced(
            {k: v.detach().requires_grad_() for k, v in self.differentiable().items()}
        )

    def to(self, dtype: torch.dtype) -> InterestInputs:
        """Every floating tensor in ``dtype``."""
        named = {k: v.detach().to(dtype) for k, v in self.differentiable().items()}
        return replace(self.replaced(named), grad_out=self.grad_out.to(dtype))

    def on(self, device: str) -> InterestInputs:
        """Every tensor on ``device``."""
        on_device = replace(self, sequences=self.sequences.to(device))
        named = {k: v.detach().to(device) for k, v in self.differentiable().items()}
        return replace(
            on_device.replaced(named),
            user_index=None if self.user_index is None else self.user_index.to(device),
            grad_out=self.grad_out.to(device),
        )

    def nbytes(self) -> int:
        """Bytes of the tensors that a rotation replaces."""
        changing = (self.sequences.values, self.target, self.grad_out)
        return sum(tensor.nbytes for tensor in changing)


def interest_inputs(case: Case, seed: int = 0) -> InterestInputs:
    """Inputs of unit scale: what embeddings look like after training, not at initialization."""
    generator = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, case.dtype)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * std).to(dtype)

    lengths = sample_lengths(case, seed)
    num_behaviors, d, d_f = lengths.shape[0], case.d, case.d_f
    values = normal(int(lengths.sum()), d)
    sequences = JaggedSequences.from_lengths(
        values, lengths, max_len=max(shape_of(case).max_lengths)
    )

    def layer() -> TransformerWeights:
        return TransformerWeights(
            q_proj=normal(d, d, std=d**-0.5),
            k_proj=normal(d, d, std=d**-0.5),
            v_proj=normal(d, d, std=d**-0.5),
            out_proj=normal(d, d, std=d**-0.5),
            linear1_weight=normal(d_f, d, std=d**-0.5),
            # Far from zero, one sign or the other: of 1e8 hidden units some would else lie so close
            # to the kink of the ReLU that float32 and float64 disagree, and with them whole rows of
            # gradients, whoever computes them.
            linear1_bias=8 * normal(d_f).sign(),
            linear2_weight=normal(d, d_f, std=d_f**-0.5),
            linear2_bias=normal(d, std=0.1),
        )

    tables = (case.num_tasks, num_behaviors, 4, d)
    user_index = None
    if case.users != case.batch:
        user_index = torch.arange(case.batch) * case.users // case.batch
    return InterestInputs(
        sequences=sequences,
        target=normal(case.batch, d),
        weights=ConditionalTransformerWeights(layer(), layer()),
        scale=1 + normal(*tables, std=0.2),
        shift=normal(*tables, std=0.2),
        num_heads=case.num_heads,
        user_index=user_index,
        grad_out=normal(case.batch, case.num_tasks, num_behaviors, d),
    )


def rotation(first: InterestInputs, count: int, seed: int = 1) -> list[InterestInputs]:
    """``count`` sets: the first one, then others that differ in values, target and gradient.

    Lengths and weights stay, so that all sets cost the same.
    """
    generator = torch.Generator().manual_seed(seed)

    def like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator).to(tensor.dtype)

    return [first] + [
        replace(
            first,
            sequences=first.sequences.with_values(like(first.sequences.values)),
            target=like(first.target),
            grad_out=like(first.grad_out),
        )
        for _ in range(count - 1)
    ]


def rotation_length(nbytes: int, cache_bytes: int = 64 << 20, most: int = 64) -> int:
    """How many sets it takes so that one is out of the last-level cache when it comes again."""
    return max(2, min(most, -(-cache_bytes // max(nbytes, 1))))
