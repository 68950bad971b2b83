"""Runs and checks Metal source on a machine without an Apple GPU.

It compiles the text that MLX or PyTorch would compile as C++: `include/` replaces Metal's standard
library, `runtime/` runs threadgroups on OS threads, and `engine.py` calls the library. In `tools/`,
`lint.py` rejects constructs that Metal forbids, `address_spaces.py` lets clang check address
spaces, and `sanitize.py` runs kernels under sanitizers.
"""
