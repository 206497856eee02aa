"""Swapping fused ops into existing models, in place and reversibly.

What :func:`fuse_` recognizes:

- our own modules that choose a backend and were built with another one than asked for:
  ``ConditionalTransformer``, ``SeparateTransformers``, ``InjectedTransformer``,
  ``MultiHashCodebook``, wherever they are (DTRN, DTN, TIM, ...);
- torch-rechub's ``MMOE``, from four experts with ReLU on. Inference without gradients becomes 1.1
  to 1.3 times as fast, a training step 1.0 to 1.3 times (2048 samples, 4 or 8 experts 16 to 512
  wide, two CPU cores; ``python examples/fuse_torch_rechub.py`` measures again);
- the classes that users teach it with :func:`register_fusion`.

Not taken, since it does not gain: torch-rechub's ``PLE`` in the same manner (a training step 0.8
to 1.1 times as fast). ``BatchNorm1d`` after every map is why MMOE gains little in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import nn

from mtlfast.errors import bad, refuse
from mtlfast.fusions import exchange, switch
from mtlfast.fusions.registry import (
    fusion_for,
    known_base,
    qualified_name,
    reason_against,
    register_fusion,
)
from mtlfast.ops._backend import BACKENDS

__all__ = ["FuseEntry", "FuseReport", "fuse_", "register_fusion", "unfuse_"]

Outcome = Literal["fused", "already", "kept", "left out", "inside"]


@dataclass(frozen=True)
class FuseEntry:
    """What :func:`fuse_` did with one module that it recognized."""

    names: tuple[str, ...]
    """Where the module is in the model, as ``named_modules`` says; "" is the model itself."""
    module: str
    """Qualified name of its class before."""
    outcome: Outcome
    """"fused"; "already" as asked for; "kept" as it was, since it cannot be fused; "left out" by
    ``filter_fn``; "inside" a module that is replaced as a whole."""
    replacement: str
    """The class or the backend that it has now; empty where nothing is replaced."""
    reason: str
    """Why so."""


@dataclass(frozen=True)
class FuseReport:
    """What :func:`fuse_` did; print it for a table.

    Every module that is recognized has an entry, in the order of ``named_modules``.
    """

    model: str
    backend: str
    entries: tuple[FuseEntry, ...]

    @property
    def fused(self) -> tuple[FuseEntry, ...]:
        """What runs as asked for: replaced now, or before."""
        return self._with("fused", "already")

    @property
    def kept(self) -> tuple[FuseEntry, ...]:
        """What was recognized and cannot be fused."""
        return self._with("kept")

    def _with(self, *outcomes: Outcome) -> tuple[FuseEntry, ...]:
        return tuple(entry for entry in self.entries if entry.outcome in outcomes)

    def __str__(self) -> str:
        if not self.entries:
            return f"{self.model}: nothing in it is known to fuse_"
        rows: list[tuple[str, ...]] = [
            (
                ", ".join(name or "(the model)" for name in entry.names),
                entry.module.rpartition(".")[2],
                entry.outcome,
                entry.replacement or "-",
                entry.reason,
            )
            for entry in self.entries
        ]
        rows.insert(0, ("module", "class", "outcome", "now", "why"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        title = f"{self.model}, backend {self.backend!r}: {len(self.fused)} fused, "
        return "\n".join([f"{title}{len(self.kept)} kept as they were", *lines])


@dataclass(frozen=True)
class _Step:
    """An entry of the report, and how to make it true."""

    entry: FuseEntry
    apply: Callable[[], None] | None = None


def fuse_(
    model: nn.Module,
    *,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
    backend: str = "auto",
) -> FuseReport:
    """Make what is recognized in ``model`` run on our fused ops, in place.

    Modules keep their identity: every reference to one stays good, shared modules stay shared,
    parameters, buffers, ``state_dict``, hooks and the training mode are the same before and after.
    What changes is the class, or the backend, of this model's modules; nothing global does.
    Calling it again changes nothing; :func:`unfuse_` undoes it. Compile a model afterwards.
    Hooks on what lies inside a module are a reason not to replace it; later ones there may not be
    called.

    Args:
        model: any module; may be recognized itself.
        filter_fn: called as ``filter_fn(name, module)`` for everything that is recognized, and for
            each of its names; replaced is what it accepts under at least one.
        strict: raise if anything recognized and accepted cannot be fused.
        backend: of the fused modules: "auto", "cpu", "triton", "cuda" or "reference". "auto" where
            only the reference could run is a reason not to fuse.

    Returns:
        what was replaced, what was not, and why.

    Raises:
        ValueError: a wrong argument, or a registered fusion that breaks its promises.
        RuntimeError: ``strict``, and something cannot be fused. The model is untouched after any
            error.
    """
    if not isinstance(model, nn.Module):
        raise bad("model", "a torch.nn.Module", type(model).__name__)
    if filter_fn is not None and not callable(filter_fn):
        raise bad("filter_fn", "a function (name, module) -> bool", type(filter_fn).__name__)
    if backend not in (*BACKENDS, "auto"):
        raise bad("backend", f"one of {(*BACKENDS, 'auto')}", repr(backend))
    steps = list(_plan(model, filter_fn, backend))
    report = FuseReport(type(model).__qualname__, backend, tuple(step.entry for step in steps))
    if strict and report.kept:
        kept = "\n".join(
            f"  {', '.join(name or '(the model)' for name in entry.names)} "
            f"({entry.module}): {entry.reason}"
            for entry in report.kept
        )
        refuse(f"strict: {len(report.kept)} modules cannot be fused, nothing was changed:\n{kept}")
    for step in steps:
        if step.apply is not None:
            step.apply()
    return report


def unfuse_(model: nn.Module) -> None:
    """Undo what :func:`fuse_` did, in place.

    Every module is of its old class, with its old contents or backend; parameters and buffers are
    those of now, with everything trained meanwhile. Works on a copy or a loaded pickle as well. A
    model that was never fused is left as it is.

    Raises:
        ValueError: ``model`` is no module.
    """
    if not isinstance(model, nn.Module):
        raise bad("model", "a torch.nn.Module", type(model).__name__)
    restored = True
    while restored:  # a restored module may have modules inside that its replacement had not
        restored = False
        for module in list(model.modules()):
            if exchange.replaced(module) is not None:
                exchange.restore(module)
                restored = True
            if switch.switch_back(module):
                restored = True


def _plan(
    model: nn.Module, filter_fn: Callable[[str, nn.Module], bool] | None, backend: str
) -> Iterator[_Step]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    known = {module: found for module, found in names.items() if _recognized(module)}
    accepted = {
        module
        for module, found in known.items()
        if filter_fn is None or any(filter_fn(name, module) for name in found)
    }
    owners = _owners(known, accepted, backend)
    for module, found in known.items():
        if module in owners:
            owner = names[owners[module]][0] or "the model"
            entry = _entry(found, module, "inside", reason=f"{owner} is replaced as a whole")
            yield _Step(entry)
        elif module not in accepted:
            yield _Step(_entry(found, module, "left out", reason="filter_fn did not accept it"))
        elif switch.has_backend(module):
            yield _plan_switch(found, module, backend)
        else:
            yield _plan_exchange(found, module, backend)


def _recognized(module: nn.Module) -> bool:
    if exchange.replaced(module) is not None or switch.has_backend(module):
        return True
    return fusion_for(type(module)) is not None or known_base(type(module)) is not None


def _owners(
    known: Iterable[nn.Module], accepted: set[nn.Module], backend: str
) -> dict[nn.Module, nn.Module]:
    """For everything inside a module that is replaced as a whole, which one that is."""
    owners: dict[nn.Module, nn.Module] = {}
    for module in known:
        if module in owners or switch.has_backend(module):
            continue
        if exchange.replaced(module) is None and (
            module not in accepted or _against(module, backend)
        ):
            continue
        for inner in module.modules():
            if inner is not module:
                owners.setdefault(inner, module)
    return owners


def _against(module: nn.Module, backend: str) -> str:
    """Why the module cannot be replaced; empty where it can."""
    fusion = fusion_for(type(module))
    if fusion is None:
        base = known_base(type(module))
        known = qualified_name(base) if base is not None else "what is known"
        return f"a subclass of {known} may compute something else; see register_fusion"
    return exchange.obstacle(module, fusion) or reason_against(fusion, module, backend)


def _plan_switch(names: list[str], module: nn.Module, backend: str) -> _Step:
    runs, reason = switch.outlook(module, backend)
    if not runs:
        return _Step(_entry(names, module, "kept", reason=reason))
    before, now = switch.backend_of(module), f"backend {backend!r}"
    if before == backend:
        return _Step(_entry(names, module, "already", now, reason))
    entry = _entry(names, module, "fused", f"{now} for {before!r}", reason)
    return _Step(entry, lambda: switch.switch(module, backend))


def _plan_exchange(names: list[str], module: nn.Module, backend: str) -> _Step:
    record = exchange.replaced(module)
    now = f"{type(module).__qualname__}, backend {backend!r}"
    if record is not None and record.backend == backend:
        entry = _entry(names, record.original, "already", now, "replaced before")
        return _Step(entry)
    original = module if record is None else exchange.sync(module)
    reason = _against(original, backend)
    if reason:
        return _Step(_entry(names, original, "kept", reason=reason))
    fusion = fusion_for(type(original))
    if fusion is None:
        raise RuntimeError("a fusion was taken back while fuse_ ran")
    fused = fusion.from_unfused(original, backend)  # type: ignore[attr-defined]  # register_fusion has seen to that
    exchange.check(original, fused, fusion)

    def apply() -> None:
        if record is not None:
            exchange.restore(module)
        exchange.exchange(module, fused, backend)

    now = f"{fusion.__qualname__}, backend {backend!r}"
    return _Step(_entry(names, original, "fused", now, "replaced by its fusion"), apply)


def _entry(
    names: list[str],
    module: nn.Module,
    outcome: Outcome,
    replacement: str = "",
    reason: str = "",
) -> FuseEntry:
    return FuseEntry(tuple(names), qualified_name(type(module)), outcome, replacement, reason)
