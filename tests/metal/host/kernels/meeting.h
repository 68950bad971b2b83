// Threads that meet: barriers and simd-group functions, right and wrong.
#ifndef MLXHOG_TEST_MEETING_H
#define MLXHOG_TEST_MEETING_H

#include <metal_stdlib>
using namespace metal;

namespace mlxhog {

// y[i] = sum of x over the group of thread i, through threadgroup memory.
inline void group_sum(const device float* x, device float* y, threadgroup float* sums, uint i,
                      uint lane, uint simdgroup, uint simdgroups) {
  float sum = simd_sum(x[i]);
  if (lane == 0) sums[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (uint k = 0; k < simdgroups; ++k) total += sums[k];
  y[i] = total;
}

// The lower half of the group waits at one barrier, the upper at another or nowhere.
inline void divergent(const device float* x, device float* y, uint returns, uint i, uint n) {
  if (i < n / 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else if (returns == 0) {
    threadgroup_barrier(mem_flags::mem_device);
  }
  y[i] = x[i];
}

// Copies threadgroup memory to y, of which the group's thread 0 has written one word.
inline void unwritten(const device float* x, device float* y, threadgroup float* tile, uint i,
                      uint in_group) {
  if (in_group == 0) tile[0] = x[i];
  y[i] = tile[in_group];
}

}  // namespace mlxhog

#endif
