"""Broadcast leading dimensions as a few loops: sizes, and a stride of every operand for each.

All tensors are seen as rows of ``d`` elements with unit stride. A row of the result has one index
per leading dimension; dimensions that are one for every operand are merged, so that usually one or
two are left. A kernel takes at most :data:`MAX_DIMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor

MAX_DIMS = 4

Dim = tuple[int, tuple[int, ...]]  # size, stride of every operand in elements


def leading_strides(tensor: Tensor, rank: int) -> tuple[int, ...]:
    """Strides of the leading dimensions, aligned on the right; 0 where the tensor broadcasts."""
    sizes, strides = tensor.shape[:-1], tensor.stride()[:-1]
    own = tuple(0 if size == 1 else stride for size, stride in zip(sizes, strides, strict=True))
    return (0,) * (rank - len(own)) + own


def contiguous_strides(shape: tuple[int, ...], rank: int, step: int = 1) -> tuple[int, ...]:
    """Strides of a contiguous tensor of this leading shape whose rows are ``step`` apart."""
    strides: list[int] = []
    for size in reversed(shape):
        strides.append(0 if size == 1 else step)
        step *= size
    return (0,) * (rank - len(shape)) + tuple(reversed(strides))


def loops(sizes: tuple[int, ...], operands: Iterable[tuple[int, ...]]) -> list[Dim]:
    """One entry per dimension that is not of size 1."""
    columns = list(zip(*operands, strict=True))
    return [dim for dim in zip(sizes, columns, strict=True) if dim[0] != 1]


def split(dims: list[Dim], outer: Callable[[Dim], bool]) -> tuple[list[Dim], list[Dim]]:
    """The dimensions for which ``outer`` holds and the others, each in their order and merged."""
    return merge([dim for dim in dims if outer(dim)]), merge([d for d in dims if not outer(d)])


def merge(dims: list[Dim]) -> list[Dim]:
    """Makes one of neighbours that every operand steps through evenly."""
    merged: list[Dim] = []
    for size, strides in dims:
        if merged and all(a == b * size for a, b in zip(merged[-1][1], strides, strict=True)):
            merged[-1] = (merged[-1][0] * size, strides)
        else:
            merged.append((size, strides))
    return merged


def count(dims: list[Dim]) -> int:
    total = 1
    for size, _ in dims:
        total *= size
    return total


def arguments(dims: list[Dim], num_operands: int) -> tuple[list[int], list[list[int]]]:
    """The inner three sizes, and four strides of every operand, as kernels take them.

    Missing dimensions have size 1 and stride 0 and stand in front.
    """
    missing = MAX_DIMS - len(dims)
    sizes = [1] * missing + [size for size, _ in dims]
    strides = [
        [0] * missing + [stride[operand] for _, stride in dims] for operand in range(num_operands)
    ]
    return sizes[1:], strides


def unit_last_stride(tensor: Tensor) -> Tensor:
    """The tensor, or a copy with contiguous rows; broadcast dimensions (stride 0) are not blown up.

    In a copy those have size 1.
    """
    last = tensor.dim() - 1
    if tensor.stride(last) == 1 or tensor.shape[last] == 1:
        return tensor
    for dim in range(last):
        if tensor.stride(dim) == 0 and tensor.shape[dim] > 1:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor.contiguous()


def aligned(tensors: Iterable[Tensor | None], strides: Iterable[list[int]], elements: int) -> bool:
    """Whether all row strides are multiples of ``elements``, so that rows load in whole vectors."""
    present = all(t is None or t.data_ptr() % 16 == 0 for t in tensors)
    return present and all(step % elements == 0 for row in strides for step in row)


def broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """As ``torch.broadcast_shapes``, which takes longer than the kernel that waits for it."""
    sizes = [1] * max(len(shape) for shape in shapes)
    for shape in shapes:
        for dim, size in enumerate(shape, len(sizes) - len(shape)):
            if sizes[dim] == 1:
                sizes[dim] = size
            elif size not in (1, sizes[dim]):
                raise ValueError(f"expected shapes that broadcast, found {shapes}")
    return tuple(sizes)
