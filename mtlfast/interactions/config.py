"""Typed options of the interactions, and feature-interaction modules from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal

from mtlfast._checks import check_units
from mtlfast._config import from_named
from mtlfast.errors import bad
from mtlfast.interactions.attention import FieldAttention
from mtlfast.interactions.base import Interaction
from mtlfast.interactions.bilinear import BilinearInteraction, BilinearKind
from mtlfast.interactions.cin import Activation
from mtlfast.interactions.dcn import CrossNetwork
from mtlfast.interactions.dcn_m import CrossNetworkMix, CrossNetworkV2
from mtlfast.interactions.deep_and_cross import Structure
from mtlfast.interactions.deepfm import DeepFM
from mtlfast.interactions.dhen import DHEN, Ensemble
from mtlfast.interactions.fibinet import FiBiNET
from mtlfast.interactions.fm import FactorizationMachine
from mtlfast.interactions.gdcn import GatedCrossNetwork
from mtlfast.interactions.masknet import MaskNet, MaskStructure
from mtlfast.interactions.memonet import MemoNetInteraction
from mtlfast.interactions.mlp import DeepInteraction
from mtlfast.interactions.projection import ProjectedInteraction, ProjectionActivation
from mtlfast.interactions.senet import Excitation, Squeeze, SqueezeExcitation
from mtlfast.interactions.xdeepfm import XDeepFM


@dataclass(frozen=True)
class FieldSizes:
    """What an interaction must know of the fields.

    Args:
        embed_dim: ``d``.
        vocab_sizes: rows of each field's table.
        sparse_grad: codebooks get sparse gradients.
        backend: implementation of the fused ops.
    """

    embed_dim: int
    vocab_sizes: tuple[int, ...]
    sparse_grad: bool = False
    backend: str = "auto"

    @property
    def num_fields(self) -> int:
        return len(self.vocab_sizes)


@dataclass(frozen=True)
class InteractionConfig:
    """Options of one method; the fields of a subclass are the options of ``interaction_class``.

    In a mapping the key ``name`` chooses the method: ``{"name": "gdcn", "num_layers": 3}``.
    """

    name: ClassVar[str]
    interaction_class: ClassVar[Any]
    # Options of the map to the common width rather than of the method.
    projection: ClassVar[tuple[str, ...]] = ("projection_activation",)

    def make(self, num_fields: int, embed_dim: int, num_modules: int | None = None) -> Interaction:
        """The bare method, on any fields; without the map to a common width."""
        return self.interaction_class(
            num_fields, embed_dim, num_modules=num_modules, **self._options()
        )

    def build(
        self, sizes: FieldSizes, output_dim: int, num_modules: int | None = None
    ) -> Interaction:
        """A feature-interaction module of width ``output_dim`` (``G`` of them)."""
        inner = self.make(sizes.num_fields, sizes.embed_dim, num_modules)
        return self._project(inner, output_dim)

    def _project(self, inner: Interaction, output_dim: int) -> Interaction:
        activation: ProjectionActivation = getattr(self, "projection_activation", "none")
        return ProjectedInteraction(inner, output_dim, activation=activation)

    def _options(self) -> dict[str, Any]:
        return {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in self.projection
        }

    @classmethod
    def from_value(cls, value: Any, where: str) -> InteractionConfig:
        """From a method's name or a mapping with the key ``name``; errors name ``where``."""
        return from_named(INTERACTION_CONFIGS, "a method's", value, where)


