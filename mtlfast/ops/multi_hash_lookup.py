"""``multi_hash_indices`` and ``multi_hash_lookup``: the public functions, and their C++ ops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _extension
from .. import reference as _reference
from ..dtypes import cast
from ..errors import bad
from ..reference.multi_hash_lookup import (
    check_hash_functions,
    check_hashing,
    check_ids,
    check_lookup,
    check_num_codewords,
    field_crosses,
    output_dtype,
    sparse_rows,
    weighted_sum,
)
from . import _backend, _native, _triton


def multi_hash_indices(
    ids: Tensor,
    num_codewords: int,
    *,
    num_hashes: int,
    order: int = 2,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    first_hash: int = 0,
) -> Tensor:
    """Which codewords every crossed pair of fields uses.

    Source: MemoNet (CIKM 2023), multi-hash addressing;
    :func:`mtlfast.reference.multi_hash_indices` is the definition. Integers only: every backend
    and ``mtlfast._C.multi_hash_indices`` (on NumPy arrays) give the same indices.

    Args:
        ids: int64 ``[B, F]``, not negative, any strides. Id 0 is hashed like any other.
        num_codewords: ``n``, rows of a codebook, in ``[1, 2**32)``.
        num_hashes: hash functions ``m``; at most 11 with siphash.
        order: fields per cross, 2 or 3.
        key_fields: keep only pairs with at least one of these fields; None keeps all. Order 2 only.
        hash: ``"mix64"``, or ``"siphash"`` as in MemoNet's published code (CPU only).
        first_hash: number of the first hash function, for codebooks that should not collide alike.

    Returns:
        int64 ``[B, P, num_hashes]`` in ``[0, num_codewords)``; the ``P`` crosses are in
        lexicographic order of their fields, :func:`field_crosses`.

    Raises:
        ValueError: wrong shapes, dtypes or options, or a negative id (RuntimeError with the same
            text from inside a compiled graph).
    """
    check_hashing(ids, num_hashes, order, key_fields, hash, first_hash)
    check_num_codewords("num_codewords", num_codewords)
    chosen, _ = _choose_indices(ids, hash)
    traced = torch.compiler.is_compiling()
    hashing = _hashing(num_hashes, order, key_fields, hash, first_hash)
    if chosen in ("triton", "cuda"):
        _check_on_demand(ids)
    if chosen == "triton":
        return _triton_indices(ids, num_codewords, *hashing)
    # Graphs cannot look at the ids; the op can.
    if chosen in ("cpu", "cuda") or (traced and ids.device.type == "cpu" and _HAS_CPU_OP):
        return _native_indices(ids, num_codewords, *hashing)
    return _reference.multi_hash_indices(
        ids,
        num_codewords,
        num_hashes=num_hashes,
        order=order,
        key_fields=key_fields,
        hash=hash,
        first_hash=first_hash,
    )


def check_codebook(num_codewords: int, num_hashes: int, hash: str, first_hash: int) -> None:
    """Raises ValueError for the options of a codebook that no lookup would take."""
    check_num_codewords("num_codewords", num_codewords)
    check_hash_functions(num_hashes, hash, first_hash)


class FusedStep(NamedTuple):
    """One step of an optimizer on the rows of a codebook that a batch uses; float32 states.

    The elements are the arguments of the C++ op, see csrc/schemas.cpp.
    """

    first: Tensor
    second: Tensor
    adam: bool
    per_row: bool
    lr: float
    eps: float
    beta1: float
    beta2: float
    step: int


def multi_hash_lookup(
    ids: Tensor,
    codebook: Tensor,
    *,
    num_hashes: int,
    order: int = 2,
    pair_weights: Tensor | None = None,
    codeword_weights: Tensor | None = None,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    pool: bool = True,
    first_hash: int = 0,
    sparse_grad: bool = False,
    fused_step: Callable[[], FusedStep] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Codewords of every crossed pair of fields, weighted, and summed for every field.

    Source: MemoNet (CIKM 2023), memory restoring and feature shrinking without their projection,
    which is linear and may follow on the shrunk result;
    :func:`mtlfast.reference.multi_hash_lookup` is the definition. With ``c_p [m*c]`` the
    concatenated codewords of pair ``p``::

        v_p = pair_weights[p] * codeword_weights[p] * c_p
        out[f] = sum of v_p over the pairs p that contain field f      (pool=True)
        out[p] = v_p                                                   (pool=False)

    Nothing of size ``[B, P, m, c]`` is made, forward or backward, but what is asked for. Fused
    backends accumulate in float32 and have first-order gradients for every floating input. The
    codebook's gradient is summed over entries sorted by row: results and gradients have the same
    bits in every run, on CPU for any number of threads. float64 runs on the reference. On a GPU ids
    are not looked at (MTLFAST_CHECK=1 does), nothing is read back but the number of rows of a
    sparse gradient, and codewords may have up to 1024 columns.

    Args:
        ids: int64 ``[B, F]``, not negative, any strides.
        codebook: ``[K, n, c]``; ``K`` is 1 (all hash functions share it) or ``num_hashes``.
        num_hashes, order, key_fields, hash, first_hash: as in :func:`multi_hash_indices`.
        pair_weights: ``[B, P]``, or ``[B, P, order]`` where each member field of a pair has a
            weight of its own (pool=True only); None weighs all by 1.
        codeword_weights: ``[B, P, num_hashes * c]``; None weighs all by 1.
        pool: sum over the pairs of every field.
        sparse_grad: the codebook's gradient is a coalesced COO tensor over (book, row), for
            optimizers that update only the rows in use. Not inside compiled graphs.
        fused_step: called in the backward; what it returns is applied to the codebook in place of a
            gradient (backend "cpu" only; see :class:`mtlfast.nn.FusedAdagrad`).
        backend: "auto", "cpu" (C++), "triton", "cuda" (C++; gradients by Triton) or "reference";
            see :func:`mtlfast.explain`.

    Returns:
        ``[B, F, num_hashes * c]``, or ``[B, P, num_hashes * c]`` with ``pool=False``, in the
        promoted dtype of all floating inputs; under autocast, in the autocast dtype.

    Raises:
        ValueError: wrong shapes, dtypes, devices or options; a backend that cannot run here; a
            negative id (RuntimeError with the same text from inside a compiled graph).
        RuntimeError: a gradient of a gradient is taken on a fused backend.
    """
    crosses = check_lookup(
        ids,
        codebook,
        num_hashes,
        order,
        pair_weights,
        codeword_weights,
        key_fields,
        hash,
        pool,
        first_hash,
    )
    tensors = [t for t in (codebook, pair_weights, codeword_weights) if t is not None]
    dtype = output_dtype(codebook, pair_weights, codeword_weights)
    chosen, reason = _choose(backend, ids, hash, tensors)
    traced = torch.compiler.is_compiling()
    differentiated = torch.is_grad_enabled() and codebook.requires_grad
    if traced and differentiated and (sparse_grad or fused_step is not None):
        name = "sparse_grad" if sparse_grad else "fused_step"
        raise bad(name, "none inside a compiled graph", "one")
    if fused_step is not None and differentiated and chosen != "cpu":
        raise bad("fused_step", "None unless backend 'cpu' runs", f"backend {chosen!r}: {reason}")
    hashing = _hashing(num_hashes, order, key_fields, hash, first_hash)

    if chosen == "reference" and traced and ids.device.type == "cpu" and _HAS_CPU_OP:
        # Graphs cannot look at the ids; the op can.
        indices = _native_indices(ids, codebook.shape[1], *hashing)
        with torch.autocast("cpu", enabled=False):
            out = weighted_sum(
                indices,
                codebook,
                crosses,
                pair_weights,
                codeword_weights,
                num_fields=int(ids.shape[1]),
                pool=pool,
            )
        return cast(out, dtype)
    if chosen == "reference":
        return _reference.multi_hash_lookup(
            ids,
            codebook,
            num_hashes=num_hashes,
            order=order,
            pair_weights=pair_weights,
            codeword_weights=codeword_weights,
            key_fields=key_fields,
            hash=hash,
            pool=pool,
            first_hash=first_hash,
            sparse_grad=sparse_grad,
        )
    inputs = (ids, codebook, pair_weights, codeword_weights, *hashing, pool)
    if chosen in ("triton", "cuda"):
        _check_on_demand(ids)
    if chosen == "triton":
        run = _triton_sparse if sparse_grad and differentiated else _triton_dense
        return cast(run(*inputs), dtype)
    if fused_step is not None and differentiated:
        out = _step(fused_step, *inputs)
    else:
        run = _cpp_sparse if sparse_grad and differentiated else _cpp_dense
        out = run(*inputs)
    return cast(out, dtype)


