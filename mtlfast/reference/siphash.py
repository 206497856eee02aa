"""SipHash-2-4 of the key strings of crossed fields, as MemoNet's published code hashes them.

Source: Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012). Slow: it exists to name
the same codewords as models trained elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# The key (k0, k1) of each hash function in MemoNet's published code.
KEYS = (
    (7744, 1822),
    (423, 6649),
    (3588, 8319),
    (8220, 7283),
    (1965, 9209),
    (4472, 1935),
    (3987, 4403),
    (2379, 2870),
    (5638, 2954),
    (2211, 2),
    (6075, 9105),
)


def key_strings(ids: Tensor, crosses: Sequence[tuple[int, ...]]) -> list[bytes]:
    """``"<f1>_<id1>_<f2>_<id2>"`` of every sample and crossed pair, sample by sample."""
    return [
        "_".join(f"{field}_{row[field]}" for field in cross).encode()
        for row in ids.tolist()
        for cross in crosses
    ]


def siphash(messages: Sequence[bytes], key: tuple[int, int]) -> Tensor:
    """SipHash-2-4 of every message: int64 ``[len(messages)]`` with the bits of the uint64."""
    longest = max(map(len, messages), default=0) // 8 + 1
    # The length closes the last word; shorter messages end in an earlier word.
    padded = [message.ljust(len(message) // 8 * 8 + 7, b"\0") for message in messages]
    closed = b"".join(
        (text + bytes([len(message) & 0xFF])).ljust(8 * longest, b"\0")
        for text, message in zip(padded, messages, strict=True)
    )
    words = torch.frombuffer(bytearray(closed or bytes(8)), dtype=torch.int64)
    words = words[: len(messages) * longest].view(len(messages), longest)
    count = torch.tensor([len(message) // 8 + 1 for message in messages], dtype=torch.int64)

    names = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    halves = zip((*key, *key), names, strict=True)
    state = [torch.full((len(messages),), _signed(half ^ name)) for half, name in halves]
    for i in range(longest):
        word = words[:, i]
        v0, v1, v2, v3 = _rounds([*state[:3], state[3] ^ word], 2)
        mixed = (v0 ^ word, v1, v2, v3)
        inside = i < count
        state = [torch.where(inside, new, old) for new, old in zip(mixed, state, strict=True)]
    v0, v1, v2, v3 = _rounds([state[0], state[1], state[2] ^ 0xFF, state[3]], 4)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(state: list[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    v0, v1, v2, v3 = state
    for _ in range(count):
        v0 = v0 + v1
        v1 = _rotate(v1, 13) ^ v0
        v0 = _rotate(v0, 32)
        v2 = v2 + v3
        v3 = _rotate(v3, 16) ^ v2
        v0 = v0 + v3
        v3 = _rotate(v3, 21) ^ v0
        v2 = v2 + v1
        v1 = _rotate(v1, 17) ^ v2
        v2 = _rotate(v2, 32)
    return v0, v1, v2, v3


def _rotate(x: Tensor, bits: int) -> Tensor:
    return (x << bits) | ((x >> (64 - bits)) & ((1 << bits) - 1))


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >= 1 << 63 else value
