// A name that nobody has declared.
#include <metal_stdlib>
using namespace metal;

[[kernel]] void misspelt(device float* x [[buffer(0)]], device uint* done [[buffer(1)]],
                   uint3 at [[thread_position_in_grid]]) {
  x[at.x] = exq(x[at.x]);
  done[at.x] = 1;
}
