// Apple GPUs before the ninth family have no 64-bit atomics, later ones no addition.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void wide_atomic(device atomic<ulong>* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(x, 1ul, memory_order_relaxed);
  done[at.x] = 1;
}