@dataclass(frozen=True)
class FMConfig(InteractionConfig):
    """Options of :class:`FactorizationMachine`."""

    name: ClassVar[str] = "fm"
    interaction_class: ClassVar[Any] = FactorizationMachine
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class MLPConfig(InteractionConfig):
    """Options of :class:`DeepInteraction`."""

    name: ClassVar[str] = "mlp"
    interaction_class: ClassVar[Any] = DeepInteraction
    units: tuple[int, ...] = (256, 128)
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class DeepFMConfig(InteractionConfig):
    """Options of :class:`DeepFM`."""

    name: ClassVar[str] = "deepfm"
    interaction_class: ClassVar[Any] = DeepFM
    units: tuple[int, ...] = (256, 128)
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class XDeepFMConfig(InteractionConfig):
    """Options of :class:`XDeepFM`."""

    name: ClassVar[str] = "xdeepfm"
    interaction_class: ClassVar[Any] = XDeepFM
    cin_units: tuple[int, ...] = (64, 64)
    activation: Activation = "none"
    split_half: bool = False
    units: tuple[int, ...] = (256, 128)
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class SENetConfig(InteractionConfig):
    """Options of :class:`SqueezeExcitation`."""

    name: ClassVar[str] = "senet"
    interaction_class: ClassVar[Any] = SqueezeExcitation
    reduction: int = 3
    squeeze: Squeeze = "mean"
    excitation: Excitation = "relu"
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class BilinearConfig(InteractionConfig):
    """Options of :class:`BilinearInteraction`."""

    name: ClassVar[str] = "bilinear"
    interaction_class: ClassVar[Any] = BilinearInteraction
    kind: BilinearKind = "interaction"
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class FiBiNETConfig(InteractionConfig):
    """Options of :class:`FiBiNET`."""

    name: ClassVar[str] = "fibinet"
    interaction_class: ClassVar[Any] = FiBiNET
    kind: BilinearKind = "interaction"
    share: bool = False
    reduction: int = 3
    squeeze: Squeeze = "mean"
    excitation: Excitation = "relu"
    units: tuple[int, ...] = ()
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class DCNConfig(InteractionConfig):
    """Options of :class:`CrossNetwork`."""

    name: ClassVar[str] = "dcn"
    interaction_class: ClassVar[Any] = CrossNetwork
    num_layers: int = 2
    units: tuple[int, ...] = ()
    structure: Structure = "parallel"
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class DCNMConfig(DCNConfig):
    """Options of :class:`CrossNetworkV2`."""

    name: ClassVar[str] = "dcn_m"
    interaction_class: ClassVar[Any] = CrossNetworkV2


@dataclass(frozen=True)
class DCNMixConfig(InteractionConfig):
    """Options of :class:`CrossNetworkMix`."""

    name: ClassVar[str] = "dcn_mix"
    interaction_class: ClassVar[Any] = CrossNetworkMix
    num_layers: int = 2
    num_experts: int = 4
    rank: int = 32
    units: tuple[int, ...] = ()
    structure: Structure = "parallel"
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class GDCNConfig(InteractionConfig):
    """Options of :class:`GatedCrossNetwork`."""

    name: ClassVar[str] = "gdcn"
    interaction_class: ClassVar[Any] = GatedCrossNetwork
    num_layers: int = 2
    units: tuple[int, ...] = ()
    structure: Structure = "serial"
    dropout: float = 0.0
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class AttentionConfig(InteractionConfig):
    """Options of :class:`FieldAttention`."""

    name: ClassVar[str] = "attention"
    interaction_class: ClassVar[Any] = FieldAttention
    num_heads: int = 1
    projection_activation: ProjectionActivation = "none"


@dataclass(frozen=True)
class MaskNetConfig(InteractionConfig):
    """Options of :class:`MaskNet`, which ends in its own layer of the common width.

    The default is DTN's (arXiv 2408.11611): one mask block of 640 with layer norm, then a
    layer of ``output_dim`` with ReLU. ``preset="released"`` is that of its published code: two
    parallel blocks of 128 with aggregation width 256, no layer norm of the embeddings, a hidden
    layer of 256; the options that it sets are then ignored.
    """

    name: ClassVar[str] = "masknet"
    interaction_class: ClassVar[Any] = MaskNet
    structure: MaskStructure = "parallel"
    block_units: tuple[int, ...] = (640,)
    agg_dim: int | None = 640
    reduction_ratio: float = 1.0
    units: tuple[int, ...] = ()
    field_norm: bool = True
    block_bias: bool = False
    dropout: float = 0.0
    preset: Literal["paper", "released"] = "paper"

    def __post_init__(self) -> None:
        check_units("units", self.units, allow_empty=True)

    def build(
        self, sizes: FieldSizes, output_dim: int, num_modules: int | None = None
    ) -> Interaction:
        options = self._options()
        options["units"] = (*options["units"], output_dim)
        return MaskNet(sizes.num_fields, sizes.embed_dim, num_modules=num_modules, **options)

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        if options.pop("preset") == "released":
            options.update(
                structure="parallel",
                block_units=(128, 128),
                agg_dim=256,
                units=(256,),
                field_norm=False,
                block_bias=True,
            )
        return options


