"""Everything that needs a GPU to be known, in one command: ``python -m benchmarks.gpu``.

Builds the extension in place, checks every GPU op against float64, under compute-sanitizer, in CUDA
graphs and in compiled graphs, then times the ops against their baselines and against two limits
measured in the same run. Each step runs in a process of its own with a time budget; one that fails
is reported and the others still run. Needs only torch, triton, nvcc, ninja, pybind11 and pytest.
"""
