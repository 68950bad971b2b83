"""Runs and checks Metal source on a machine without an Apple GPU.

The emulator compiles the text that MLX or PyTorch would compile as C++ and runs it on the CPU:
`include/` replaces Metal's standard library, `runtime/` runs threadgroups on OS threads, and
`EmulatorEngine` in `engine.py` calls the library. In `tools/`, `lint/` rejects constructs that
Metal forbids, `address_spaces.py` lets clang check that pointers stay in their address space, and
`sanitize.py` runs kernels under sanitizers.
"""