@dataclass(frozen=True)
class MemoNetConfig(InteractionConfig):
    """Options of :class:`MemoNetInteraction`.

    ``largest_fields`` crosses the fields with the largest vocabularies only, so many of them;
    ``selected`` names the fields by number instead.
    """

    name: ClassVar[str] = "memonet"
    interaction_class: ClassVar[Any] = MemoNetInteraction
    selected: tuple[int, ...] | None = None
    largest_fields: int | None = None
    num_codewords: int = 100_000
    codeword_dim: int | None = None
    num_hashes: int = 2
    num_blocks: int = 1
    orders: tuple[int, ...] = (2,)
    sharing: Literal["shared", "private"] = "shared"
    restoring: Literal["linear", "attentive"] = "linear"
    shrinking: Literal["attentive", "softmax", "sum", "none"] = "attentive"
    temperature: float = 1.0
    key_fields: tuple[int, ...] | None = None
    hash: Literal["mix64", "siphash"] = "mix64"
    init_std: float = 0.01
    projection_activation: ProjectionActivation = "none"

    def __post_init__(self) -> None:
        if self.selected is not None and self.largest_fields is not None:
            raise bad("largest_fields", "None where selected is given", self.largest_fields)

    def make(self, num_fields: int, embed_dim: int, num_modules: int | None = None) -> Interaction:
        raise bad("modules", "methods that read no ids", self.name)

    def build(
        self, sizes: FieldSizes, output_dim: int, num_modules: int | None = None
    ) -> Interaction:
        options = self._options()
        largest = options.pop("largest_fields")
        if largest is not None:
            options["selected"] = largest_fields("largest_fields", sizes.vocab_sizes, largest)
        inner = MemoNetInteraction(
            sizes.num_fields,
            sizes.embed_dim,
            num_modules=num_modules,
            sparse_grad=sizes.sparse_grad,
            backend=sizes.backend,
            **options,
        )
        return self._project(inner, output_dim)


@dataclass(frozen=True)
class DHENConfig(InteractionConfig):
    """Options of :class:`DHEN`; ``modules`` are methods that read no ids."""

    name: ClassVar[str] = "dhen"
    interaction_class: ClassVar[Any] = DHEN
    modules: tuple[InteractionConfig, ...] = (DCNMConfig(num_layers=1), MLPConfig())
    num_layers: int = 2
    num_outputs: int | None = None
    ensemble: Ensemble = "concat"
    projection_activation: ProjectionActivation = "none"

    def _options(self) -> dict[str, Any]:
        options = super()._options()
        options["modules"] = [partial(_make, method) for method in self.modules]
        return options


def _make(
    method: InteractionConfig, num_fields: int, embed_dim: int, num_modules: int | None
) -> Interaction:
    return method.make(num_fields, embed_dim, num_modules)


def largest_fields(option: str, vocab_sizes: Sequence[int], count: int) -> tuple[int, ...]:
    """The ``count`` fields with the largest vocabularies, in order; ``option`` asks for them."""
    if not 1 <= count <= len(vocab_sizes):
        raise bad(option, f"from 1 to {len(vocab_sizes)} fields", count)
    descending = sorted(range(len(vocab_sizes)), key=lambda f: -vocab_sizes[f])
    return tuple(sorted(descending[:count]))


INTERACTION_CONFIGS: dict[str, type[InteractionConfig]] = {
    config.name: config
    for config in (
        FMConfig,
        MLPConfig,
        DeepFMConfig,
        XDeepFMConfig,
        SENetConfig,
        BilinearConfig,
        FiBiNETConfig,
        DCNConfig,
        DCNMConfig,
        DCNMixConfig,
        GDCNConfig,
        AttentionConfig,
        MaskNetConfig,
        MemoNetConfig,
        DHENConfig,
    )
}
