"""Times the GPU ops against their baselines on published shapes; every result is checked first."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtlfast import ops, reference

from ..baselines import conditional_interest as baselines
from ..baselines import conditional_layer_norm as layer_norm
from ..cases import Case, Mode, multi_hash_case, serving_case, training_case
from ..check import BASELINE_FACTOR, FUSED_FACTOR, Tensors, errors, judge, reference_result
from ..flops import Work, interest_work, layer_norm_work
from ..inputs import InterestInputs, interest_inputs, rotation, rotation_length
from ..timing import interleave
from . import ceilings
from .graphs import BACKENDS, interest, synchronize
from .multi_hash import MultiHash
from .timing import clock_of
from .variants import Failed, Variant, graphed
from .worker import Lost, Worker

_CACHE_BYTES = 128 << 20  # more than the second-level cache of any of these devices
_MOST_SECONDS = 75.0  # of one case, compilation included
_WHOLE = 1 << 28  # blocks of the ragged baseline: one per length, for launches cost most on a GPU


@dataclass(frozen=True)
class Plan:
    """One case in one mode; ``compiled`` baselines take half a minute to compile."""

    case: Case
    mode: Mode
    compiled: bool = False


def plans(device: str) -> list[Plan]:
    """What is measured, the most telling first: time may run out."""
    if device == "cpu":
        tiny = training_case("tenrec", 16, batch=4, users=4, num_tasks=2)
        norm = training_case("tenrec", 16, batch=4, users=4, stem="conditional_layer_norm")
        lookup = multi_hash_case(3, 1, d=4, batch=4, num_codewords=50)
        return [Plan(norm, "training"), Plan(lookup, "training"), Plan(tiny, "forward")]
    main, bf16 = training_case("ecommerce", 32), training_case("ecommerce", 32, dtype="bfloat16")
    found = [Plan(bf16, "forward", True), Plan(main, "forward", True)]
    found += [Plan(bf16, "training"), Plan(main, "training")]
    for dtype in ("bfloat16", "float32"):
        norm = training_case("ecommerce", 32, stem="conditional_layer_norm", dtype=dtype)
        found += [Plan(norm, "forward", True), Plan(norm, "training")]
    lookup = multi_hash_case(17, 2)
    found += [Plan(lookup, "forward", True), Plan(lookup, "training", True)]
    found += [Plan(multi_hash_case(17, 2, gradient="sparse"), "training")]
    found += [Plan(multi_hash_case(17, 2, num_codewords=1000), "training")]
    found += [Plan(multi_hash_case(20, 4, dtype="bfloat16"), "forward")]
    for dtype in ("bfloat16", "float32"):
        found += [Plan(training_case("tenrec", 32, dtype=dtype), "forward")]
        found += [Plan(serving_case("ecommerce", 32, dtype=dtype), "serving")]
        for d in (16, 64, 128):
            found += [Plan(training_case("ecommerce", d, dtype=dtype), "forward")]
    return found


def run(
    device: str, seconds: float, keep: Callable[[dict[str, Any], list[str]], None]
) -> tuple[dict[str, Any], list[str]]:
    """Rows of all cases that fit into the time; failures are cases with a wrong fused result.

    A case that ends its process, or never ends, costs its own rows and no others.

    Args:
        keep: takes what is known so far, after every case.
    """
    deadline = time.monotonic() + 0.85 * seconds
    worker = Worker(device)
    try:
        return _run_all(worker, device, deadline, keep)
    finally:
        worker.stop()


def _run_all(
    worker: Worker,
    device: str,
    deadline: float,
    keep: Callable[[dict[str, Any], list[str]], None],
) -> tuple[dict[str, Any], list[str]]:
    left = deadline - time.monotonic()
    limits = worker.ask(ceilings.measure, device, seconds=left)
    found: dict[str, Any] = {"ceilings": limits, "rows": [], "not_run": []}
    failures: list[str] = []
    print(f"ceilings: {found['ceilings']}", flush=True)
    for number, plan in enumerate(plans(device)):
        name = f"{plan.case.name} {plan.mode}"
        left = deadline - time.monotonic()
        if left < (25 if plan.compiled else 6) and device == "cuda":
            found["not_run"].append(f"{name}: no time left")
            continue
        share = min(6.0, left / 3) if device == "cuda" else 0.5
        most = min(_MOST_SECONDS, left) if device == "cuda" else 600.0
        try:
            rows = worker.ask(_measure_plan, number, device, share, limits, seconds=most)
        except (Lost, RuntimeError) as error:
            failures.append(f"{name}: {error}")
            print(f"failed: {failures[-1]}", flush=True)
            keep(found, failures)
            continue
        found["rows"] += rows
        fused = [row for row in rows if row["backend"].startswith(BACKENDS)]
        failures += [f"{name} {r['backend']}: {r['status']}" for r in fused if r["status"] != "ok"]
        if not fused:
            found["not_run"].append(f"{name}: no GPU kernel runs it")
        print(table({**found, "rows": rows, "not_run": []}), flush=True)
        keep(found, failures)
    return found, failures


def table(found: dict[str, Any]) -> str:
    """For people: one line per row."""
    lines = [
        f"{'case':<46} {'mode':<9}{'backend':<18}{'ms':>9}{'TFLOP/s':>9}{'of peak':>8}"
        f"{'GB/s':>7}  ratios"
    ]
    for row in found["rows"]:
        head = f"{row['case']:<46} {row['mode']:<9}{row['backend']:<18}"
        if row["status"] != "ok":
            lines.append(f"{head} {row['status']}")
            continue
        ratios = ", ".join(f"{n} {r:.1f}x" for n, r in row["ratios"].items())
        lines.append(
            f"{head}{row['seconds'] * 1e3:>9.3f}{row['tflops']:>9.2f}{row['of_matmul']:>8.1%}"
            f"{row['gbs']:>7.0f}  {ratios}"
        )
    return "\n".join([*lines, *(f"not run: {text}" for text in found.get("not_run", []))])


# ---- one case ----


def work_of(plan: Plan, device: str) -> Any:
    with torch.device(device):
        if plan.case.stem == "multi_hash_lookup":
            return MultiHash(plan.case, plan.mode, device, compiled=plan.compiled)
        norm = plan.case.stem == "conditional_layer_norm"
        return (_LayerNorm if norm else _Interest)(plan, device)


def _measure_plan(
    number: int, device: str, seconds: float, limits: dict[str, Any]
) -> list[dict[str, Any]]:
    torch.set_float32_matmul_precision("highest")
    rows = _measure(plans(device)[number], device, seconds, limits)
    if device == "cuda":
        torch.cuda.empty_cache()
    return rows


def _measure(plan: Plan, device: str, seconds: float, limits: dict[str, Any]) -> list[Any]:
    # Nothing that is timed runs inside torch.device(), which costs every call of torch some
    # microseconds: half as much again as a whole fused forward takes on the host.
    work = work_of(plan, device)
    variants: dict[str, Variant] = {}
    rows = {}
    for name, make in work.variants().items():
        row = {"case": plan.case.name, "mode": plan.mode, "backend": name}
        row |= {"dtype": plan.case.dtype, "status": "ok"}
        try:
            variant = make()
            result = variant(0)
            synchronize(device)
            factor = FUSED_FACTOR[plan.mode] if name.startswith(BACKENDS) else BASELINE_FACTOR
            with torch.device(device):
                verdict = judge(work.named(result), *work.expected(), factor)
            row |= {"error": verdict.error, "max_error": verdict.max_error}
            row["peak_bytes"] = _peak_bytes(variant, device)
        except Failed as reason:
            row["status"] = f"not run: {reason}"
        except Exception as error:
            row["status"] = f"failed: {type(error).__name__}: {str(error)[:160]}"
        else:
            row["status"] = f"wrong: {verdict.failure[:160]}" if verdict.failure else "ok"
        if row["status"] == "ok":
            variants[name] = variant
        if not (name.startswith(BACKENDS) and row["status"].startswith("not run")):
            rows[name] = row
    timed = interleave(variants, sets=work.sets, seconds=seconds, clock=clock_of(device)).timings
    needed = work.work
    for name, timing in timed.items():
        spent = timing.median
        rate = needed.flops / spent / 1e12
        rows[name] |= {
            "seconds": spent,
            "spread": timing.spread,
            "samples": len(timing.samples),
            "tflops": rate,
            "of_matmul": rate / limits["tflops"][plan.case.dtype],
            "gbs": needed.bytes / spent / 1e9,
            "of_copy": needed.bytes / spent / 1e9 / limits["gbs"],
            "padding": needed.padding,
            "ratios": {
                other: theirs.median / spent
                for other, theirs in timed.items()
                if other != name and not other.startswith(BACKENDS)
            },
        }
    return list(rows.values())


def _peak_bytes(variant: Variant, device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    variant(0)
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)


class _Interest:
    """``conditional_interest``: its inputs, variants and truth."""

    def __init__(self, plan: Plan, device: str) -> None:
        self.plan, self.device = plan, device
        with torch.device("cpu"):
            first = interest_inputs(plan.case)
            self.sets = rotation_length(first.nbytes(), _CACHE_BYTES, most=4)
            self.inputs = [one.on(device) for one in rotation(first, self.sets)]
            self.work: Work = interest_work(plan.case, plan.mode, first.sequences.lengths())
        if plan.mode == "training":
            self.inputs = [one.requiring_grad() for one in self.inputs]

    def variants(self) -> dict[str, Callable[[], Variant]]:
        make: dict[str, Callable[[], Variant]] = {}
        for backend in BACKENDS:
            make[backend] = functools.partial(self._fused, backend)
            make[f"{backend}_graph"] = functools.partial(self._fused_graph, backend)
        make["batched"] = lambda: self._calling(baselines.batched, pads=True)
        make["ragged"] = lambda: self._calling(self._ragged)
        make["ragged_graph"] = lambda: graphed(
            self._calling(self._planned()), self.sets, self.device
        )
        if self.plan.compiled:
            make["compiled_batched"] = lambda: self._calling(
                baselines.compiled_batched(), pads=True
            )
        return make

    def expected(self) -> tuple[Tensors, dict[str, float]]:
        return self._expected

    def named(self, result: Any) -> Tensors:
        names = ["out", *self.inputs[0].differentiable()]
        results = result if isinstance(result, list) else [result]
        return {n: t.detach() for n, t in zip(names, results, strict=False)}

    def _fused(self, backend: str) -> Variant:
        one = self.inputs[0]
        try:
            ops.explain(
                "conditional_interest",
                one.sequences,
                one.target,
                one.weights,
                one.scale,
                one.shift,
                num_heads=one.num_heads,
                user_index=one.user_index,
                backend=backend,
            )
        except ValueError as reason:
            raise Failed(str(reason)) from None
        return self._run(lambda i: interest(self.inputs[i], backend))

    def _fused_graph(self, backend: str) -> Variant:
        return graphed(self._fused(backend), self.sets, self.device)

    def _ragged(self, *args: Any, **options: Any) -> Tensor:
        return baselines.ragged(*args, hidden_floats=_WHOLE, **options)

    def _planned(self) -> Callable[..., Tensor]:
        # The lengths of all sets are the same, and so is the plan.
        case = self.plan.case
        sequences = self.inputs[0].sequences
        plan = baselines.make_plan(sequences, _WHOLE // (case.num_tasks * case.d_f))
        if self.inputs[0].user_index is not None:
            raise Failed("candidates are arranged on the host")
        return functools.partial(baselines.ragged, plan=plan)

    def _calling(self, function: Callable[..., Tensor], pads: bool = False) -> Variant:
        padded = [baselines.pad(one.sequences) for one in self.inputs] if pads else []

        def call(i: int) -> Tensor:
            one = self.inputs[i]
            sequences: Any = one.sequences
            if pads:
                sequences = padded[i] if self.plan.mode != "training" else baselines.pad(sequences)
            return function(
                sequences,
                one.target,
                one.weights,
                one.scale,
                one.shift,
                num_heads=one.num_heads,
                user_index=one.user_index,
            )

        return self._run(call)

    def _run(self, call: Callable[[int], Tensor]) -> Variant:
        training = self.plan.mode == "training"

        def variant(i: int) -> Any:
            with torch.set_grad_enabled(training):
                out = call(i)
                if not training:
                    return out
                leaves = list(self.inputs[i].differentiable().values())
                return [out, *torch.autograd.grad(out, leaves, self.inputs[i].grad_out)]

        return variant

    @functools.cached_property
    def _expected(self) -> tuple[Tensors, dict[str, float]]:
        mode, one = self.plan.mode, self.inputs[0]
        truth = reference_result(_detached(one), mode, torch.float64)
        plain = reference_result(_detached(one), mode, one.target.dtype)
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}


def _detached(inputs: InterestInputs) -> InterestInputs:
    return inputs.replaced({k: v.detach() for k, v in inputs.differentiable().items()})


class _LayerNorm:
    """``conditional_layer_norm`` on ``[T, tokens, d]``, a table per task, with a residual."""

    def __init__(self, plan: Plan, device: str) -> None:
        self.plan, self.device = plan, device
        case = plan.case
        dtype = getattr(torch, case.dtype)
        with torch.device("cpu"):
            lengths = interest_inputs(case).sequences.lengths()
        shape = (case.num_tasks, int(lengths.sum()), case.d)
        table = (case.num_tasks, 1, case.d)
        elements = shape[0] * shape[1] * shape[2]
        self.work: Work = layer_norm_work(
            case, plan.mode, shape[0] * shape[1], 2 * elements, elements
        )
        self.sets = rotation_length(3 * dtype.itemsize * elements, _CACHE_BYTES, most=4)
        training = plan.mode == "training"

        def leaf(*size: int, mean: float = 0.0) -> Tensor:
            return (torch.randn(*size) + mean).to(dtype).requires_grad_(training)

        names = {"x": shape, "residual": shape, "scale": table, "shift": table}
        self.leaves = [
            {n: leaf(*size, mean=float(n == "scale")) for n, size in names.items()}
            for _ in range(self.sets)
        ]
        self.upstream = torch.randn(shape).to(dtype)

    def variants(self) -> dict[str, Callable[[], Variant]]:
        make: dict[str, Callable[[], Variant]] = {}
        for backend in BACKENDS:
            make[backend] = functools.partial(self._fused, backend)
            make[f"{backend}_graph"] = lambda backend=backend: graphed(
                self._fused(backend), self.sets, self.device
            )
        make["eager"] = lambda: self._calling(layer_norm.eager)
        make["eager_graph"] = lambda: graphed(
            self._calling(layer_norm.eager), self.sets, self.device
        )
        if self.plan.compiled:
            make["compiled"] = lambda: self._calling(torch.compile(layer_norm.eager, dynamic=False))
        return make

    def named(self, result: Any) -> Tensors:
        results = result if isinstance(result, list) else [result]
        names = ["out", *self.leaves[0]]
        return {n: t.detach() for n, t in zip(names, results, strict=False)}

    def _fused(self, backend: str) -> Variant:
        function = functools.partial(ops.conditional_layer_norm, backend=backend)
        try:
            ops.explain("conditional_layer_norm", **self.leaves[0], backend=backend)
        except ValueError as reason:
            raise Failed(str(reason)) from None
        return self._calling(function)

    def _calling(self, function: Callable[..., Tensor]) -> Variant:
        training = self.plan.mode == "training"

        def variant(i: int) -> Any:
            with torch.set_grad_enabled(training):
                out = function(**self.leaves[i])
                if not training:
                    return out
                leaves = list(self.leaves[i].values())
                return [out, *torch.autograd.grad(out, leaves, self.upstream)]

        return variant

    @functools.cached_property
    def _expected(self) -> tuple[Tensors, dict[str, float]]:
        def compute(dtype: torch.dtype) -> Tensors:
            training = self.plan.mode == "training"
            leaves = {
                n: t.detach().to(dtype).requires_grad_(training) for n, t in self.leaves[0].items()
            }
            out = reference.conditional_layer_norm(**leaves)
            if not training:
                return self.named(out)
            grads = torch.autograd.grad(out, list(leaves.values()), self.upstream.to(dtype))
            return self.named([out, *grads])

        truth, plain = compute(torch.float64), compute(self.upstream.dtype)
        return truth, {name: errors(plain[name], truth[name])[0] for name in truth}

    def expected(self) -> tuple[Tensors, dict[str, float]]:
        return self._expected
