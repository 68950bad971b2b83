"""Native code: C++ for CPUs, Metal for GPUs, and the shim that runs the Metal source on a CPU."""