@_backend.explains("multi_hash_lookup")
def _explain(
    ids: Tensor,
    codebook: Tensor,
    *,
    num_hashes: int,
    order: int = 2,
    pair_weights: Tensor | None = None,
    codeword_weights: Tensor | None = None,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    pool: bool = True,
    first_hash: int = 0,
    sparse_grad: bool = False,
    fused_step: Callable[[], FusedStep] | None = None,
    backend: str = "auto",
) -> _backend.Explanation:
    check_lookup(
        ids,
        codebook,
        num_hashes,
        order,
        pair_weights,
        codeword_weights,
        key_fields,
        hash,
        pool,
        first_hash,
    )
    tensors = [t for t in (codebook, pair_weights, codeword_weights) if t is not None]
    return _backend.Explanation("multi_hash_lookup", *_choose(backend, ids, hash, tensors))


@_backend.explains("multi_hash_indices")
def _explain_indices(
    ids: Tensor,
    num_codewords: int,
    *,
    num_hashes: int,
    order: int = 2,
    key_fields: Sequence[int] | None = None,
    hash: str = "mix64",
    first_hash: int = 0,
) -> _backend.Explanation:
    check_hashing(ids, num_hashes, order, key_fields, hash, first_hash)
    check_num_codewords("num_codewords", num_codewords)
    return _backend.Explanation("multi_hash_indices", *_choose_indices(ids, hash))


