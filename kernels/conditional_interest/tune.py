"""Finds launch options for one problem by measuring, from the table's on. Opt-in."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from .. import tuned
from .config import Config, Launch
from .launch_backward import backward
from .launch_forward import forward
from .problem import Problem, capability_of, device_name, launch_kernel, tuning_key

# The options' names in Config by the kernel that uses them.
_LAUNCH_OF = {
    "project_tokens": "project",
    "self_attention": "attention",
    "absorb_queries": "queries",
    "encode_and_pool": "encoder",
    "decoder_tail": "tail",
    "decoder_output_backward": "tail_output_backward",
    "decoder_input_backward": "tail_input_backward",
    "decoder_values_backward": "tail_values_backward",
    "feed_forward_weights_backward": "weights_backward",
    "encode_tokens": "encoder_ahead",
    "encoder_output_backward": "encoder_output_backward",
    "encoder_input_backward": "encoder_input_backward",
    "project_tokens_backward": "project_backward",
    "attention_backward_queries": "attention_queries_backward",
    "attention_backward_keys": "attention_keys_backward",
    "tokens_backward": "tokens_backward",
    "queries_backward": "queries_backward",
}
_ALLOWED = {
    "rows": (16, 32, 64, 128),
    "other": (16, 32, 64, 128),
    "hidden": (16, 32, 64),
    "warps": (2, 4, 8),
    "stages": (1, 2, 3),
}
_WORTH = 0.98  # of the time so far: what is less better is noise
_AHEAD = 4_000_000  # cycles, some milliseconds: what the host needs for a few launches, and more

Measure = Callable[[Callable[[], None], dict[str, Any]], float]


def milliseconds(launch: Callable[[], None], constants: dict[str, Any]) -> float:
    """Median of repeated launches, by the GPU's own clock."""
    launch()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(7)]
    # Kernels are shorter than their launches. While the GPU is kept busy the host gets ahead of it;
    # else the time from one event to the next would be that of the host.
    torch.cuda._sleep(_AHEAD)
    for begin, end in events:
        begin.record()
        launch()
        end.record()
    torch.cuda.synchronize()
    return statistics.median(begin.elapsed_time(end) for begin, end in events)


def tune(
    values: Tensor,
    offsets: Tensor,
    num_behaviors: int,
    target: Tensor,
    user_index: Tensor | None,
    parameters: Sequence[Tensor],
    num_heads: int,
    eps: float = 1e-5,
    *,
    measure: Measure = milliseconds,
    report: Callable[[str], None] = print,
    max_rounds: int = 4,
    options: Sequence[str] = tuple(_ALLOWED),
) -> dict[str, Launch]:
    """The options that differ from the table's, which are also written to :func:`tuned.path`.

    Every round tries, one after the other, each option of all kernels a step up and a step down;
    kernels are judged one by one, so that all of them move together.

    Raises:
        RuntimeError: the options found give another result than the table's.
    """
    inputs = (values, offsets, num_behaviors, target, user_index, list(parameters), num_heads, eps)
    problem = Problem(*inputs[:7], launch_kernel, capability_of(values), {})
    best, first = problem.config, problem.config
    seen: dict[tuple[str, Launch], float] = {}

    def times(trial: Config) -> dict[str, float]:
        found: dict[str, float] = {}

        def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
            def launch() -> None:
                launch_kernel(kernel, grid, *arguments, **constants)

            name = _LAUNCH_OF.get(kernel.fn.__name__)
            if name is None:
                return launch()
            known = seen.get((name, getattr(trial, name)))
            try:
                launch()
                # Some kernels run several times in one pass.
                cost = measure(launch, constants) if known is None else known
            except (RuntimeError, ValueError, triton.TritonError) as error:
                report(f"  {name} {tuple(getattr(trial, name))}: {str(error).splitlines()[0]}")
                cost = math.inf
            found[name] = found.get(name, 0.0) + cost if known is None else known

        _run_both(inputs, trial, run)
        seen.update({(name, getattr(trial, name)): cost for name, cost in found.items()})
        return found

    costs = times(best)
    report(f"the table's options: {sum(costs.values()):.3f} ms in all kernels")
    for _ in range(max_rounds):
        before = best
        for option in options:
            for step in (1, -1):
                moved = {name: _moved(getattr(best, name), option, step) for name in costs}
                moved = {name: launch for name, launch in moved.items() if launch is not None}
                if not moved:
                    continue
                found = times(best._replace(**moved))
                better = {n: found[n] for n in moved if found[n] < _WORTH * costs[n]}
                costs |= better
                best = best._replace(**{name: moved[name] for name in better})
                report(f"{option} {step:+d}: {sum(costs.values()):.3f} ms")
        if best == before:
            break
    _check(inputs, first, best)
    different = {
        name: launch for name, launch in best._asdict().items() if launch != getattr(first, name)
    }
    lists = {name: list(launch) for name, launch in different.items()}
    file = tuned.write(device_name(values), tuning_key(problem.layout, values), lists)
    report(f"{len(different)} of {len(costs)} kernels with other options: {file}")
    return different


def _moved(launch: Launch, option: str, step: int) -> Launch | None:
    allowed, value = _ALLOWED[option], getattr(launch, option)
    if value not in allowed or not 0 <= allowed.index(value) + step < len(allowed):
        return None
    return launch._replace(**{option: allowed[allowed.index(value) + step]})


def _run_both(inputs: Sequence[Any], launches: Config, run: Any) -> tuple[Tensor, ...]:
    hooks = {"run": run, "launches": launches._asdict()}
    out, *saved = forward(*inputs, **hooks)
    return out, *backward(out, *inputs, saved, **hooks)


def _check(inputs: Sequence[Any], first: Config, best: Config) -> None:
    expected = _run_both(inputs, first, launch_kernel)
    found = _run_both(inputs, best, launch_kernel)
    allowed = 1e-4 if inputs[0].dtype == torch.float32 else 3e-2
    for a, b in zip(expected, found, strict=True):
        if a.numel() == 0:
            continue
        error = (a.float() - b.float()).abs().max() / a.float().abs().max().clamp_min(1e-30)
        if not error <= allowed:
            raise RuntimeError(f"tuning: expected the table's result, found an error of {error:g}")
