"""Typed options of the sequence encoders, and an encoder from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from mtlfast._checks import check_count, check_dropout, check_units, check_weight
from mtlfast._config import from_named
from mtlfast.errors import bad
from mtlfast.sequence.attention import BST, DFN, ATRank, Readout
from mtlfast.sequence.base import SequenceEncoder
from mtlfast.sequence.dien import DIEN, AuxiliaryScore, GRUKind
from mtlfast.sequence.dmt import DMT
from mtlfast.sequence.pooling import DIN, MeanPooling
from mtlfast.sequence.position import PositionKind

__all__ = [
    "ENCODER_CONFIGS",
    "ATRankConfig",
    "BSTConfig",
    "DFNConfig",
    "DIENConfig",
    "DINConfig",
    "DMTConfig",
    "EncoderConfig",
    "YouTubeNetConfig",
]


@dataclass(frozen=True)
class EncoderConfig(ABC):
    """Options of one encoder. In a mapping the key ``name`` chooses it."""

    name: ClassVar[str]

    @abstractmethod
    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        """The encoder.

        Args:
            embed_dim: ``d``.
            max_lengths: longest sequence of each of the ``M`` behaviors.
            behaviors: their names, where they have any.
        """

    @classmethod
    def from_value(cls, value: Any, where: str) -> EncoderConfig:
        """From an encoder's name or a mapping with the key ``name``; errors name ``where``."""
        return from_named(ENCODER_CONFIGS, "an encoder's", value, where)


@dataclass(frozen=True)
class _OfOneBehavior(EncoderConfig):
    behavior: int = 0

    def _check(self, max_lengths: Sequence[int]) -> None:
        if not 0 <= self.behavior < len(max_lengths):
            raise bad("behavior", f"one in [0, {len(max_lengths)})", self.behavior)


@dataclass(frozen=True)
class YouTubeNetConfig(_OfOneBehavior):
    """Options of :class:`MeanPooling`."""

    name: ClassVar[str] = "youtubenet"

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        self._check(max_lengths)
        return MeanPooling(embed_dim, behavior=self.behavior)


@dataclass(frozen=True)
class DINConfig(_OfOneBehavior):
    """Options of :class:`DIN`."""

    name: ClassVar[str] = "din"
    units: tuple[int, ...] = (64,)
    activation: Literal["dice", "prelu", "sigmoid"] = "dice"
    softmax: bool = False

    def __post_init__(self) -> None:
        check_units("units", self.units)

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        self._check(max_lengths)
        return DIN(
            embed_dim,
            behavior=self.behavior,
            units=self.units,
            activation=self.activation,
            softmax=self.softmax,
        )


@dataclass(frozen=True)
class DIENConfig(_OfOneBehavior):
    """Options of :class:`DIEN`; ``auxiliary_weight`` 0 leaves its auxiliary loss out."""

    name: ClassVar[str] = "dien"
    gru: GRUKind = "augru"
    auxiliary_weight: float = 0.0
    auxiliary_score: AuxiliaryScore = "inner"
    negative_behavior: int | None = None

    def __post_init__(self) -> None:
        check_weight("auxiliary_weight", self.auxiliary_weight)

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        self._check(max_lengths)
        negative = self.negative_behavior
        if negative is not None and (
            not 0 <= negative < len(max_lengths) or negative == self.behavior
        ):
            raise bad(
                "negative_behavior",
                f"one in [0, {len(max_lengths)}) other than behavior = {self.behavior}",
                negative,
            )
        return DIEN(
            embed_dim,
            behavior=self.behavior,
            gru=self.gru,
            auxiliary_weight=self.auxiliary_weight,
            auxiliary_score=self.auxiliary_score,
            negative_behavior=negative,
        )


@dataclass(frozen=True)
class BSTConfig(_OfOneBehavior):
    """Options of :class:`BST`."""

    name: ClassVar[str] = "bst"
    num_heads: int = 2
    ffn_dim: int | None = None
    readout: Readout = "target"
    combine_positions: Literal["add", "concat"] = "add"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_dropout(self.dropout)

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        self._check(max_lengths)
        return BST(
            embed_dim,
            max_lengths[self.behavior],
            behavior=self.behavior,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            readout=self.readout,
            combine_positions=self.combine_positions,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class ATRankConfig(EncoderConfig):
    """Options of :class:`ATRank`."""

    name: ClassVar[str] = "atrank"
    width: int | None = None
    num_heads: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        check_dropout(self.dropout)

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        return ATRank(
            embed_dim,
            len(max_lengths),
            width=self.width,
            num_heads=self.num_heads,
            dropout=self.dropout,
        )


@dataclass(frozen=True)
class DFNConfig(EncoderConfig):
    """Options of :class:`DFN`; ``weak`` None takes behaviors named "negative" or "non_...".

    That is what DTRN's data sets (CIKM 2023, Tables 2 and 3) call items that were shown in vain.
    """

    name: ClassVar[str] = "dfn"
    weak: tuple[int, ...] | None = None
    num_heads: int = 2
    pooling: Literal["mean", "sum"] = "mean"

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        weak = self.weak
        if weak is None:
            weak = tuple(
                b
                for b, name in enumerate(behaviors)
                if name == "negative" or name.startswith("non_")
            )
        return DFN(
            embed_dim,
            len(max_lengths),
            weak=weak,
            num_heads=self.num_heads,
            pooling=self.pooling,
        )


@dataclass(frozen=True)
class DMTConfig(EncoderConfig):
    """Options of :class:`DMT`; the defaults are those of the authors' code."""

    name: ClassVar[str] = "dmt"
    num_heads: int = 4
    ffn_dim: int | None = None
    num_encoder_layers: int = 1
    num_decoder_layers: int = 1
    pos_encoding: PositionKind = "learned"
    scale: bool = True
    dropout: float = 0.1
    eps: float = 1e-8

    def __post_init__(self) -> None:
        check_count("num_encoder_layers", self.num_encoder_layers)
        check_count("num_decoder_layers", self.num_decoder_layers)
        check_dropout(self.dropout)
        if not self.eps > 0:
            raise bad("eps", "a positive float", self.eps)

    def build(
        self, embed_dim: int, max_lengths: Sequence[int], behaviors: Sequence[str] = ()
    ) -> SequenceEncoder:
        return DMT(
            embed_dim,
            max_lengths,
            num_heads=self.num_heads,
            ffn_dim=self.ffn_dim,
            num_encoder_layers=self.num_encoder_layers,
            num_decoder_layers=self.num_decoder_layers,
            pos_encoding=self.pos_encoding,
            scale=self.scale,
            dropout=self.dropout,
            eps=self.eps,
        )


ENCODER_CONFIGS: dict[str, type[EncoderConfig]] = {
    config.name: config
    for config in (
        YouTubeNetConfig,
        DINConfig,
        DIENConfig,
        BSTConfig,
        ATRankConfig,
        DFNConfig,
        DMTConfig,
    )
}