def _choose_indices(ids: Tensor, hash: str) -> tuple[str, str]:
    def obstacle(name: str) -> str:
        return _hash_obstacle(name, ids, hash)

    return _backend.choose("multi_hash_indices", "auto", ids.device.type, obstacle)


def _choose(backend: str, ids: Tensor, hash: str, tensors: Sequence[Tensor]) -> tuple[str, str]:
    def obstacle(name: str) -> str:
        missing = _hash_obstacle(name, ids, hash)
        if missing:
            return missing
        if any(tensor.dtype == torch.float64 for tensor in tensors):
            return "float64 is computed by the reference only"
        width = tensors[0].shape[2]
        if name in GPU_MAX_WIDTH and width > GPU_MAX_WIDTH[name]:
            return f"codewords of {width} columns are wider than {GPU_MAX_WIDTH[name]}"
        if name == "cuda" and torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            missing = _backend.missing_obstacle("triton", ids.device.type, ("triton",))
            return f"its gradients are computed by triton: {missing}" if missing else ""
        return ""

    return _backend.choose("multi_hash_lookup", backend, ids.device.type, obstacle)


def _hash_obstacle(name: str, ids: Tensor, hash: str) -> str:
    missing = _backend.missing_obstacle(name, ids.device.type, ("cpu", "triton", "cuda"))
    if missing:
        return missing
    if name not in _BACKENDS:
        return f"this build has no {name.upper()} op of that name"
    if name != "cpu" and hash != "mix64":
        return f"hash {hash!r} runs on CPUs only"
    if name != "cpu" and ids.shape[1] > _GPU_MAX_FIELDS:
        return f"{ids.shape[1]} fields are more than {_GPU_MAX_FIELDS}"
    return ""


def _check_on_demand(ids: Tensor) -> None:
    """On a GPU a look at the ids is a host sync; any id names a row that exists."""
    traced = torch.compiler.is_compiling()
    if not traced and (ids.device.type == "cpu" or _backend.checks_enabled()):
        check_ids(ids)


