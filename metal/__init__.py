"""Native code: C++ for CPUs, Metal for GPUs, and an emulator that runs the latter on a CPU."""
