"""Every GPU op inside CUDA graphs and inside compiled and exported graphs, on small inputs."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops

from ..cases import Case
from ..inputs import InterestInputs, interest_inputs

BACKENDS = ("triton", "cuda")
Leaves = dict[str, Tensor]


@dataclass(frozen=True)
class Op:
    """An op on small awkward inputs.

    Attributes:
        name: of :mod:`mtlfast.ops`.
        make: ``(device, dtype, seed) -> (leaves, call)``; ``call(leaves, backend)`` runs the op.
    """

    name: str
    make: Callable[[str, str, int], tuple[Leaves, Callable[[Leaves, str], Tensor]]]

    def backends(self, device: str) -> list[str]:
        """Those that run these inputs here."""
        leaves, call = self.make(device, "float32", 0)
        found = []
        for backend in BACKENDS:
            try:
                call(leaves, backend)
            except ValueError as reason:
                print(f"{self.name}: no backend {backend}: {reason}")
            else:
                found.append(backend)
        return found


def _layer_norm(device: str, dtype: str, seed: int) -> tuple[Leaves, Callable[..., Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def leaf(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator).to(device, getattr(torch, dtype))
        return drawn.requires_grad_()

    leaves = {
        "x": leaf(37, 3, 5, 24),
        "scale": leaf(3, 5, 24),
        "shift": leaf(3, 5, 24),
        "residual": leaf(37, 1, 1, 24),
    }
    return leaves, lambda given, backend: ops.conditional_layer_norm(**given, backend=backend)


def _interest(device: str, dtype: str, seed: int) -> tuple[Leaves, Callable[..., Tensor]]:
    case = Case(d=16, batch=6 if device == "cpu" else 70, users=3 if device == "cpu" else 40)
    first = interest_inputs(Case(**{**case.to_dict(), "dtype": dtype})).on(device)
    drawn = interest_inputs(case, seed).to(getattr(torch, dtype)).on(device)
    # Other numbers, the same lengths: what a captured graph may be replayed on.
    named = first.differentiable()
    if seed:
        named = named | {"target": drawn.target, "values": named["values"] * 0.5}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in named.items()}

    def call(given: Leaves, backend: str) -> Tensor:
        return interest(first.replaced(given), backend)

    return leaves, call


def interest(inputs: InterestInputs, backend: str) -> Tensor:
    return ops.conditional_interest(
        inputs.sequences,
        inputs.target,
        inputs.weights,
        inputs.scale,
        inputs.shift,
        num_heads=inputs.num_heads,
        user_index=inputs.user_index,
        backend=backend,
    )


def _lookup(device: str, dtype: str, seed: int) -> tuple[Leaves, Callable[..., Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    batch, fields = (2, 3) if device == "cpu" else (37, 9)
    pairs = fields * (fields - 1) // 2
    # The same ids whatever the seed, some of them often: replayed graphs see other numbers only.
    once = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 3, (batch, fields), generator=once).to(device)

    def leaf(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator).to(device, getattr(torch, dtype))
        return drawn.requires_grad_()

    leaves = {
        "codebook": leaf(1, 50, 12),
        "pair_weights": leaf(batch, pairs),
        "codeword_weights": leaf(batch, pairs, 24),
    }

    def call(given: Leaves, backend: str) -> Tensor:
        return ops.multi_hash_lookup(ids, num_hashes=2, backend=backend, **given)

    return leaves, call


OPS = (
    Op("conditional_layer_norm", _layer_norm),
    Op("conditional_interest", _interest),
    Op("multi_hash_lookup", _lookup),
)


def run_once(op: Op, device: str, backend: str, dtype: str) -> None:
    leaves, call = op.make(device, dtype, 0)
    out = call(leaves, backend)
    torch.autograd.grad(out.float().square().sum(), list(leaves.values()))
    synchronize(device)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def check(
    device: str, keep: Callable[[dict[str, Any], list[str]], None]
) -> tuple[dict[str, Any], list[str]]:
    """Runs all checks of all ops; a failing one does not stop the others.

    Args:
        keep: takes what is known so far, after every check.
    """
    results: dict[str, Any] = {}
    failures: list[str] = []
    for op in OPS:
        backends = op.backends(device)
        if not backends:
            results[op.name] = "no GPU backend"
        for backend in backends:
            for name, function in (
                ("captured", captured),
                ("compiled", compiled),
                ("exported", exported),
            ):
                key = f"{op.name}/{backend}/{name}"
                try:
                    results[key] = function(op, device, backend)
                except Exception as error:
                    traceback.print_exc()
                    results[key] = f"failed: {error}"
                    failures.append(f"{key}: {str(error).partition(chr(10))[0][:200]}")
                print(f"{key}: {results[key]}", flush=True)
                keep(results, failures)
    if all(value == "no GPU backend" for value in results.values()):
        failures.append("no op has a GPU backend")
    return results, failures


def captured(op: Op, device: str, backend: str) -> str:
    """Forward and backward in one CUDA graph, replayed on other numbers."""
    if device != "cuda":
        return "not run: there are no CUDA graphs on a CPU"
    for dtype in ("float32", "bfloat16"):
        leaves, call = op.make(device, dtype, 0)
        others, _ = op.make(device, dtype, 1)

        def step(leaves: Leaves = leaves, call: Any = call) -> list[Tensor]:
            out = call(leaves, backend)
            upstream = torch.ones_like(out)
            return [out, *torch.autograd.grad(out, list(leaves.values()), upstream)]

        graph, results = capture(step)
        expected = [t.clone() for t in _at(leaves, others, step)]
        graph.replay()
        torch.cuda.synchronize()
        for found, right in zip(results, expected, strict=True):
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
    return "passed"


def capture(step: Callable[[], Any]) -> tuple[Any, Any]:
    """A CUDA graph of ``step``, and the tensors it writes."""
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    current.wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = step()
    finally:
        # Where a capture fails, torch leaves the stream current that it captured.
        torch.cuda.set_stream(current)
    return graph, results


def _at(leaves: Leaves, others: Leaves, step: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The eager result after the leaves took the values of ``others``."""
    with torch.no_grad():
        for name, tensor in leaves.items():
            tensor.copy_(others[name])
    return step()


def compiled(op: Op, device: str, backend: str) -> str:
    """torch.compile(fullgraph=True) against eager, with gradients."""
    leaves, call = op.make(device, "float32", 0)
    compiler = "inductor" if device == "cuda" else "aot_eager"
    function = torch.compile(
        lambda given: call(given, backend) * 2.0, fullgraph=True, backend=compiler
    )
    out, expected = function(leaves), call(leaves, backend) * 2.0
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    tensors = list(leaves.values())
    upstream = torch.ones_like(out)
    for found, right in zip(
        torch.autograd.grad(out, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream),
        strict=True,
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    return "passed"


class _Module(torch.nn.Module):
    def __init__(self, call: Callable[[Leaves, str], Tensor], backend: str) -> None:
        super().__init__()
        self.call, self.backend = call, backend

    def forward(self, leaves: Leaves) -> Tensor:
        return self.call(leaves, self.backend)


def exported(op: Op, device: str, backend: str) -> str:
    """torch.export against eager."""
    leaves, call = op.make(device, "float32", 0)
    detached = {name: tensor.detach() for name, tensor in leaves.items()}
    program = torch.export.export(_Module(call, backend), (detached,))
    torch.testing.assert_close(program.module()(detached), call(detached, backend))
    return "passed"
