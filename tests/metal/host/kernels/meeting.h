// Threads that meet: barriers and simd-group functions, right and wrong.
#ifndef MLXHOG_TEST_MEETING_H
#define MLXHOG_TEST_MEETING_H

#include <metal_stdlib>
#include <metal_simdgroup_matrix>
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

// What every simd-group function makes of x; y has 3 values for every thread.
inline void simd_functions(const device float* x, device float* y, uint i) {
  device float* out = y + 3 * i;
  out[0] = simd_sum(x[i]);
  out[1] = simd_max(x[i]);
  out[2] = simd_prefix_inclusive_sum(x[i]);
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

// y = A B^T + 2 of the matrices of 8 x 8 at x and x + 80, whose rows are 10 floats apart, through threadgroup memory.
inline void matrix_product(const device float* x, device float* y, threadgroup float* tile, uint i) {
  simdgroup_float8x8 a, b, sum = make_filled_simdgroup_matrix<float, 8, 8>(2.0f);
  simdgroup_load(a, x, 10);
  simdgroup_load(b, x + 80, 10, ulong2(0), true);
  simdgroup_multiply_accumulate(sum, a, b, sum);
  simdgroup_store(sum, tile, 8);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[2 * i] = tile[2 * i];
  y[2 * i + 1] = tile[2 * i + 1];
}

// Copies threadgroup memory to y, of which the group's thread 0 has written one word.
inline void unwritten(const device float* x, device float* y, threadgroup float* tile, uint i,
                      uint in_group) {
  if (in_group == 0) tile[0] = x[i];
  y[i] = tile[in_group];
}

}  // namespace mlxhog

#endif
