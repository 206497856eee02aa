"""Triton kernels of mtlfast, one file per op; installed as `mtlfast.kernels`.

Nothing here imports the rest of the package, and nothing imports triton before a kernel is asked
for. No GPU kernel exists yet.
"""
