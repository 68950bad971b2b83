// What is asked of a gradient before it is applied: its norm, the factor that clips it, whether it is finite.
//
// Sums go in a fixed order, written out here, so that a norm has the same bits in every run and on every
// chip. Groups are whole: kGroup threads each.
#pragma once

#include "atomics.h"
#include "unfused.h"

namespace mlxhog {

enum : uint {
  kGroup = 256,   // threads
  kSimd = 32,     // threads of a simdgroup
  kBlock = 4096,  // elements that a threadgroup sums: 16 per thread hide the latency of a load
};

// The sum of `value` over a threadgroup: a butterfly in each simdgroup, then simdgroup by simdgroup. Unlike
// the order of simd_sum, this one is defined.
inline float group_sum(float value, threadgroup float* sums, uint lane, uint simdgroup) {
  for (ushort distance = kSimd / 2; distance > 0; distance /= 2) value += simd_shuffle_xor(value, distance);
  if (lane == 0) sums[simdgroup] = value;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0.0f;
  for (uint k = 0; k < kGroup / kSimd; ++k) total += sums[k];
  return total;
}

// part[b] = sum of the squares of block b of g.
inline void sumsq_partial(const device float* g, uint n, device float* part, threadgroup float* sums, uint block,
                          uint rank, uint lane, uint simdgroup) {
  float sum = 0.0f;
  for (uint k = 0; k < kBlock; k += kGroup) {
    const uint i = block * kBlock + k + rank;
    if (i < n) sum += g[i] * g[i];
  }
  const float total = group_sum(sum, sums, lane, simdgroup);
  if (rank == 0) part[block] = total;
}

// norm = root of the sum of n parts; one threadgroup.
inline void sumsq_final(const device float* part, uint n, device float* norm, threadgroup float* sums,
                        uint rank, uint lane, uint simdgroup) {
  float sum = 0.0f;
  for (uint i = rank; i < n; i += kGroup) sum += part[i];
  const float total = group_sum(sum, sums, lane, simdgroup);
  if (rank == 0) norm[0] = precise::sqrt(total);
}

// min(1, max_norm / (norm + 1e-6)), or 1 where max_norm is 0. A norm that is NaN gives 1 and an infinite one 0:
// such a gradient is to be dropped, and no factor can mend it.
inline void clip_scale(const device float* norm, float max_norm, device float* scale) {
  const float factor = max_norm / (norm[0] + 1e-6f);
  scale[0] = max_norm > 0.0f && factor < 1.0f ? factor : 1.0f;
}

// found += number of elements of g that are NaN or infinite. In bits, since a compiler may assume that there
// are no such numbers; one atomic each, since there are none in almost every step.
inline void nonfinite_count(const device float* g, const device uint* found, uint n, device uint* done, uint i) {
  if (i >= n) return;
  if (i == 0) done[0] = 1u;
  if ((as_type<uint>(g[i]) & 0x7f800000u) == 0x7f800000u) count(found, 1u);
}

}  // namespace mlxhog
