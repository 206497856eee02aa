"""What is measured: one :class:`Case` per workload, and the grids of the quick and the full run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

Stem = Literal[
    "conditional_interest",
    "conditional_layer_norm",
    "multi_hash_lookup",
    "gated_cross",
    "dtrn_training",
    "dtn_training",
]
Mode = Literal["forward", "training", "serving"]
Gradient = Literal["dense", "sparse", "step"]

STEMS: tuple[Stem, ...] = (
    "conditional_interest",
    "conditional_layer_norm",
    "multi_hash_lookup",
    "gated_cross",
    "dtrn_training",
    "dtn_training",
)
# What each stem is timed on; in a mode, or for a case, some of these.
BACKENDS: dict[Stem, tuple[str, ...]] = {
    "conditional_interest": (
        *("fused", "fused_float32", "naive", "batched", "repeated", "ragged", "ragged_flat"),
        *("compiled_batched", "compiled_ragged", "reference"),
    ),
    "conditional_layer_norm": ("fused", "eager", "gathered", "compiled", "reference"),
    "multi_hash_lookup": (
        *("fused", "fused_rowwise", "fused_unfused_step", "eager", "eager_coalesced"),
        *("eager_sparse", "bag", "compiled", "reference"),
    ),
    "gated_cross": ("fused", "eager", "modules", "compiled", "reference"),
    "dtrn_training": ("fused", "batched", "ragged", "ragged_flat", "reference"),
    "dtn_training": ("fused", "plain"),
}
MODES: tuple[Mode, ...] = ("forward", "training", "serving")
SHAPES = ("ecommerce", "tenrec")
LENGTHS = ("geometric", "max", "heavy_tailed")
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One workload. Everything but the threads, the mode and the backend.

    Attributes:
        stem: the op or model.
        shape: the data set whose behaviors, average and maximal lengths are generated; "fields"
            for models without histories.
        lengths: "geometric" (published averages), "max" (every sequence full) or "heavy_tailed"
            (half of the users empty, the others twice the average).
        d, num_heads: embedding width and heads; the FFN is ``4 * d`` wide.
        batch: candidates ``B``.
        users: users ``U``; equal to ``batch`` unless candidates share histories.
        num_tasks: ``T``; the networks of ``gated_cross``.
        dtype: of values, target and output.
        num_fields: of ``multi_hash_lookup`` and ``gated_cross``; ``d`` is the width of a codeword
            or of a field's embedding, and shape, lengths, heads and users say nothing there.
        num_hashes, num_codewords: of ``multi_hash_lookup`` alone, where the tasks say nothing.
        gradient: of its codebook: "dense", "sparse", or "step" for an optimizer's step as well.
    """

    stem: Stem = "conditional_interest"
    shape: str = "ecommerce"
    lengths: str = "geometric"
    d: int = 32
    num_heads: int = 2
    batch: int = 2048
    users: int = 2048
    num_tasks: int = 4
    dtype: str = "float32"
    num_fields: int = 17
    num_hashes: int = 2
    num_codewords: int = 1_000_000
    gradient: Gradient = "dense"

    @property
    def d_f(self) -> int:
        """Hidden width of both FFNs."""
        return 4 * self.d

    @property
    def name(self) -> str:
        """Short and unique, for tables, ``--filter`` and result files."""
        if self.stem == "multi_hash_lookup":
            return self._multi_hash_name()
        parts = [self.stem, self.shape, f"d{self.d}", f"B{self.batch}"]
        if self.stem == "gated_cross":
            parts.insert(2, f"F{self.num_fields}")
        elif self.users != self.batch:
            parts.append(f"U{self.users}")
        if self.lengths != "geometric":
            parts.append(self.lengths)
        if self.num_tasks != 4:
            parts.append(f"T{self.num_tasks}")
        if self.dtype != "float32":
            parts.append(self.dtype)
        return "/".join(parts)

    def _multi_hash_name(self) -> str:
        parts = [self.stem, f"F{self.num_fields}", f"m{self.num_hashes}", f"d{self.d}"]
        parts += [f"n{self.num_codewords}", f"B{self.batch}"]
        if self.gradient != "dense":
            parts.append(self.gradient)
        if self.dtype != "float32":
            parts.append(self.dtype)
        return "/".join(parts)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Case:
        return cls(**values)


