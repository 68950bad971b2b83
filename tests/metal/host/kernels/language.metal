#include "language.h"

[[kernel]] void arithmetic_half(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                                device uint* bits [[buffer(2)]],
                                uint3 at [[thread_position_in_grid]]) {
  mlxhog::arithmetic<half>(x, y, bits, at.x);
}

[[kernel]] void arithmetic_bfloat(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                                  device uint* bits [[buffer(2)]],
                                  uint3 at [[thread_position_in_grid]]) {
  mlxhog::arithmetic<bfloat>(x, y, bits, at.x);
}

[[kernel]] void functions(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                          uint3 at [[thread_position_in_grid]], uint3 n [[threads_per_grid]]) {
  mlxhog::functions(x, y, at.x, n.x);
}
