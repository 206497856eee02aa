"""Shipped configurations: what typical lookups, and the widest, compile to."""

from __future__ import annotations

from typing import Any

from ..aot import AotCase
from .codebook import CHUNK, reduce
from .gradients import weight_gradients
from .launch import MAX_WIDTH, crosses_of, num_crosses, tile_of
from .lookup import INDEX_ROWS, UNROLL, crosses, find_rows, pooled

_TYPES = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16"}


def cases() -> list[AotCase]:
    """Every kernel for pairs of 17 fields; triples, key fields and widths where they matter."""
    pair = _Shape(17, 2, None)
    triple, key = _Shape(8, 3, None), _Shape(17, 2, (3, 11))
    found = [_indices(shape) for shape in (pair, triple, key)]
    for width, dtype in (
        (16, "float32"),
        (16, "bfloat16"),
        (64, "float32"),
        (MAX_WIDTH, "float32"),
    ):
        lookup = _Lookup(pair, width, dtype)
        found += [lookup.pooled(), lookup.weights(), lookup.entries(), lookup.sums()]
    for shape in (triple, key):
        lookup = _Lookup(shape, 16, "float32")
        found += [lookup.pooled(), lookup.weights(), lookup.entries()]
    return [*found, _Lookup(pair, 16, "float32").crosses()]


class _Shape:
    def __init__(self, fields: int, order: int, keys: tuple[int, ...] | None) -> None:
        self.name = f"F{fields}-order{order}" + ("" if keys is None else f"-keys{len(keys)}")
        self.constants = crosses_of(fields, order, keys)
        self.count = num_crosses(fields, order, keys)


def _case(
    kernel: Any, name: str, pointers: dict[str, str | None], constants: dict[str, Any]
) -> AotCase:
    """All pointers that are None, and all constants that the kernel takes, are constexprs."""
    names = kernel.arg_names
    missing = {n: None for n, kind in pointers.items() if kind is None}
    constexprs = {n: value for n, value in constants.items() if n in names} | missing
    signature = {n: kind for n, kind in pointers.items() if kind is not None}
    signature |= {n: "i32" for n in names if n not in signature and n not in constexprs}
    return AotCase(name, kernel, signature, constexprs, num_warps=constants["num_warps"])


def _indices(shape: _Shape) -> AotCase:
    constants = {"CROSSES": shape.count, "ROWS": INDEX_ROWS, "WIDE": False, "num_warps": 4}
    pointers: dict[str, str | None] = {"ids": "*i64", "out": "*i32"}
    return _case(find_rows, f"indices/{shape.name}", pointers, constants | shape.constants)


class _Lookup:
    """A lookup with both kinds of weights, each field of a pair having its own: what needs most."""

    def __init__(self, shape: _Shape, width: int, dtype: str) -> None:
        self.kind = _TYPES[dtype]
        self.name = f"{shape.name}/c{width}/{dtype}"
        self.constants: dict[str, Any] = {
            **shape.constants,
            **tile_of(width),
            "CROSSES": shape.count,
            "HASHES": 2,
            "C": width,
            "CHUNK": CHUNK,
            "UNROLL": UNROLL,
            "POOL": True,
            "PER_MEMBER": True,
            "ALIGN": 8,
            "WIDE": False,
        }
        self.inputs: dict[str, str | None] = {
            "ids": "*i64",
            "codebook": self.kind,
            "pair_weights": self.kind,
            "codeword_weights": self.kind,
        }

    def pooled(self) -> AotCase:
        pointers = {**self.inputs, "out": "*fp32"}
        return _case(pooled, f"forward/{self.name}", pointers, self.constants)

    def crosses(self) -> AotCase:
        pointers = {**self.inputs, "out": "*fp32"}
        return _case(crosses, f"forward_crosses/{self.name}", pointers, self.constants)

    def weights(self) -> AotCase:
        grads = {"grad": self.kind, "grad_pair": self.kind, "grad_codeword": self.kind}
        pointers = {**self.inputs, **grads}
        return _case(weight_gradients, f"backward_weights/{self.name}", pointers, self.constants)

    def entries(self) -> AotCase:
        pointers = {"keys": "*i32", "order": "*i64", "sums": None} | self._reduced()
        return _case(reduce, f"backward_entries/{self.name}", pointers, self.constants)

    def sums(self) -> AotCase:
        pointers = {"keys": "*i32", "order": None, "sums": "*fp32"} | self._reduced()
        return _case(reduce, f"backward_sums/{self.name}", pointers, self.constants)

    def _reduced(self) -> dict[str, str | None]:
        weights = {name: self.inputs[name] for name in ("pair_weights", "codeword_weights")}
        outputs = {"out": self.kind, "next_keys": "*i32", "next_sums": "*fp32"}
        return {"grad": self.kind, **weights, **outputs}