@dataclass(frozen=True)
class Job:
    """What one worker process measures: a case in some modes, on some numbers of threads."""

    case: Case
    modes: tuple[Mode, ...]
    threads: tuple[int, ...]
    backends: tuple[str, ...] = ()  # empty: all that the stem has
    memory: bool = True
    allocator: str = "tuned"  # or "plain": once, to show what that costs
    seconds: float = 20.0  # time budget of one (mode, threads)
    min_rounds: int = 3

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Job:
        values = dict(values, case=Case.from_dict(values["case"]))
        for name in ("modes", "threads", "backends"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


def heads_of(d: int) -> int:
    """2 heads up to d = 32, 4 above."""
    return 2 if d <= 32 else 4


def training_case(shape: str, d: int, **others: Any) -> Case:
    """A batch in which every candidate has its own histories."""
    return replace(Case(shape=shape, d=d, num_heads=heads_of(d)), **others)


def serving_case(shape: str, d: int, candidates: int = 512, **others: Any) -> Case:
    """One user and many candidates, as a ranking server calls the model."""
    return training_case(shape, d, batch=candidates, users=1, **others)


# Compiling takes minutes per case, and naive code up to a minute per call: not everywhere.
_PLAIN = ("fused", "batched", "ragged", "ragged_flat", "reference")
_EAGER = ("fused", "naive", "batched", "ragged", "ragged_flat", "reference")
_BF16 = ("fused", "fused_float32", "batched", "ragged", "reference")


def full_jobs() -> list[Job]:
    """The grid of ``mtlfast bench``: what must hold first, then bf16, odd shapes, the rest."""
    both: tuple[Mode, ...] = ("forward", "training")
    main = [(shape, d) for d in (32, 16, 64) for shape in SHAPES]
    jobs = [Job(training_case(*case), both, (2,)) for case in main]
    jobs += [
        Job(training_case(shape, d), both, (1,), () if d == 32 else _EAGER) for shape, d in main
    ]
    jobs += [Job(serving_case(*case), ("serving",), (2, 1), seconds=6.0) for case in main]
    jobs += [Job(training_case(*case, dtype="bfloat16"), both, (2, 1), _BF16) for case in main]
    jobs += [
        Job(serving_case(*case, dtype="bfloat16"), ("serving",), (2,), _BF16, seconds=6.0)
        for case in main
    ]
    # No raggedness to gain from; raggedness at its worst; too little work to share among threads.
    jobs += [Job(training_case("ecommerce", 32, lengths="max"), both, (2,), _EAGER)]
    jobs += [
        Job(training_case(shape, 32, lengths="heavy_tailed"), both, (2,), _PLAIN)
        for shape in SHAPES
    ]
    jobs += [
        Job(training_case(shape, 32, batch=b, users=b), both, (2,), _EAGER, seconds=6.0)
        for shape in SHAPES
        for b in (1, 8, 64, 512)
    ]
    # Impression logs: several candidates per user, up to all of one.
    jobs += [
        Job(training_case(shape, 32, users=users), both, (2,), (*_PLAIN, "repeated"), seconds=10.0)
        for shape in SHAPES
        for users in (256, 16, 1)
    ]
    jobs += [Job(training_case("tenrec", 128, num_heads=4), both, (2,), _PLAIN)]
    jobs += [
        Job(
            training_case(*case, stem="conditional_layer_norm", dtype=dtype),
            both,
            (2, 1),
            seconds=5,
        )
        for dtype in DTYPES
        for case in main
    ]
    jobs += multi_hash_jobs()
    gated = Case("gated_cross", "fields", d=16, num_fields=23)
    # The layers of DTN's groups at its fields and at a few; one network; few rows.
    jobs += [
        Job(replace(gated, **others), both, (2, 1), seconds=10.0)
        for others in ({}, {"num_fields": 5}, {"num_tasks": 1}, {"batch": 512})
    ]
    jobs += [
        Job(training_case(shape, 32, stem="dtrn_training"), ("training",), (2, 1), seconds=90.0)
        for shape in SHAPES
    ]
    jobs += [
        Job(Case("dtn_training", "fields", d=16, num_tasks=3), ("training",), (2, 1), seconds=90.0)
    ]
    # Once, to show what the allocator costs those who do not tune it.
    jobs += [
        Job(
            training_case("ecommerce", 32),
            both,
            (2,),
            ("fused", "batched", "ragged"),
            allocator="plain",
            memory=False,
        )
    ]
    return jobs


def multi_hash_case(num_fields: int, num_hashes: int, **others: Any) -> Case:
    """Codebooks of 10^6 codewords of width 16."""
    fields = {"d": 16, "num_fields": num_fields, "num_hashes": num_hashes}
    return replace(Case(stem="multi_hash_lookup"), **fields | others)


def multi_hash_jobs() -> list[Job]:
    """All kinds of gradients; small and hot codebooks, bf16, wider codewords."""
    both: tuple[Mode, ...] = ("forward", "training")
    jobs = []
    for sizes in ((17, 2), (17, 4), (20, 2), (20, 4)):
        jobs.append(Job(multi_hash_case(*sizes), both, (2, 1)))
        jobs += [
            Job(multi_hash_case(*sizes, gradient=kind), ("training",), (2,))
            for kind in ("sparse", "step")
        ]
    for others in ({"num_codewords": 1000}, {"d": 64}, {"d": 10}, {"batch": 1}):
        jobs.append(Job(multi_hash_case(17, 2, **others), both, (2,), seconds=10.0))
    plain = ("fused", "eager", "compiled", "reference")
    jobs.append(Job(multi_hash_case(17, 2, dtype="bfloat16"), both, (2,), plain))
    return jobs


def quick_jobs() -> list[Job]:
    """Under a minute: fused, batched, ragged and reference at d = 32, and their memory."""
    backends = ("fused", "batched", "ragged", "reference")
    return [
        Job(
            training_case(shape, 32, batch=512, users=512),
            ("forward", "training"),
            (2,),
            backends=backends,
            seconds=4.0,
        )
        for shape in SHAPES
    ]


def select(
    jobs: Iterable[Job],
    *,
    pattern: str | None = None,
    stems: Iterable[str] = (),
    threads: Iterable[int] = (),
    dtypes: Iterable[str] = (),
    modes: Iterable[str] = (),
) -> list[Job]:
    """The jobs, and the parts of jobs, that all given filters let through.

    Args:
        pattern: a case is kept when its name contains every comma-separated part of this.
        stems, threads, dtypes, modes: keep only these; empty keeps all.
    """
    stems, threads, dtypes, modes = set(stems), set(threads), set(dtypes), set(modes)
    parts = [part for part in (pattern or "").split(",") if part]
    kept = []
    for job in jobs:
        case = job.case
        if any(part not in case.name for part in parts):
            continue
        if (stems and case.stem not in stems) or (dtypes and case.dtype not in dtypes):
            continue
        left = replace(
            job,
            threads=tuple(n for n in job.threads if not threads or n in threads),
            modes=tuple(mode for mode in job.modes if not modes or mode in modes),
        )
        if left.threads and left.modes:
            kept.append(left)
    return kept
