"""Fixtures of the kernels' tests."""

from cuda_emulation import emulated  # noqa: F401 (a fixture)
