"""Native sources of mlxhog: C++ kernels, and the Metal kernels that come later."""