def _hashing(
    num_hashes: int, order: int, key_fields: Sequence[int] | None, hash: str, first_hash: int
) -> tuple[int, int, list[int] | None, bool, int]:
    """The hash arguments of the C++ ops."""
    keys = None if key_fields is None else list(key_fields)
    return num_hashes, order, keys, hash == "siphash", first_hash


# ---- the ops: C++ (schemas in csrc/schemas.cpp) and Triton ----

# A codeword is held in the registers of one block.
GPU_MAX_WIDTH = {"triton": 1024, "cuda": 1024}
_GPU_MAX_FIELDS = 1024  # the numbers of their crosses fit into 32 bits

# Those that have the op: "triton", and "cpu" and "cuda" as far as their libraries are loaded.
_LOADED = {"cpu": _extension.cpu_ops_available(), "cuda": _extension.cuda_ops_available()}
_BACKENDS = ["triton"] + [
    name
    for name, loaded in _LOADED.items()
    if loaded
    and torch._C._dispatch_has_kernel_for_dispatch_key(
        "mtlfast::multi_hash_lookup_forward", name.upper()
    )
]
_HAS_CPU_OP = "cpu" in _BACKENDS
_NUM_INPUTS = 10  # of the forward op; 1, 2 and 3 are codebook, pair_weights and codeword_weights


def _native_indices(*inputs: Any) -> Tensor:
    op = torch.ops.mtlfast.multi_hash_indices.default
    return op(*inputs) if torch.compiler.is_compiling() else _native.with_value_errors(op, *inputs)


def _num_crosses(ids: Tensor, order: int, key_fields: Sequence[int] | None) -> int:
    return len(field_crosses(ids.shape[1], order, key_fields))


def _fake_indices(
    ids: Tensor,
    num_codewords: int,
    num_hashes: int,
    order: int,
    key_fields: list[int] | None,
    *_: Any,
) -> Tensor:
    return ids.new_empty((ids.shape[0], _num_crosses(ids, order, key_fields), num_hashes))


def _fake_forward(
    ids: Tensor,
    codebook: Tensor,
    pair_weights: Tensor | None,
    codeword_weights: Tensor | None,
    num_hashes: int,
    order: int,
    key_fields: list[int] | None,
    siphash: bool,
    first_hash: int,
    pool: bool,
) -> Tensor:
    rows = ids.shape[1] if pool else _num_crosses(ids, order, key_fields)
    shape = (ids.shape[0], rows, num_hashes * codebook.shape[2])
    return codebook.new_empty(shape, dtype=torch.float32)


def _fake_backward(grad_out: Tensor, ids: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    found = [
        grad_out.new_empty((0,)) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in rest[:3]
    ]
    for i, need in enumerate(rest[-3:]):
        if not need:
            found[i] = (rest[0] if i == 0 else grad_out).new_empty((0,), dtype=found[i].dtype)
    codebook, pair_weights, codeword_weights = found
    return codebook, pair_weights, codeword_weights


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:4])
    ctx.options = inputs[4:]


def _gradients(codebook: Any, pair_weights: Any, codeword_weights: Any) -> tuple[Any, ...]:
    """One gradient per input of the forward op."""
    return (None, codebook, pair_weights, codeword_weights) + (None,) * (_NUM_INPUTS - 4)


