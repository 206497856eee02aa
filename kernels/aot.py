"""How a kernel file says which configurations of its kernels it ships.

Every kernel file has ``aot_cases(capability) -> list[AotCase]``. ``python -m benchmarks.aot``
compiles each of them ahead of time, without a GPU, and reads registers, spills and shared memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class AotCase:
    """One compiled form of one kernel.

    Attributes:
        name: unique within the file, readable: "forward/d32/bfloat16".
        kernel: the ``@triton.jit`` function.
        signature: the type of every argument that is no constexpr: "*fp32", "i32", "i64", "fp32".
        constexprs: the value of every other argument.
        divisible_by_16: names of arguments that are multiples of 16, as launches would find them
            (pointers of tensors are, by default).
        num_warps, num_stages: launch options.
        options: further launch options, such as ``maxnreg``.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible_by_16: tuple[str, ...] | None = None
    num_warps: int = 4
    num_stages: int = 3
    options: dict[str, Any] = field(default_factory=dict)
