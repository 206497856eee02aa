"""Baselines: plain PyTorch that computes exactly what the fused ops compute.

Imported by the benchmarks and by tests. Every function here has the signature of the op it stands
for, without ``backend``; all are differentiable and accept any floating dtype.
"""

from __future__ import annotations

from . import conditional_interest, conditional_layer_norm

__all__ = ["conditional_interest", "conditional_layer_norm"]
