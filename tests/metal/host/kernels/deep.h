// A thread with more memory of its own than a fiber has.
#ifndef MLXHOG_TEST_DEEP_H
#define MLXHOG_TEST_DEEP_H

#include <metal_stdlib>
using namespace metal;

namespace mlxhog {

// 80 KiB on the stack of a fiber.
inline void deep(const device float* x, device float* y, uint i, uint n) {
  volatile float local[20480];
  for (uint k = 0; k < 20480; ++k) local[k] = x[i];
  threadgroup_barrier(mem_flags::mem_none);
  y[i] = local[i % n];
}

}  // namespace mlxhog

#endif
