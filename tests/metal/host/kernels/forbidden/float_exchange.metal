// Compare-exchange on floats, which never ends on a NaN.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void float_exchange(device atomic_float* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  float old = 0.0f; atomic_compare_exchange_weak_explicit(x, &old, 1.0f, memory_order_relaxed, memory_order_relaxed);
  done[at.x] = 1;
}
