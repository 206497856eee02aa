"""What runs here: versions, instruction sets, compiled features, loaded ops."""

from __future__ import annotations


def env() -> dict[str, str]:
    return {}
