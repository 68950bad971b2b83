// Metal has the weak form only.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void strong_exchange(device atomic_uint* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  uint old = 0; atomic_compare_exchange_strong_explicit(x, &old, 1u, memory_order_relaxed, memory_order_relaxed);
  done[at.x] = 1;
}
