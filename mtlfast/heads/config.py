"""Typed options of the heads, and a head from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from mtlfast._checks import (
    check_count,
    check_dropout,
    check_levels,
    check_units,
    check_weight,
)
from mtlfast._config import from_mapping
from mtlfast.errors import bad
from mtlfast.heads.aitm import AITM
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.esmm import ESMM
from mtlfast.heads.mmoe import MMoE
from mtlfast.heads.ple import PLE
from mtlfast.heads.share_bottom import ShareBottom
from mtlfast.heads.single_task import SingleTask
from mtlfast.heads.tree import tree_levels


@dataclass(frozen=True)
class HeadConfig:
    """Options of one head; the fields of a subclass are the options of its ``head_class``.

    In a mapping the key ``name`` chooses the head: ``{"name": "mmoe", "num_experts": 8}``. The
    default widths suit a CPU; public implementations use experts of ``(512, 256, 128)`` and
    towers of ``(128, 64)``.
    """

    name: ClassVar[str]
    head_class: ClassVar[type[MultiTaskHead]]

    def build(
        self, input_dim: int, num_tasks: int, parents: Sequence[int | None] | None = None
    ) -> MultiTaskHead:
        """The head. ``parents`` is the data set's tree of tasks, which most heads ignore."""
        options: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return self.head_class(input_dim, num_tasks, **options)

    @classmethod
    def from_value(cls, value: Any, where: str) -> HeadConfig:
        """From a head's name or a mapping with the key ``name``; errors name ``where``."""
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or "name" not in value:
            raise bad(where, "a head's name or a mapping with the key 'name'", repr(value))
        options = dict(value)
        name = options.pop("name")
        if name not in HEAD_CONFIGS:
            raise bad(f"{where}.name", f"one of {list(HEAD_CONFIGS)}", repr(name))
        return from_mapping(HEAD_CONFIGS[name], options, where)


@dataclass(frozen=True)
class ShareBottomConfig(HeadConfig):
    """Options of :class:`ShareBottom`."""

    name: ClassVar[str] = "share_bottom"
    head_class: ClassVar[type[MultiTaskHead]] = ShareBottom
    bottom_units: tuple[int, ...] = (128, 64)
    tower_units: tuple[int, ...] = (64,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_units("bottom_units", self.bottom_units)
        _check_common(self.tower_units, self.dropout)


@dataclass(frozen=True)
class SingleTaskConfig(HeadConfig):
    """Options of :class:`SingleTask`."""

    name: ClassVar[str] = "single_task"
    head_class: ClassVar[type[MultiTaskHead]] = SingleTask
    bottom_units: tuple[int, ...] = (128, 64)
    tower_units: tuple[int, ...] = (64,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_units("bottom_units", self.bottom_units)
        _check_common(self.tower_units, self.dropout)


@dataclass(frozen=True)
class MMoEConfig(HeadConfig):
    """Options of :class:`MMoE`."""

    name: ClassVar[str] = "mmoe"
    head_class: ClassVar[type[MultiTaskHead]] = MMoE
    num_experts: int = 4
    expert_units: tuple[int, ...] = (128, 64)
    tower_units: tuple[int, ...] = (64,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_count("num_experts", self.num_experts)
        check_units("expert_units", self.expert_units)
        _check_common(self.tower_units, self.dropout)


@dataclass(frozen=True)
class PLEConfig(HeadConfig):
    """Options of :class:`PLE`; one entry of ``expert_units`` per level."""

    name: ClassVar[str] = "ple"
    head_class: ClassVar[type[MultiTaskHead]] = PLE
    expert_units: tuple[tuple[int, ...], ...] = ((128, 64),)
    num_task_experts: int = 1
    num_shared_experts: int = 2
    tower_units: tuple[int, ...] = (64,)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_levels("expert_units", self.expert_units)
        check_count("num_task_experts", self.num_task_experts)
        check_count("num_shared_experts", self.num_shared_experts)
        _check_common(self.tower_units, self.dropout)


@dataclass(frozen=True)
class AITMConfig(HeadConfig):
    """Options of :class:`AITM`; ``parents`` None takes the data set's tree of tasks."""

    name: ClassVar[str] = "aitm"
    head_class: ClassVar[type[MultiTaskHead]] = AITM
    parents: tuple[int | None, ...] | None = None
    bottom_units: tuple[int, ...] = (128, 64, 32)
    tower_units: tuple[int, ...] = ()
    dropout: float = 0.0
    calibrator: float = 0.0

    def __post_init__(self) -> None:
        if self.parents is not None:
            tree_levels(self.parents)
        check_units("bottom_units", self.bottom_units)
        _check_common(self.tower_units, self.dropout)
        check_weight("calibrator", self.calibrator)

    def build(
        self, input_dim: int, num_tasks: int, parents: Sequence[int | None] | None = None
    ) -> MultiTaskHead:
        """The head, over the config's own tree or else over ``parents``."""
        if self.parents is None and parents is not None:
            return replace(self, parents=tuple(parents)).build(input_dim, num_tasks)
        return super().build(input_dim, num_tasks)


@dataclass(frozen=True)
class ESMMConfig(HeadConfig):
    """Options of :class:`ESMM`; ``parents`` None takes the data set's tree of tasks."""

    name: ClassVar[str] = "esmm"
    head_class: ClassVar[type[MultiTaskHead]] = ESMM
    parents: tuple[int | None, ...] | None = None
    tower_units: tuple[int, ...] = (128, 64)
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.parents is not None:
            tree_levels(self.parents)
        _check_common(self.tower_units, self.dropout)

    def build(
        self, input_dim: int, num_tasks: int, parents: Sequence[int | None] | None = None
    ) -> MultiTaskHead:
        """The head, over the config's own tree or else over ``parents``."""
        if self.parents is None and parents is not None:
            return replace(self, parents=tuple(parents)).build(input_dim, num_tasks)
        return super().build(input_dim, num_tasks)


HEAD_CONFIGS: dict[str, type[HeadConfig]] = {
    config.name: config
    for config in (
        SingleTaskConfig,
        ShareBottomConfig,
        MMoEConfig,
        PLEConfig,
        AITMConfig,
        ESMMConfig,
    )
}


def _check_common(tower_units: Sequence[int], dropout: float) -> None:
    check_units("tower_units", tower_units, allow_empty=True)
    check_dropout(dropout)
