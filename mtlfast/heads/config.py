"""Typed options of the heads, and a head from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

from mtlfast._checks import (
    check_count,
    check_dropout,
    check_levels,
    check_units,
    check_weight,
)
from mtlfast._config import from_named
from mtlfast.errors import bad
from mtlfast.heads.aitm import AITM
from mtlfast.heads.base import MultiTaskHead
from mtlfast.heads.esmm import ESMM
from mtlfast.heads.m2m import M2M
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
        options: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        return self.head_class(input_dim, num_tasks, **options)

    def on_fields(
        self, embed_dim: int, vocab_sizes: Sequence[int], item_field: int | None
    ) -> HeadConfig:
        """The same options for an input that begins with the embeddings of all sparse fields.

        Args:
            embed_dim: width of each field's embedding.
            vocab_sizes: rows of each field's table.
            item_field: the field with the target item, if there is one.
        """
        return self

    @classmethod
    def from_value(cls, value: Any, where: str) -> HeadConfig:
        """From a head's name or a mapping with the key ``name``; errors name ``where``."""
        return from_named(HEAD_CONFIGS, "a head's", value, where)


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


_PROFILE_ROWS = 1000


@dataclass(frozen=True)
class M2MConfig(HeadConfig):
    """Options of :class:`M2M`.

    ``scenario_fields`` are the sparse fields that make the scenario; None takes those of the user's
    profile and of the context, which is to say all but the item and what has more than 1000 ids.
    Where the input does not begin with fields, or none is left, the whole input is the scenario.
    """

    name: ClassVar[str] = "m2m"
    head_class: ClassVar[type[MultiTaskHead]] = M2M
    scenario_fields: tuple[int, ...] | None = None
    columns: tuple[int, ...] | None = None
    num_experts: int = 4
    expert_units: tuple[int, ...] = (64, 16)
    meta_layers: int = 1
    tower_layers: int = 2
    tower_units: tuple[int, ...] = ()
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("num_experts", "meta_layers"):
            check_count(name, getattr(self, name))
        if self.tower_layers < 0:
            raise bad("tower_layers", "at least 0", self.tower_layers)
        check_units("expert_units", self.expert_units)
        _check_common(self.tower_units, self.dropout)

    def on_fields(
        self, embed_dim: int, vocab_sizes: Sequence[int], item_field: int | None
    ) -> HeadConfig:
        """The same options with the columns of the scenario's fields."""
        if self.columns is not None:
            return self
        chosen = self.scenario_fields
        if chosen is None:
            chosen = tuple(
                f
                for f, size in enumerate(vocab_sizes)
                if f != item_field and size <= 1 + _PROFILE_ROWS
            )
        elif not chosen or any(not 0 <= f < len(vocab_sizes) for f in chosen):
            raise bad("scenario_fields", f"some in [0, {len(vocab_sizes)})", list(chosen))
        columns = tuple(f * embed_dim + i for f in chosen for i in range(embed_dim))
        return replace(self, columns=columns or None)

    def build(
        self, input_dim: int, num_tasks: int, parents: Sequence[int | None] | None = None
    ) -> MultiTaskHead:
        """The head; ``scenario_fields`` is what :meth:`on_fields` makes columns of."""
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        del options["scenario_fields"]
        return M2M(input_dim, num_tasks, **options)


@dataclass(frozen=True)
class SmallHeadsConfig(HeadConfig):
    """Options of SmallHeads: any head, with a second, smaller tower per task while training.

    ``base`` is the head, ``small_units`` the hidden widths of the small towers, ``weight`` that of
    their loss; see :meth:`MultiTaskHead.add_small_towers`.
    """

    name: ClassVar[str] = "small_heads"
    base: HeadConfig = field(default_factory=MMoEConfig)
    small_units: tuple[int, ...] = ()
    weight: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.base, HeadConfig):
            raise bad("base", "a HeadConfig", type(self.base).__name__)
        check_units("small_units", self.small_units, allow_empty=True)
        check_weight("weight", self.weight)

    def on_fields(
        self, embed_dim: int, vocab_sizes: Sequence[int], item_field: int | None
    ) -> HeadConfig:
        """The same for the head it is about."""
        return replace(self, base=self.base.on_fields(embed_dim, vocab_sizes, item_field))

    def build(
        self, input_dim: int, num_tasks: int, parents: Sequence[int | None] | None = None
    ) -> MultiTaskHead:
        """The head ``base`` with small towers."""
        head = self.base.build(input_dim, num_tasks, parents)
        head.add_small_towers(self.small_units, self.weight)
        return head


HEAD_CONFIGS: dict[str, type[HeadConfig]] = {
    config.name: config
    for config in (
        SingleTaskConfig,
        ShareBottomConfig,
        MMoEConfig,
        PLEConfig,
        AITMConfig,
        ESMMConfig,
        M2MConfig,
        SmallHeadsConfig,
    )
}


def _check_common(tower_units: Sequence[int], dropout: float) -> None:
    check_units("tower_units", tower_units, allow_empty=True)
    check_dropout(dropout)