def _backward(op: Callable[..., Any], ctx: Any, grad_out: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return (None,) * _NUM_INPUTS
    needed = ctx.needs_input_grad[1:4]
    grads = op(grad_out, *ctx.saved_tensors, *ctx.options, *needed)
    return _gradients(*(g if need else None for g, need in zip(grads, needed, strict=True)))


def _backward_sparse(op: Callable[..., Any], ctx: Any, grad_out: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return (None,) * _NUM_INPUTS
    codebook = ctx.saved_tensors[1]
    needed = ctx.needs_input_grad[2:4]
    where, values, *grads = op(grad_out, *ctx.saved_tensors, *ctx.options, *needed)
    grads = [g if need else None for g, need in zip(grads, needed, strict=True)]
    return _gradients(sparse_rows(where, values, codebook.shape), *grads)


# The forward op, with a backward that updates the codebook and returns no gradient for it.


def _forward_step(fused_step: Callable[[], FusedStep], *inputs: Any) -> Tensor:
    return torch.ops.mtlfast.multi_hash_lookup_forward.default(*inputs)


def _setup_step(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.fused_step, ids, codebook, pair_weights, codeword_weights, *ctx.options = inputs
    ctx.set_materialize_grads(False)
    # The codebook is not saved as autograd's: another order's step may have changed it before, in
    # rows that this lookup does not read.
    ctx.save_for_backward(ids, pair_weights, codeword_weights)
    ctx.codebook = codebook.detach()


def _backward_step(ctx: Any, grad_out: Tensor | None) -> tuple[Any, ...]:
    if grad_out is None:
        return (None,) * (1 + _NUM_INPUTS)
    ids, pair_weights, codeword_weights = ctx.saved_tensors
    op = torch.ops.mtlfast.multi_hash_lookup_backward_step.default
    needed = ctx.needs_input_grad[3:5]
    weights = (ctx.codebook, pair_weights, codeword_weights)
    grads = op(grad_out, ids, *weights, *ctx.options, *needed, *ctx.fused_step())
    torch.autograd.graph.increment_version(ctx.codebook)
    grads = [g if need else None for g, need in zip(grads, needed, strict=True)]
    return (None, *_gradients(None, *grads))


def _register_indices(op: str) -> None:
    torch.library.register_fake(f"mtlfast::{op}", _fake_indices)
    torch.library.register_vmap(f"mtlfast::{op}", _native.no_vmap(op))


def _dense_and_sparse(op: str) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """Two functions of the forward op's arguments; they differ in the codebook's gradient."""
    dense = _native.differentiable(
        op,
        fake_forward=_fake_forward,
        fake_backward=_fake_backward,
        setup_context=_setup_context,
        backward=_backward,
    )
    sparse = _native.eager_only(
        op,
        getattr(torch.ops.mtlfast, f"{op}_forward").default,
        setup_context=_setup_context,
        backward=partial(
            _backward_sparse, getattr(torch.ops.mtlfast, f"{op}_backward_sparse").default
        ),
    )
    return dense, sparse


_HASHING = "int num_hashes, int order, int[]? key_fields, bool siphash, int first_hash"
_LOOKUP = f"Tensor? pair_weights, Tensor? codeword_weights, {_HASHING}, bool pool"
_triton.define(
    "multi_hash_lookup",
    f"(Tensor ids, Tensor codebook, {_LOOKUP}) -> Tensor",
    f"(Tensor grad_out, Tensor ids, Tensor codebook, {_LOOKUP}, bool need_codebook, "
    "bool need_pair_weights, bool need_codeword_weights) -> (Tensor, Tensor, Tensor)",
)
_triton.define_one(
    "multi_hash_lookup_triton_backward_sparse",
    f"(Tensor grad_out, Tensor ids, Tensor codebook, {_LOOKUP}, bool need_pair_weights, "
    "bool need_codeword_weights) -> (Tensor, Tensor, Tensor, Tensor)",
    "multi_hash_lookup",
    "backward_sparse",
)
_triton.define_one(
    "multi_hash_indices_triton",
    f"(Tensor ids, SymInt num_codewords, {_HASHING}) -> Tensor",
    "multi_hash_lookup",
    "indices",
)
_register_indices("multi_hash_indices_triton")
_triton_indices = torch.ops.mtlfast.multi_hash_indices_triton.default
_triton_dense, _triton_sparse = _dense_and_sparse("multi_hash_lookup_triton")

if _HAS_CPU_OP:
    _register_indices("multi_hash_indices")
    _cpp_dense, _cpp_sparse = _dense_and_sparse("multi_hash_lookup")
    _step = _native.eager_only(
        "multi_hash_lookup",
        _forward_step,
        setup_context=_setup_step,
        backward=_backward_step,
    )
if "cuda" in _BACKENDS:
    for _way in ("backward", "backward_sparse"):
        _triton.serve(f"multi_hash_lookup_{_way}", "multi_hash_lookup", _way)
