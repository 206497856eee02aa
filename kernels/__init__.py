"""Triton kernels of mtlfast, one module or package per op; installed as `mtlfast.kernels`.

Nothing here imports the rest of the package, and `mtlfast` imports triton only when a kernel is
asked for.
"""
