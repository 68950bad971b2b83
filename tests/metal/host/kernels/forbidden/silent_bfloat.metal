// A float does not become a bfloat by itself.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void silent_bfloat(device float* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  bfloat b = x[0]; done[0] = as_type<ushort>(b);
  done[at.x] = 1;
}
