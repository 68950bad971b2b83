"""Runs and checks Metal source on a machine without an Apple GPU.

The host shim compiles the text that MLX or PyTorch would compile as C++ and runs it on the CPU:
`include/` stands in for Metal's standard library, `runtime/` runs threadgroups on OS threads, and
`HostEngine` in `engine.py` calls the library. `lint/` rejects what Metal forbids,
`address_spaces.py` asks clang whether pointers stay in theirs, and `sanitize.py` runs kernels under
sanitizers.
"""
