// A memory order that Metal does not have.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void acquire_order(device atomic_uint* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  atomic_load_explicit(x, memory_order_acquire);
  done[at.x] = 1;
}
