// Threads that meet: barriers and simdgroup functions, right and wrong.
#pragma once

#include <metal_stdlib>
using namespace metal;

namespace mlxhog {

// y[i] = sum of x over the threadgroup of thread i, through threadgroup memory.
inline void group_sum(const device float* x, device float* y, threadgroup float* sums, uint i,
                      uint lane, uint simdgroup, uint simdgroups) {
  float sum = simd_sum(x[i]);
  if (lane == 0) sums[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (uint k = 0; k < simdgroups; ++k) total += sums[k];
  y[i] = total;
}

// The lower half of the threadgroup waits at one barrier, the upper at another or nowhere.
inline void divergent(const device float* x, device float* y, uint returns, uint i, uint n) {
  if (i < n / 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
  } else if (returns == 0) {
    threadgroup_barrier(mem_flags::mem_device);
  }
  y[i] = x[i];
}

// A barrier of a threadgroup with some flags, or of a simdgroup.
inline void meet(uint flags, uint of_simdgroup) {
  if (of_simdgroup != 0) simdgroup_barrier(static_cast<mem_flags>(flags));
  else threadgroup_barrier(static_cast<mem_flags>(flags));
}

// y[i] = x of the next thread of the simdgroup, or of the threadgroup, through threadgroup memory.
inline void by_threadgroup(const device float* x, device float* y, threadgroup float* tile, uint flags,
                           uint of_simdgroup, uint i, uint t, uint n) {
  tile[t] = x[i];
  meet(flags, of_simdgroup);
  y[i] = of_simdgroup != 0 ? tile[t / 32 * 32 + (t + 1) % 32] : tile[(t + 1) % n];
}

// The same through device memory.
inline void by_device(const device float* x, device float* y, device float* z, uint flags, uint of_simdgroup, uint i,
                      uint t, uint n) {
  const uint first = i - t;
  z[i] = x[i];
  meet(flags, of_simdgroup);
  y[i] = z[first + (of_simdgroup != 0 ? t / 32 * 32 + (t + 1) % 32 : (t + 1) % n)];
}

// y[i] = twice x[i]: threads write where others have read before a barrier.
inline void by_turns(const device float* x, device float* y, threadgroup float* tile, uint flags, uint of_simdgroup,
                     uint i, uint t, uint n) {
  tile[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float next = tile[(t + 1) % n];
  meet(flags, of_simdgroup);
  tile[t] = next;
  y[i] = tile[t] + x[i];
}

// Copies threadgroup memory to y, of which the threadgroup's thread 0 has written one word.
inline void unwritten(const device float* x, device float* y, threadgroup float* tile, uint i,
                      uint in_group) {
  if (in_group == 0) tile[0] = x[i];
  y[i] = tile[in_group];
}

}  // namespace mlxhog
