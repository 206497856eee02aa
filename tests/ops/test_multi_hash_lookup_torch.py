"""The multi-hash ops inside torch: opcheck, compiled and exported graphs, autocast, transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tolerance
import torch
from multi_hash_cases import Case, make, plain
from torch import Tensor

from mtlfast import ops, reference
from mtlfast.nn import MultiHashCodebook

OPTIONS: list[dict[str, Any]] = [
    {},
    {"pair_weights": "member", "order": 3, "private": True},
    {"pair_weights": "shared", "codeword_weights": True, "key_fields": [1], "hash": "siphash"},
    {"pair_weights": "shared", "pool": False, "dtype": torch.bfloat16},
    {"batch": 0, "pair_weights": "shared"},
]


def fused(*args: Any, **options: Any) -> Tensor:
    return ops.multi_hash_lookup(*args, backend="cpu", **options)


def arguments(case: Case) -> tuple[Any, ...]:
    o, t = case.options, case.tensors
    return (
        case.ids,
        t["codebook"],
        t.get("pair_weights"),
        t.get("codeword_weights"),
        o["num_hashes"],
        o["order"],
        o["key_fields"],
        o["hash"] == "siphash",
        o["first_hash"],
        o["pool"],
    )


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("permuted", [False, True])
def test_opcheck(options: dict[str, Any], permuted: bool) -> None:
    case = make(**options)
    if permuted:
        for name, tensor in case.tensors.items():
            leaf = tensor.detach().movedim(-1, 0).contiguous().movedim(0, -1)
            case.tensors[name] = leaf.requires_grad_()
    inputs = arguments(case)
    torch.library.opcheck(torch.ops.mtlfast.multi_hash_lookup_forward, inputs)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in inputs]
    out = torch.ops.mtlfast.multi_hash_lookup_forward(*detached)
    backward = torch.ops.mtlfast.multi_hash_lookup_backward
    for grad in (torch.randn_like(out), torch.ones(()).expand(out.shape)):
        for needed in ((True, True, True), (False, True, False)):
            torch.library.opcheck(backward, (grad, *detached, *needed))
    ids, _, _, _, *hashing, _ = inputs
    torch.library.opcheck(torch.ops.mtlfast.multi_hash_indices, (ids, 40, *hashing))


def test_the_op_itself_refuses_what_does_not_fit() -> None:
    """Callers from C++ and exported graphs do not pass the Python checks."""
    case = make(pair_weights="shared", codeword_weights=True)
    good = arguments(case)
    good = tuple(t.detach() if isinstance(t, Tensor) else t for t in good)
    op = torch.ops.mtlfast.multi_hash_lookup_forward
    op(*good)
    ids, codebook, pair_weights, codeword_weights = good[:4]
    for position, bad in (
        (0, ids.int()),
        (0, ids[0]),
        (0, ids[:, :1]),
        (0, -ids - 1),
        (1, codebook[0]),
        (1, codebook.expand(3, -1, -1)),
        (1, codebook[:, :0]),
        (1, codebook.double()),
        (2, pair_weights[:, 1:]),
        (2, pair_weights.double()),
        (3, codeword_weights[..., 1:]),
        (4, 0),
        (5, 4),
        (6, [5]),
        (6, [-1]),
        (8, -1),
    ):
        changed = [bad if i == position else argument for i, argument in enumerate(good)]
        with pytest.raises(RuntimeError, match="mtlfast: "):
            op(*changed)
    backward = torch.ops.mtlfast.multi_hash_lookup_backward
    out = op(*good)
    for grad in (out[1:], out.double()):
        with pytest.raises(RuntimeError, match="mtlfast: grad_out"):
            backward(grad, *good, True, True, True)
    step = torch.ops.mtlfast.multi_hash_lookup_backward_step
    none, rest = torch.empty(0), (0.1, 0.0, 0.9, 0.9, 1)
    for first, second, adam in ((torch.zeros(1, 39), none, False), (codebook, none, True)):
        with pytest.raises(RuntimeError, match=r"mtlfast: (first|second)"):
            step(out, *good, False, False, first.clone(), second, adam, True, *rest)


# ---- compiled and exported graphs ----


def block(ids: Tensor, codebook: Tensor, **options: Any) -> Tensor:
    """The op between others, as models have it."""
    return fused(ids, codebook * 2.0, **options).mul(0.5)


def both_gradients(one: Any, two: Any, case: Case) -> None:
    """Same output and gradients, bit for bit."""
    out, expected = case.call(one), case.call(two)
    assert torch.equal(out, expected)
    upstream = torch.randn_like(out)
    gradients = case.gradients(expected, upstream)
    for name, gradient in case.gradients(out, upstream).items():
        assert torch.equal(gradient, gradients[name]), name


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.parametrize("options", OPTIONS[1:4:2], ids=str)
def test_compiled_equals_eager(compiler: str, options: dict[str, Any]) -> None:
    compiled = torch.compile(block, backend=compiler, fullgraph=True, dynamic=False)
    both_gradients(compiled, block, make(**options))


def test_compiled_with_dynamic_shapes_is_compiled_once() -> None:
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    counters = torch._dynamo.utils.counters["stats"]
    seen = []
    for batch, codewords in ((6, 40), (7, 50), (11, 60)):
        case = make(batch, num_codewords=codewords, pair_weights="shared")
        torch._dynamo.mark_dynamic(case.ids, 0)
        both_gradients(compiled, block, case)
        seen.append(counters["unique_graphs"])
    assert seen[0] > 0
    assert seen[1:] == seen[:1] * 2


def test_compiled_indices() -> None:
    def function(ids: Tensor) -> Tensor:
        return ops.multi_hash_indices(ids + 1, 1000, num_hashes=2) + 1

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    ids = torch.randint(0, 9, (5, 4))
    assert torch.equal(compiled(ids), function(ids))
    with pytest.raises(RuntimeError, match=r"no negative id, found ids\[0, 0\] = -5"):
        compiled(ids * 0 - 6)


def test_compiled_float64_runs_on_the_reference() -> None:
    def function(ids: Tensor, codebook: Tensor, **options: Any) -> Tensor:
        return ops.multi_hash_lookup(ids, codebook, **options)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    case = make(pair_weights="shared", dtype=torch.float64)
    both_gradients(compiled, reference.multi_hash_lookup, case)
    case.ids = case.ids * 0 - 1
    with pytest.raises(RuntimeError, match="no negative id"):
        case.call(compiled)


def test_compiled_refuses_sparse_gradients() -> None:
    compiled = torch.compile(fused, backend="eager", fullgraph=True)
    case = make()
    with pytest.raises(Exception, match="sparse_grad: expected none inside a compiled graph"):
        case.call(compiled, sparse_grad=True)
    with torch.no_grad():
        assert torch.equal(case.call(compiled, sparse_grad=True), case.call(fused))


def test_export_and_ahead_of_time(tmp_path: Path) -> None:
    """What a C++ server runs, without Python."""
    module = MultiHashCodebook(5, 40, 16, 3, shrinking="softmax", backend="cpu")
    example = torch.randint(0, 9, (6, 5)), torch.randn(6, 5, 3)
    batch = torch.export.Dim("batch", min=2, max=1000)
    shapes = {"ids": {0: batch}, "embeddings": {0: batch}}
    with torch.no_grad():
        program = torch.export.export(module, example, dynamic_shapes=shapes)
        assert "multi_hash_lookup_forward" in str(program.graph)
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "codebook.pt2")
        )
        loaded = torch._inductor.aoti_load_package(package)
        for size in (2, 31):
            inputs = torch.randint(0, 9, (size, 5)), torch.randn(size, 5, 3)
            assert torch.equal(program.module()(*inputs), module(*inputs))
            torch.testing.assert_close(loaded(*inputs), module(*inputs))


# ---- autocast, transforms, orders of differentiation ----


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """Output in the autocast dtype, arithmetic in float32."""
    case = make(40, 6, pair_weights="shared", codeword_weights=True)
    exact = case.to(torch.float64).call(reference.multi_hash_lookup)
    with torch.autocast("cpu", dtype):
        out = case.call(fused)
        same = case.call(reference.multi_hash_lookup)
    assert out.dtype == same.dtype == dtype
    tolerance.check("out", out, same, exact, tolerance.FORWARD)
    tolerance.check("rounded once", out, case.call(plain).to(dtype), exact, tolerance.FORWARD)
    gradients = case.gradients(out, torch.ones_like(out))
    assert all(gradient.dtype == torch.float32 for gradient in gradients.values())


def test_second_order_is_refused() -> None:
    case = make(pair_weights="shared")
    out = case.call(fused)
    (gradient,) = torch.autograd.grad(
        out.square().sum(), case.tensors["pair_weights"], create_graph=True
    )
    with pytest.raises(RuntimeError, match="first-order gradients only"):
        gradient.sum().backward()


def test_functional_gradient_and_vmap() -> None:
    case = make()

    def loss(codebook: Tensor) -> Tensor:
        return fused(case.ids, codebook, num_hashes=2).square().sum()

    codebook = case.tensors["codebook"].detach()
    found = torch.func.grad(loss)(codebook)
    leaf = codebook.clone().requires_grad_()
    assert torch.equal(found, torch.autograd.grad(loss(leaf), leaf)[0])
    with pytest.raises(NotImplementedError, match="multi_hash_lookup: fused backends"):
        torch.vmap(loss)(codebook.expand(2, 1, -1, -1))
    for sparse_grad in (False, True):

        def lookup(codebook: Tensor) -> Tensor:
            return fused(case.ids, codebook, num_hashes=2, sparse_grad=sparse_grad)  # noqa: B023 (called in this turn)

        with pytest.raises(RuntimeError, match=r"multi_hash_lookup: .* forward-mode"):
            torch.func.jvp(lookup, (codebook,), (codebook,))
