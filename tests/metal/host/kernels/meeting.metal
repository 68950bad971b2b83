#include "meeting.h"

[[kernel]] void group_sum(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                          uint3 at [[thread_position_in_grid]],
                          uint lane [[thread_index_in_simdgroup]],
                          uint simdgroup [[simdgroup_index_in_threadgroup]],
                          uint simdgroups [[simdgroups_per_threadgroup]]) {
  threadgroup float sums[32];
  mlxhog::group_sum(x, y, sums, at.x, lane, simdgroup, simdgroups);
}

[[kernel]] void simd_functions(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                               uint3 at [[thread_position_in_grid]]) {
  mlxhog::simd_functions(x, y, at.x);
}

[[kernel]] void divergent(const device float* x [[buffer(0)]], constant uint& returns [[buffer(1)]],
                          device float* y [[buffer(2)]], uint3 at [[thread_position_in_grid]],
                          uint3 size [[threads_per_threadgroup]]) {
  mlxhog::divergent(x, y, returns, at.x, size.x);
}

[[kernel]] void strided(const device float* x [[buffer(0)]], constant uint& stride [[buffer(1)]],
                        device float* y [[buffer(2)]], uint3 at [[thread_position_in_grid]]) {
  threadgroup float tile[32];
  mlxhog::strided(x, y, tile, stride, at.x);
}

[[kernel]] void matrix_product(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                               uint3 at [[thread_position_in_grid]]) {
  threadgroup float tile[64];
  mlxhog::matrix_product(x, y, tile, at.x);
}

[[kernel]] void unwritten(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                          uint3 at [[thread_position_in_grid]],
                      uint in_group [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  mlxhog::unwritten(x, y, tile, at.x, in_group);
}
