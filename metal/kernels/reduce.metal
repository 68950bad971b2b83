#include "reduce.h"

[[kernel]] void sumsq_partial(const device float* g [[buffer(0)]], constant uint& n [[buffer(1)]],
                              device float* part [[buffer(2)]], uint3 block [[threadgroup_position_in_grid]],
                              uint rank [[thread_index_in_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float sums[8];
  static_assert(sizeof(sums) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::sumsq_partial(g, n, part, sums, block.x, rank, lane, simdgroup);
}

[[kernel]] void sumsq_final(const device float* part [[buffer(0)]], constant uint& n [[buffer(1)]],
                            device float* norm [[buffer(2)]], uint rank [[thread_index_in_threadgroup]],
                            uint lane [[thread_index_in_simdgroup]],
                            uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float sums[8];
  static_assert(sizeof(sums) <= 32768, "more threadgroup memory than a chip has");
  mlxhog::sumsq_final(part, n, norm, sums, rank, lane, simdgroup);
}

[[kernel]] void clip_scale(const device float* norm [[buffer(0)]], constant float& max_norm [[buffer(1)]],
                           device float* scale [[buffer(2)]]) {
  mlxhog::clip_scale(norm, max_norm, scale);
}

[[kernel]] void nonfinite_count(const device float* g [[buffer(0)]], device uint* found [[buffer(1)]],
                                constant uint& n [[buffer(2)]], device uint* done [[buffer(3)]],
                                uint3 at [[thread_position_in_grid]]) {
  mlxhog::nonfinite_count(g, found, n, done, at.x);
}
