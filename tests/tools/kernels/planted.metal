#include "planted.h"

[[kernel]] void past_the_end(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                             uint3 at [[thread_position_in_grid]]) {
  mlxhog::past_the_end(x, y, at.x);
}

[[kernel]] void past_the_tile(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                              uint3 at [[thread_position_in_grid]],
                              uint rank [[thread_index_in_threadgroup]]) {
  threadgroup float tile[256];
  mlxhog::past_the_tile(x, y, tile, at.x, rank);
}

[[kernel]] void signed_overflow(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                                uint3 at [[thread_position_in_grid]]) {
  mlxhog::signed_overflow(x, y, at.x);
}

[[kernel]] void long_shift(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                           uint3 at [[thread_position_in_grid]]) {
  mlxhog::long_shift(x, y, at.x);
}

[[kernel]] void no_barrier(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                           uint3 at [[thread_position_in_grid]],
                           uint rank [[thread_index_in_threadgroup]]) {
  threadgroup float tile[256];
  mlxhog::no_barrier(x, y, tile, at.x, rank);
}

[[kernel]] void one_word(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                         uint3 at [[thread_position_in_grid]]) {
  mlxhog::one_word(x, y, at.x);
}
