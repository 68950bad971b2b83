// A memory order that Metal does not have.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void other_order(device atomic_uint* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(x, 1u, memory_order_seq_cst);
  done[at.x] = 1;
}
