// as_type keeps the number of bits.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void unequal_sizes(device float* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  ushort bits = as_type<ushort>(x[0]); done[0] = bits;
  done[at.x] = 1;
}
