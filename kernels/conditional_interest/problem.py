"""Sizes, helper tensors and launches that forward and backward share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from .. import tuned
from .config import MAX_TF32_D, Config, Launch, config
from .decoder import absorb_queries
from .layout import Layout
from .parameters import pack_parameters
from .segments import find_segments

_SEGMENT_BLOCK, _PACK_BLOCK = 128, 1024


Run = Callable[..., None]  # kernel, grid, its arguments


# A forward is a tenth of a millisecond of work on a GPU: what depends on nothing but sizes is not
# worked out for every launch.
@cache
def _config(
    layout: Layout, products: str, capability: int, launches: tuple[tuple[str, Launch], ...]
) -> Config:
    return config(layout, products, capability, dict(launches))


@cache
def _sizes(layout: Layout) -> dict[str, int]:
    return {**layout.constants(), "DF": layout.d_f, "HD": layout.head_columns}


def launch_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    kernel[grid](*arguments, **constants)


class Problem:
    """Sizes and helper tensors that forward and backward share."""

    def __init__(
        self,
        values: Tensor,
        offsets: Tensor,
        num_behaviors: int,
        target: Tensor,
        user_index: Tensor | None,
        parameters: Sequence[Tensor],
        num_heads: int,
        run: Run,
        capability: int,
        launches: Mapping[str, Launch] | None,
    ) -> None:
        self.run = run
        self.values, self.target = values, target
        self.offsets = offsets.contiguous()
        self.parameters = [parameter.contiguous() for parameter in parameters]
        scale, hidden = parameters[16], parameters[4]
        self.layout = Layout(values.shape[1], hidden.shape[0], num_heads)
        self.num_tokens, self.num_candidates = values.shape[0], target.shape[0]
        self.num_tasks, self.num_behaviors = scale.shape[0], num_behaviors
        self.num_segments = offsets.shape[0] - 1
        self.num_users = self.num_segments // num_behaviors
        self.dtype = values.dtype
        if launches is None:
            launches = tuned_launches(self.layout, values)
        products = _products(values)
        self.config = _config(self.layout, products, capability, tuple(launches.items()))
        self.query_scale = 1.0 / math.sqrt(values.shape[1] // num_heads)
        self.shared = user_index is not None
        self._constants = {
            **_sizes(self.layout),
            "PRECISION": "tf32" if products == "tf32" else "ieee",
            "SHARED": self.shared,
        }
        # Kernels that do not read them still want pointers.
        self.order = self.users = self.candidate_begin = self.offsets
        if user_index is not None:
            # The candidate list: by user, so that the tokens a tile attends to lie together.
            self.users, self.order = torch.sort(user_index, stable=True)
            users = torch.arange(self.num_users + 1, device=user_index.device)
            self.candidate_begin = torch.searchsorted(self.users, users)

    @property
    def empty(self) -> bool:
        return self.num_candidates == 0 or self.num_users == 0

    def new(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.values.new_empty(shape, dtype=dtype or self.dtype)

    def floats(self, *shape: int) -> Tensor:
        return self.new(*shape, dtype=torch.float32)

    def constants(self, *names: str, **others: Any) -> dict[str, Any]:
        return {name: self._constants[name] for name in names} | others

    @property
    def strides(self) -> tuple[int, int]:
        return self.values.stride(0), self.values.stride(1)

    @property
    def target_strides(self) -> tuple[int, int]:
        return self.target.stride(0), self.target.stride(1)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        return (
            self.num_candidates,
            self.num_users,
            self.num_behaviors,
            self.num_tasks,
            self.num_tokens,
        )

    @property
    def num_vectors(self) -> int:
        return self.layout.packed_vectors(self.num_tasks, self.num_behaviors)

    # ---- launches that both directions need ----

    def segments(self) -> Tensor:
        """[N]: the segment of every token, -1 where no candidate refers to its user."""
        kind = torch.int32 if self.num_segments < 1 << 31 else torch.int64
        segments = self.new(self.num_tokens, dtype=kind)
        self.run(
            find_segments,
            (triton.cdiv(self.num_tokens, _SEGMENT_BLOCK),),
            self.offsets,
            self.candidate_begin,
            segments,
            self.num_tokens,
            self.num_segments,
            self.num_users,
            max(self.num_segments - 1, 0).bit_length(),
            SHARED=self.shared,
            BLOCK=_SEGMENT_BLOCK,
        )
        return segments

    def packed(self) -> tuple[Tensor, Tensor]:
        """The parameters in the kernels' layout: matrices in the products' dtype, vectors."""
        size = self.layout.packed_matrices()
        matrices, vectors = self.new(size), self.floats(self.num_vectors)
        self.run(
            pack_parameters,
            (triton.cdiv(size + self.num_vectors, _PACK_BLOCK),),
            *self.parameters,
            matrices,
            vectors,
            self.num_tasks * self.num_behaviors,
            self.num_vectors,
            **self.constants("D", "DF", "H", "DP", "HP", "DHP", "FP", BLOCK=_PACK_BLOCK),
        )
        return matrices, vectors

    def queries(self, matrices: Tensor) -> Tensor:
        """[B, H, DP]: the decoder's queries absorbed into its key projection."""
        launch = self.config.queries
        queries = self.new(self.num_candidates, self.layout.heads, self.layout.dp)
        self.run(
            absorb_queries,
            (triton.cdiv(self.num_candidates, launch.rows),),
            self.target,
            self.order,
            matrices,
            queries,
            *self.target_strides,
            self.num_candidates,
            self.query_scale,
            **self.constants("D", "H", "DP", "DHP", "FP", "HD", "PRECISION", "SHARED"),
            ROWS=launch.rows,
            **options(launch),
        )
        return queries


def tuning_key(layout: Layout, values: Tensor) -> str:
    """Of the sizes that options depend on."""
    d, d_f, heads = layout
    return f"conditional_interest/d{d}/df{d_f}/h{heads}/{_products(values)}"


def device_name(values: Tensor) -> str:
    """What tuned options belong to."""
    name = _device_name(values.device.index) if values.is_cuda else "interpreter"
    return f"{name}, triton {triton.__version__}"


def tuned_launches(layout: Layout, values: Tensor) -> dict[str, Launch]:
    """What tuning found on this device, if it was ever asked to."""
    if values.is_meta:  # nothing runs: the table itself is wanted
        return {}
    found = tuned.read(device_name(values), tuning_key(layout, values))
    return {name: Launch(*launch) for name, launch in found.items() if name in Config._fields}


def options(launch: Launch) -> dict[str, int]:
    return {"num_warps": launch.warps, "num_stages": launch.stages}


def _products(values: Tensor) -> str:
    """What products are computed in: the dtype, or "tf32" where torch was asked for that."""
    # Follows torch's older settings too, while `allow_tf32` raises once this one was used.
    can = values.dtype == torch.float32 and values.shape[1] <= MAX_TF32_D and not values.is_cpu
    if can and torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return str(values.dtype).removeprefix("torch.")


@cache
def _device_capability(device: int) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def capability_of(values: Tensor) -> int:
    """Compute capability times ten; what is interpreted runs the table of 9.0."""
    return _device_capability(values.device.index) if values.is_cuda else 90


@cache
def _device_name(device: int) -> str:
    return torch.cuda.get_device_name(device)


@cache
def _multiprocessors(device: int) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def most_programs(values: Tensor) -> int:
    """How many programs sum weight gradients, each in memory of its own."""
    if not values.is_cuda:
        return 3  # interpreted: few, so that each has several tiles to sum
    return 2 * _multiprocessors(values.device.index)
