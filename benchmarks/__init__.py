"""Benchmarks of mtlfast: every op and model against every honest baseline.

``python -m benchmarks --help`` from a checkout, or ``mtlfast bench``. What is measured and how is
written down in NOTES.md; the rules are enforced here: no speed without a passed check, variants
interleaved in one process, inputs rotated through memory, machine limits measured in the same run.
"""

from __future__ import annotations

from .runner import run

__all__ = ["run"]
