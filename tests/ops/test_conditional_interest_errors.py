"""Every wrong argument is a ValueError that says what was expected and what came."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from interest_cases import Case, make
from torch import Tensor

from mtlfast import ops, reference
from mtlfast.jagged import JaggedSequences

LENGTHS = [[3, 0, 5, 1], [0, 2, 0, 1]]
D = "[16, 16]"


def tensors(**replaced: Tensor) -> Callable[[Case], dict[str, Any]]:
    """Replaces floating tensors; ``__`` in a name stands for the dot."""

    def change(case: Case) -> dict[str, Any]:
        named = {name.replace("__", "."): tensor for name, tensor in replaced.items()}
        return {"case": case.with_tensors(**named)}

    return change


def options(**replaced: Any) -> Callable[[Case], dict[str, Any]]:
    return lambda case: replaced


def with_offsets(*offsets: int, **fields: Any) -> Callable[[Case], dict[str, Any]]:
    return lambda case: {"case": replace(case, offsets=torch.tensor(offsets), **fields)}


# name: (change, text). These are seen before anything runs, in eager and in traced calls alike.
ARGUMENTS = {
    "sequences": (
        options(sequences=torch.ones(3, 16)),
        "sequences: expected a JaggedSequences, found a float32 tensor of shape [3, 16] on cpu",
    ),
    "ids": (
        options(sequences=JaggedSequences(torch.arange(3), torch.tensor([0, 3]), 1, 3)),
        "sequences.values: expected shape [N, d], found shape [3]",
    ),
    "integer values": (
        options(
            sequences=JaggedSequences(
                torch.ones(3, 16, dtype=torch.int64), torch.tensor([0, 3]), 1, 3
            )
        ),
        "sequences.values: expected dtype float32, bfloat16, float16 or float64, "
        "found a int64 tensor of shape [3, 16] on cpu",
    ),
    "target type": (options(target=[1.0]), "target: expected a tensor, found list"),
    "target width": (
        tensors(target=torch.ones(4, 8)),
        "target: expected shape [B, 16], found shape [4, 8]",
    ),
    "target rank": (
        tensors(target=torch.ones(16)),
        "target: expected shape [B, 16], found shape [16]",
    ),
    "target rows": (
        tensors(target=torch.ones(3, 16)),
        "target: expected shape [U = 4, d] since user_index is None, found shape [3, 16]",
    ),
    "target dtype": (
        tensors(target=torch.ones(4, 16, dtype=torch.complex64)),
        "target: expected dtype float32, bfloat16, float16 or float64, "
        "found a complex64 tensor of shape [4, 16] on cpu",
    ),
    "target device": (
        tensors(target=torch.ones(4, 16, device="meta")),
        "target: expected device cpu (that of sequences), found meta",
    ),
    "weights type": (
        options(weights=torch.ones(2)),
        "weights: expected ConditionalTransformerWeights, "
        "found a float32 tensor of shape [2] on cpu",
    ),
    "layer type": (
        options(weights=((1, 2), (3, 4))),
        "weights.encoder: expected TransformerWeights, found tuple",
    ),
    "weight type": (
        lambda case: {
            "weights": case.weights._replace(decoder=case.weights.decoder._replace(q_proj=None))
        },
        "weights.decoder.q_proj: expected a tensor, found NoneType",
    ),
    "projection": (
        tensors(encoder__k_proj=torch.ones(16, 8)),
        f"weights.encoder.k_proj: expected shape {D}, found shape [16, 8]",
    ),
    "ffn weight": (
        tensors(decoder__linear2_weight=torch.ones(16, 31)),
        "weights.decoder.linear2_weight: expected shape [16, 32], found shape [16, 31]",
    ),
    "ffn bias": (
        tensors(encoder__linear1_bias=torch.ones(1, 32)),
        "weights.encoder.linear1_bias: expected shape [32], found shape [1, 32]",
    ),
    "ffn without units": (
        tensors(
            encoder__linear1_weight=torch.ones(0, 16),
            encoder__linear1_bias=torch.ones(0),
            encoder__linear2_weight=torch.ones(16, 0),
        ),
        "weights.encoder.linear1_weight: expected shape [d_f, d] with d_f >= 1, "
        "found a float32 tensor of shape [0, 16] on cpu",
    ),
    "weight device": (
        tensors(encoder__out_proj=torch.ones(16, 16, device="meta")),
        "weights.encoder.out_proj: expected device cpu (that of sequences), found meta",
    ),
    "scale behaviors": (
        tensors(scale=torch.ones(2, 3, 4, 16)),
        "scale: expected shape [T, 2, 4, 16], found shape [2, 3, 4, 16]",
    ),
    "scale positions": (
        tensors(scale=torch.ones(2, 2, 3, 16)),
        "scale: expected shape [T, 2, 4, 16], found shape [2, 2, 3, 16]",
    ),
    "no tasks": (
        tensors(scale=torch.ones(0, 2, 4, 16), shift=torch.ones(0, 2, 4, 16)),
        "scale: expected shape [T, M, 4, d] with T >= 1, found shape [0, 2, 4, 16]",
    ),
    "shift tasks": (
        tensors(shift=torch.ones(3, 2, 4, 16)),
        "shift: expected shape [2, 2, 4, 16], found shape [3, 2, 4, 16]",
    ),
    "num_heads type": (options(num_heads=2.0), "num_heads: expected an int, found float"),
    "num_heads zero": (
        options(num_heads=0),
        "num_heads: expected a positive divisor of d = 16, found 0",
    ),
    "num_heads divisor": (
        options(num_heads=3),
        "num_heads: expected a positive divisor of d = 16, found 3",
    ),
    "eps type": (options(eps="small"), "eps: expected a float, found str"),
    "eps negative": (
        options(eps=-1e-5),
        "eps: expected a finite number of at least 0, found -1e-05",
    ),
    "eps nan": (
        options(eps=float("nan")),
        "eps: expected a finite number of at least 0, found nan",
    ),
    "user_index type": (options(user_index=[0]), "user_index: expected a tensor, found list"),
    "user_index dtype": (
        options(user_index=torch.zeros(4, dtype=torch.int32)),
        "user_index: expected dtype int64, found a int32 tensor of shape [4] on cpu",
    ),
    "user_index shape": (
        options(user_index=torch.zeros(3, dtype=torch.int64)),
        "user_index: expected shape [B = 4], found shape [3]",
    ),
    "user_index device": (
        options(user_index=torch.zeros(4, dtype=torch.int64, device="meta")),
        "user_index: expected device cpu (that of sequences), found meta",
    ),
}

BACKENDS = {
    "unknown": (
        options(backend="fast"),
        "backend: expected one of ('reference', 'cpu', 'triton', 'cuda', 'auto'), found 'fast'",
    ),
    "cuda": (
        options(backend="cuda"),
        "backend: expected one that can run conditional_interest here, "
        "found 'cuda': it is not part of this build",
    ),
}

# Wrong data: found while the op runs.
DATA = {
    "start": (
        with_offsets(3, 3, 3, 8, 9, 9, 11, 11, 12),
        "offsets: expected offsets[0] == 0, found 3",
    ),
    "negative start": (
        with_offsets(-1, 3, 3, 8, 9, 9, 11, 11, 12),
        "offsets: expected offsets[0] == 0, found -1",
    ),
    "decreasing": (
        with_offsets(0, 3, 3, 8, 7, 9, 11, 11, 12),
        "offsets: expected non-decreasing values, found offsets[4] = 7 after offsets[3] = 8",
    ),
    "extremes": (
        with_offsets(0, 2**63 - 1, -(2**63), 8, 9, 9, 11, 11, 12),
        "offsets: expected non-decreasing values, "
        f"found offsets[2] = {-(2**63)} after offsets[1] = {2**63 - 1}",
    ),
    "end before": (
        with_offsets(0, 3, 3, 8, 9, 9, 11, 11, 11),
        "offsets: expected offsets[-1] == len(values) = 12, found 11",
    ),
    "end behind": (
        with_offsets(0, 3, 3, 8, 9, 9, 11, 11, 2**40),
        f"offsets: expected offsets[-1] == len(values) = 12, found {2**40}",
    ),
    "max_len": (
        lambda case: {"case": replace(case, max_len=2)},
        "max_len: expected an upper bound of every sequence length, "
        "found max_len = 2 and a sequence of length 3 (behavior 0, user 0)",
    ),
    "max_len of a later behavior": (
        with_offsets(0, 1, 2, 3, 4, 5, 10, 11, 12, max_len=4),
        "max_len: expected an upper bound of every sequence length, "
        "found max_len = 4 and a sequence of length 5 (behavior 1, user 1)",
    ),
    "user_index above": (
        options(user_index=torch.tensor([0, 1, 4, 2])),
        "user_index: expected values in [0, 4), found user_index[2] = 4",
    ),
    "user_index below": (
        options(user_index=torch.tensor([0, 1, 2, -(2**63)])),
        f"user_index: expected values in [0, 4), found user_index[3] = {-(2**63)}",
    ),
}


def call(function: Callable[..., Tensor], change: Callable[[Case], dict[str, Any]]) -> Tensor:
    case = make(LENGTHS)
    changed = change(case)
    case = changed.pop("case", case)
    args = dict(zip(("sequences", "target", "weights", "scale", "shift"), case.args, strict=True))
    return function(**{**args, **case.kwargs, **changed})


@pytest.mark.parametrize(("change", "text"), [*ARGUMENTS.values(), *DATA.values()])
@pytest.mark.parametrize("backend", ["cpu", "reference", "auto", None])
def test_eager(backend: str | None, change: Callable[[Case], dict[str, Any]], text: str) -> None:
    """The same text from every backend and, for None, from mtlfast.reference itself."""

    def function(**arguments: Any) -> Tensor:
        if backend is None:
            return reference.conditional_interest(**arguments)
        return ops.conditional_interest(**arguments, backend=backend)

    with pytest.raises(ValueError) as error:
        call(function, change)
    assert str(error.value) == text


@pytest.mark.parametrize(("change", "text"), list(BACKENDS.values()))
def test_backends(change: Callable[[Case], dict[str, Any]], text: str) -> None:
    with pytest.raises(ValueError) as error:
        call(ops.conditional_interest, change)
    assert str(error.value) == text


@pytest.mark.parametrize(("change", "text"), [*ARGUMENTS.values(), *BACKENDS.values()])
def test_while_tracing(change: Callable[[Case], dict[str, Any]], text: str) -> None:
    """With dynamic shapes, since symbols must come out as the numbers of this call."""
    torch.compiler.reset()
    compiled = torch.compile(
        ops.conditional_interest, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    with pytest.raises(ValueError) as error:
        call(compiled, change)
    assert str(error.value).startswith(text)


@pytest.mark.parametrize(("change", "text"), list(DATA.values()))
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_inside_a_compiled_graph(
    backend: str, change: Callable[[Case], dict[str, Any]], text: str
) -> None:
    compiled = torch.compile(ops.conditional_interest, fullgraph=True, backend="aot_eager")

    def function(**arguments: Any) -> Tensor:
        return compiled(**arguments, backend=backend)

    with pytest.raises(RuntimeError) as error:
        call(function, change)
    assert text in str(error.value)


def test_checks_find_the_same_before_the_op_runs() -> None:
    ops.checks(True)
    try:
        for change, text in DATA.values():
            with pytest.raises(ValueError) as error:
                call(ops.conditional_interest, change)
            assert str(error.value) == text
        call(ops.conditional_interest, options())
    finally:
        ops.checks(False)


def test_thousands_of_malformed_offsets_and_indices() -> None:
    """In a process of its own, so that a crash is a failed test and not the end of all tests."""
    script = Path(__file__).with_name("fuzz_malformed_offsets.py")
    support = Path(__file__).parents[1] / "support"
    result = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script), str(support), "4000"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "4000 calls" in result.stdout
