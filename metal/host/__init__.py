"""The host shim: compiles the project's Metal source as C++ and runs it on the CPU, for tests.

`include/` stands in for Metal's standard library, `runtime/` runs threadgroups on OS threads, and
the Python files turn the text that MLX or PyTorch would compile into a library that `HostEngine`
calls.
"""
