"""`mtlfast tune`: finds launch options of the Triton kernels on this GPU."""

from __future__ import annotations

import argparse
from typing import Any

NAME = "tune"
USAGE = "[--d D] [--d-f D_F] [--heads H] [--dtype DTYPE] [...]"
PASSES_ON = False
HELP = "find faster launch options of the Triton kernels for your sizes on this GPU"
DESCRIPTION = """\
The Triton kernels of conditional_interest start with options from a table, chosen so that
nothing spills. This measures others on the GPU at hand, for one width, number of heads and
dtype, and keeps what is faster in $MTLFAST_CACHE/tuned.json (by default in mtlfast in your
cache folder), where every later process finds it. Lengths of the sequences do not matter for
finding it again. Delete the file, or set MTLFAST_TUNED=off, to return to the table.
"""
EXAMPLES = """\
examples:
  mtlfast tune --d 32 --heads 2 --dtype bfloat16
  mtlfast tune --d 64 --d-f 256 --heads 4 --tasks 3 --behaviors 2 --mean-length 40
"""
_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add = parser.add_argument
    add("--d", type=int, default=32, metavar="D", help="embedding width (default: 32)")
    add("--d-f", type=int, metavar="D_F", help="hidden width of the FFNs (default: 4 d)")
    add("--heads", type=int, default=2, metavar="H", help="attention heads (default: 2)")
    add("--dtype", choices=_DTYPES, default="bfloat16", help="default: bfloat16")
    add("--tasks", type=int, default=4, metavar="T", help="default: 4")
    add("--behaviors", type=int, default=5, metavar="M", help="default: 5")
    add("--users", type=int, default=2048, metavar="U", help="in a batch (default: 2048)")
    add("--mean-length", type=float, default=10.0, metavar="N", help="of a history (default: 10)")
    add("--rounds", type=int, default=4, metavar="N", help="at most so many (default: 4)")


def run(options: argparse.Namespace) -> int:
    """Tune on the current GPU."""
    import torch

    from mtlfast.kernels.conditional_interest.layout import obstacle

    d_f = options.d_f or 4 * options.d
    for name in ("d", "heads", "tasks", "behaviors", "users", "rounds"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, found {getattr(options, name)}")
    if options.d % options.heads:
        raise ValueError(f"--heads: expected a divisor of d = {options.d}, found {options.heads}")
    if not torch.cuda.is_available():
        raise ValueError(
            "tune: expected a GPU, found none; without one there is nothing to measure"
        )
    reason = obstacle(options.d, d_f, options.heads)
    if reason:
        raise ValueError(f"tune: the Triton kernels do not cover these sizes: {reason}")
    from mtlfast.kernels.conditional_interest.tune import tune

    tune(*_problem(options, d_f), max_rounds=options.rounds)
    return 0


def _problem(options: argparse.Namespace, d_f: int) -> tuple[Any, ...]:
    """A batch of such sizes: lengths are geometric, numbers normal."""
    import torch

    generator = torch.Generator("cuda").manual_seed(0)
    dtype = getattr(torch, options.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    sequences = options.behaviors * options.users
    uniform = torch.rand(sequences, generator=generator, device="cuda").clamp_min(1e-6)
    # P(length >= k) = q^k has the mean q / (1 - q).
    q = options.mean_length / (1 + options.mean_length)
    lengths = (uniform.log() / torch.tensor(q).log()).long()
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    d = options.d
    layer = [(d, d)] * 4 + [(d_f, d), (d_f,), (d, d_f), (d,)]
    weights = [normal(*shape) / d**0.5 for shape in layer + layer]
    table = (options.tasks, options.behaviors, 4, d)
    parameters = [*weights, 1 + 0.1 * normal(*table), 0.1 * normal(*table)]
    values = normal(int(lengths.sum()), d).to(dtype)
    target = normal(options.users, d).to(dtype)
    return values, offsets, options.behaviors, target, None, parameters, options.heads
