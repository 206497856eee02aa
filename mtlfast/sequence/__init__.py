"""Building blocks for ragged behavior sequences."""

from mtlfast.sequence.position import POSITION_KINDS, JaggedPositionEncoding, PositionKind

__all__ = ["POSITION_KINDS", "JaggedPositionEncoding", "PositionKind"]
